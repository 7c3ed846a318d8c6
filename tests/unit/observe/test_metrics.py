"""What Prometheus is told: every metric, and what it counts."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.model.events import RESTART_REASONS, Restarted
from ipvs_node_agent.nat.ruleset import DRIFT
from ipvs_node_agent.observe import counters
from ipvs_node_agent.observe.counters import HOST, POD, Count
from ipvs_node_agent.sync.state import AgentState, FamilyState, Published
from tests.support.agentnode import (
    BUSY,
    EXTERNAL_4,
    EXTERNAL_6,
    Node,
    other,
    running,
    web,
)
from tests.support.monitored import Bed, metered
from tests.support.promlint import faults, read

# Every metric of the agent's own: its type and its labels.
METRICS = {
    "build_info": ("gauge", {"version", "python_version"}),
    "sync_duration_seconds": ("histogram", {"ip_family", "le"}),
    "programming_latency_seconds": ("histogram", {"ip_family", "le"}),
    "sync_failures_total": ("counter", {"ip_family"}),
    "last_sync_timestamp_seconds": ("gauge", {"ip_family"}),
    "last_queued_timestamp_seconds": ("gauge", {"ip_family"}),
    "services": ("gauge", {"ip_family"}),
    "rules": ("gauge", {"ip_family"}),
    "chains": ("gauge", {"ip_family"}),
    "drift_repairs_total": ("counter", {"reason"}),
    "refused_external_ips": ("gauge", {"reason"}),
    "watch_restarts_total": ("counter", {"reason"}),
    "config_stale": ("gauge", set()),
    "credentials_expiry_timestamp_seconds": ("gauge", set()),
    "service_packets_total": ("counter", {"namespace", "service", "path"}),
    "service_bytes_total": ("counter", {"namespace", "service", "path"}),
}


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


# 1. The names


def whole(bed: Bed) -> str:
    """All metrics, with a sample of each."""
    bed.watch(running(web("127.0.0.1", EXTERNAL_4)))
    bed.monitoring.published = Published(
        **{**vars(bed.monitoring.published), "expires": 1_900_000_000, "config_stale": True}
    )
    bed.sums = {("default/web", POD): Count(3, 180), ("default/web", HOST): Count(5, 300)}
    return bed.text()


def test_every_metric_has_its_type_and_labels(bed: Bed) -> None:
    found = {
        name.replace("ipvs_node_agent_", ""): (
            metric.kind,
            {label for _, labels in metric.samples for label, _ in labels},
        )
        for name, metric in read(whole(bed)).items()
        if not name.startswith("process_")
    }
    assert found == METRICS


def test_promtool_has_nothing_to_complain_of(bed: Bed) -> None:
    text = whole(bed)
    assert not faults(text)
    assert "_created" not in text


def test_what_promtool_complains_of_is_known() -> None:
    assert faults("# TYPE a counter\na 1\n") == ["a_total has no help"]
    for text, fault in (
        ("# HELP a_total x\n# TYPE a_total gauge\na_total 1\n", "only counters end in _total"),
        ("# HELP a_count x\n# TYPE a_count gauge\na_count 1\n", "a_count: its end"),
        ("# HELP a_milliseconds x\n# TYPE a_milliseconds gauge\na_milliseconds 1\n", "base unit"),
        ("# HELP a_gauge x\n# TYPE a_gauge gauge\na_gauge 1\n", "holds its type"),
        ('# HELP a x\n# TYPE a gauge\na{aB="c"} 1\n', "aB is not in snake case"),
        ("a 1\n", "a has no type"),
    ):
        assert fault in "\n".join(faults(text))


def test_every_reason_is_there_before_it_happens(bed: Bed) -> None:
    bed.watch(Node())
    assert [bed.value("drift_repairs_total", reason=reason) for reason in DRIFT] == [0] * 8
    for reason in RESTART_REASONS:
        assert bed.value("watch_restarts_total", reason=reason) == 0


# 2. What they count


def test_the_rules_are_counted_by_family(bed: Bed) -> None:
    bed.watch(running(web(EXTERNAL_4, EXTERNAL_6), other()))
    for name, counts in (("services", (2, 1)), ("rules", (8, 4)), ("chains", (2, 2))):
        assert (bed.value(name, ip_family="IPv4"), bed.value(name, ip_family="IPv6")) == counts


def test_a_change_is_measured_from_its_arrival_in_the_families_it_is_about(bed: Bed) -> None:
    made = metered(bed)
    made.put(web(EXTERNAL_4))
    made.clock.now += 0.03
    made.settle()
    name = "programming_latency_seconds"
    assert bed.value(f"{name}_count", ip_family="IPv4") == 1
    assert bed.value(f"{name}_sum", ip_family="IPv4") == pytest.approx(0.03)
    assert bed.value(f"{name}_count", ip_family="IPv6") == 0


def test_a_change_that_fails_first_is_measured_up_to_its_success(bed: Bed) -> None:
    made = metered(bed)
    made.tables[IPV4].broken = BUSY
    made.put(web(EXTERNAL_4))
    made.pass_time(5)
    name = "programming_latency_seconds"
    assert bed.value(f"{name}_count", ip_family="IPv4") == 0
    made.tables[IPV4].broken = None
    made.pass_time(11)
    assert bed.value(f"{name}_count", ip_family="IPv4") == 1
    assert bed.value(f"{name}_sum", ip_family="IPv4") > 5


def test_the_first_list_and_changes_of_no_rule_are_not_measured(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.put(other("10.231.42.164"))
    made.settle()
    assert bed.value("programming_latency_seconds_count", ip_family="IPv4") == 0


def test_writes_are_measured_and_looks_are_not(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    before = bed.value("sync_duration_seconds_count", ip_family="IPv4")
    made.pass_time(60)
    assert bed.value("sync_duration_seconds_count", ip_family="IPv4") == before
    made.put(other())
    made.settle()
    assert bed.value("sync_duration_seconds_count", ip_family="IPv4") == before + 1


def test_failures_are_counted(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.tables[IPV4].broken = BUSY
    made.put(other())
    made.settle()
    bed.watch(made)
    assert bed.value("sync_failures_total", ip_family="IPv4") >= 1
    assert bed.value("sync_failures_total", ip_family="IPv6") == 0


def test_times_are_those_of_the_clock_on_the_wall(bed: Bed) -> None:
    now = time.monotonic()
    family = FamilyState(synced=now - 10, queued=now - 20)
    bed.monitoring.published = Published(now, agent=AgentState({IPV4: family, IPV6: FamilyState()}))
    for name, ago in (("last_sync", 10), ("last_queued", 20)):
        moment = bed.value(f"{name}_timestamp_seconds", ip_family="IPv4")
        assert moment == pytest.approx(time.time() - ago, abs=1)
        assert bed.value(f"{name}_timestamp_seconds", ip_family="IPv6") == 0


def test_a_table_found_right_counts_as_synced(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.pass_time(30)
    family = made.agent.state().families[IPV4]
    assert made.clock.now - family.synced <= 2.1
    assert made.clock.now - family.queued > 29


def test_repairs_are_counted_by_reason(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.tables[IPV4].restore("*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
    made.pass_time(3)
    bed.watch(made)
    assert bed.value("drift_repairs_total", reason="JumpMissing") == 1
    assert bed.value("drift_repairs_total", reason="TableFlushed") == 0


def test_refusals_are_counted_by_reason_for_as_long_as_they_last(bed: Bed) -> None:
    made = metered(bed, web("127.0.0.1", "169.254.0.1", "169.254.0.2", EXTERNAL_4))
    bed.watch(made)
    assert bed.value("refused_external_ips", reason="Loopback") == 1
    assert bed.value("refused_external_ips", reason="LinkLocal") == 2
    made.put(web(EXTERNAL_4))
    made.settle()
    bed.watch(made)
    assert "refused_external_ips{" not in bed.text()


def test_watches_that_end_are_counted_by_reason(bed: Bed) -> None:
    made = running()
    made.agent.take(Restarted("services", "Expired"))
    made.agent.take(Restarted("nodes", "Expired"))
    bed.watch(made)
    assert bed.value("watch_restarts_total", reason="Expired") == 2


def test_packets_and_bytes_are_those_of_each_service(bed: Bed) -> None:
    whole(bed)
    labels = {"namespace": "default", "service": "web"}
    assert bed.value("service_packets_total", path="pod", **labels) == 3
    assert bed.value("service_bytes_total", path="host", **labels) == 300


def test_the_configuration_and_the_version_are_told(bed: Bed) -> None:
    text = whole(bed)
    assert f'version="{__version__}"' in text
    assert bed.value("config_stale") == 1
    assert bed.value("credentials_expiry_timestamp_seconds") == 1_900_000_000


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
