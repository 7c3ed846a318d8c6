"""What Prometheus is told: every metric, and what it counts."""

from __future__ import annotations

import platform
import time
import tracemalloc

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import IPV4, IPV6, parse_address
from ipvs_node_agent.model.objects import Problem, UncoveredPod
from ipvs_node_agent.observe import counters
from ipvs_node_agent.observe.counters import HOST, POD, Count
from ipvs_node_agent.observe.metrics import CONTENT_TYPE
from ipvs_node_agent.observe.pages import Monitoring
from ipvs_node_agent.sync.state import AgentState, FamilyState, Published
from tests.support.agentnode import BUSY, EXTERNAL_4, Node, other, web
from tests.support.promlint import faults, read, value


class Bed:
    """Monitoring with the packets of Services that are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monitoring = Monitoring(contact=lambda: time.monotonic() - 30)
        self.sums: dict[tuple[str, str], Count] = {}
        monkeypatch.setattr(counters.Sampler, "sums", lambda *_: self.sums)

    def text(self) -> str:
        page = self.monitoring.page("/metrics")
        assert (page.status, page.content_type) == (200, CONTENT_TYPE)
        return page.body.decode()

    def measured(self, name: str, ip_family: str = "IPv4") -> float:
        return value(self.text(), f"ipvs_node_agent_{name}", ip_family=ip_family)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


# 1. What is read of the agent


def full(bed: Bed) -> str:
    """All metrics, with a sample of each."""
    now = time.monotonic()
    loopback, link_local = (
        Problem("default/web", kind, "no") for kind in ("Loopback", "LinkLocal")
    )
    bed.monitoring.published = Published(
        now,
        agent=AgentState(
            families={
                IPV4: FamilyState(2, 8, 3, failures=4, synced=now - 10, queued=now - 20),
                IPV6: FamilyState(),
            },
            repairs={"JumpMissing": 5, "TableFlushed": 0},
            refusals=frozenset({loopback, link_local, link_local._replace(text="neither")}),
            restarts={"Expired": 6},
            uncovered=tuple(UncoveredPod("default/a", parse_address(ip), "x") for ip in STRAY),
        ),
        config_stale=True,
        expires=1_900_000_000,
    )
    bed.sums = {("default/web", POD): Count(3, 180), ("default/web", HOST): Count(5, 300)}
    return bed.text()


def by_family(ipv4: object) -> dict[str, object]:
    return {"ip_family=IPv4": ipv4, "ip_family=IPv6": 0}


# One pod's.
STRAY = ("10.9.0.5", "fd00:9::5")
WEB = "namespace=default,path={},service=web"


def test_every_metric_has_its_type_labels_and_values(bed: Bed) -> None:
    found = {
        name.replace("ipvs_node_agent_", ""): (
            metric.kind,
            {
                ",".join(sorted("=".join(label) for label in labels)): number
                for (_, labels), number in metric.samples.items()
            },
        )
        for name, metric in read(full(bed)).items()
        if metric.kind != "histogram" and not name.startswith("process_")
    }

    def ago(seconds: float) -> object:
        return pytest.approx(time.time() - seconds, abs=4)

    assert found == {
        "build_info": (
            "gauge",
            {f"python_version={platform.python_version()},version={__version__}": 1},
        ),
        "sync_failures_total": ("counter", by_family(4)),
        "last_sync_timestamp_seconds": ("gauge", by_family(ago(10))),
        "last_queued_timestamp_seconds": ("gauge", by_family(ago(20))),
        "services": ("gauge", by_family(2)),
        "rules": ("gauge", by_family(8)),
        "chains": ("gauge", by_family(3)),
        "drift_repairs_total": ("counter", {"reason=JumpMissing": 5, "reason=TableFlushed": 0}),
        "refused_external_ips": ("gauge", {"reason=Loopback": 1, "reason=LinkLocal": 2}),
        "watch_restarts_total": ("counter", {"reason=Expired": 6}),
        "uncovered_pods": ("gauge", {"": 1}),
        "last_api_contact_timestamp_seconds": ("gauge", {"": ago(30)}),
        "config_stale": ("gauge", {"": 1}),
        "credentials_expiry_timestamp_seconds": ("gauge", {"": 1_900_000_000}),
        "service_packets_total": ("counter", {WEB.format(POD): 3, WEB.format(HOST): 5}),
        "service_bytes_total": ("counter", {WEB.format(POD): 180, WEB.format(HOST): 300}),
    }


def test_every_duration_is_a_histogram_by_family(bed: Bed) -> None:
    found = {
        name: {label for _, labels in metric.samples for label, _ in labels}
        for name, metric in read(bed.text()).items()
        if metric.kind == "histogram"
    }
    assert found == {
        f"ipvs_node_agent_{name}_seconds": {"ip_family", "le"}
        for name in ("sync_duration", "programming_latency")
    }


def test_promtool_has_nothing_to_complain_of(bed: Bed) -> None:
    text = full(bed)
    assert not faults(text)
    assert "_created" not in text


def test_without_series_for_services_nobody_counts(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters.Sampler, "sums", lambda *_: pytest.fail("it was asked"))
    bed.monitoring.configure(Config(metrics_bind_address="", service_metrics=False))
    assert "service_packets_total" not in bed.text()


def test_ten_thousand_services_take_little_time_and_memory(bed: Bed) -> None:
    bed.sums = {
        (f"namespace-{n % 100}/service-{n}", path): Count(n, n * 60)
        for n in range(10_000)
        for path in (POD, HOST)
    }
    started = time.thread_time()
    assert len(bed.text()) > 1_000_000
    assert time.thread_time() - started < 0.75
    tracemalloc.start()
    bed.text()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20


# 2. What is measured as it happens


@pytest.fixture
def made(bed: Bed) -> Node:
    """A node whose agent tells `bed` how long things take."""
    made = Node(meter=bed.monitoring.meters)
    made.list_all(web("10.19.20.1"))
    made.settle()
    return made


LATENCY = "programming_latency_seconds"


def test_a_change_is_measured_from_its_arrival_in_the_families_it_is_about(
    bed: Bed, made: Node
) -> None:
    # Neither is the first list nor what makes no rule.
    made.put(other("10.231.42.164"))
    made.settle()
    assert bed.measured(f"{LATENCY}_count") == 0
    made.put(web(EXTERNAL_4))
    made.clock.now += 0.03
    made.settle()
    assert bed.measured(f"{LATENCY}_count") == 1
    assert bed.measured(f"{LATENCY}_sum") == pytest.approx(0.03)
    assert bed.measured(f"{LATENCY}_count", "IPv6") == 0


def test_a_change_that_fails_first_is_measured_up_to_its_success(bed: Bed, made: Node) -> None:
    made.tables[IPV4].broken = BUSY
    made.put(web(EXTERNAL_4))
    made.pass_time(5)
    assert bed.measured(f"{LATENCY}_count") == 0
    made.tables[IPV4].broken = None
    made.pass_time(11)
    assert bed.measured(f"{LATENCY}_count") == 1
    assert bed.measured(f"{LATENCY}_sum") > 5


def test_writes_are_measured_and_looks_are_not(bed: Bed, made: Node) -> None:
    before = bed.measured("sync_duration_seconds_count")
    made.pass_time(60)
    assert bed.measured("sync_duration_seconds_count") == before
    made.put(other())
    made.settle()
    assert bed.measured("sync_duration_seconds_count") == before + 1
