"""A few minutes of three nodes' life: real agents, real packets, changes, and things that go wrong.

A step is over when Prometheus has seen what it does, so nothing is left out however slow the
machine is.
"""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from tests.observe.dashboard import Panel, filled, panels
from tests.observe.prometheus import Points, Prometheus, prometheus
from tests.support.agentprocess import AgentProcess, agent_process, altered
from tests.support.apiserver import ApiServer
from tests.support.cluster import node, service
from tests.support.faults import locked
from tests.support.fleet import LAYOUTS, NODE, fleet, raw, raw_node
from tests.support.netns import link, namespaces
from tests.support.pki import Pki, point_to
from tests.support.tables import add_mark_masq, restore
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, Topology, serving, topology
from tests.support.traffic import streaming

# The backend that waits for a lock.
BACKEND = "legacy"
ADDRESS = "127.0.0.1:10273"
# The node that packets and people come to.
OURS = f'instance="{NODE.name}"'
# Where the API server is reached from all nodes, and the other nodes with their addresses.
API_ADDRESS = "10.250.0.1"
OTHERS = {"worker-2": "10.250.2.2", "worker-3": "10.250.3.2"}
# What runs on the last of them, which has not been upgraded yet.
OLD_VERSION = "0.0.9"
LOCK = Path("/run/xtables.lock")
# The Services that packets go to, by their last number, and the seconds between two connections of
# pods and of the host.
ASKED = {
    "shop": (1, 0.03, 0.2),
    "wiki": (2, 0.08, 0.1),
    "mail": (3, 0.15, 0.0),
    "git": (4, 0.3, 0.5),
}
DUAL = service("web", list(CLUSTER_IP.values()), EXTERNAL_IP.values())


@dataclass(frozen=True)
class Size:
    """How much there is of everything; `period` is between two scrapes, in seconds."""

    period: float
    drift_check: str
    pause: int
    changes: int
    burst: int
    fights: int
    lock_wait: int
    failures: int


FULL = Size(2, "2s", pause=6, changes=10, burst=150, fights=6, lock_wait=2, failures=2)
QUICK = Size(0.3, "0.3s", pause=0, changes=1, burst=10, fights=1, lock_wait=1, failures=1)


class Moment(NamedTuple):
    """When something began, in seconds since the epoch."""

    time: float
    what: str


class Drawn(NamedTuple):
    """A series with its name."""

    name: str
    points: Points


class Run(NamedTuple):
    """What happened, and what Prometheus answers to the panels' queries."""

    start: float
    end: float
    step: float
    moments: tuple[Moment, ...]
    panels: tuple[tuple[Panel, tuple[Drawn, ...]], ...]


@dataclass
class Scene:
    """A node with everything around it."""

    size: Size
    wired: Topology
    api: ApiServer
    agent: AgentProcess
    prometheus: Prometheus
    directory: Path
    pki: Pki
    moments: list[Moment] = field(default_factory=list)

    def pause(self) -> None:
        """Lets some scrapes go by in which nothing happens."""
        with self.prometheus.growing(f"count_over_time(up{{{OURS}}}[1h])", self.size.pause):
            pass

    def play(self) -> None:
        """All that happens, one thing after the other."""
        for what, step in (
            ("packets from pods and from the host", self.pause),
            ("Services change", self._change),
            (f"{self.size.burst} Services at once", self._burst),
            ("an external IP is refused", self._refuse),
            ("rules are flushed, removed and pushed down", self._drift),
            ("somebody keeps flushing them", self._fight),
            ("somebody holds iptables' lock", self._lock),
            ("watches break, and the API server is away", self._break),
            ("the kubelet renews its certificate", self._renew),
        ):
            self.moments.append(Moment(time.time(), what))
            step()
            self.pause()

    def _change(self) -> None:
        for number in range(self.size.changes):
            with self._programmed():
                self.api.put(_one("more", 100 + number))

    def _burst(self) -> None:
        many = list(fleet(LAYOUTS["one dense pool"], self.size.burst).values())
        with self._programmed(len(many)):
            for each in many:
                self.api.put(raw(each))
        self.pause()
        with self._programmed(len(many)):
            for each in many:
                self.api.delete("Service", *each.key.split("/"))

    def _refuse(self) -> None:
        self.api.put(service("bad", ["10.231.42.99"], ["127.0.0.1", "169.254.1.1"]))
        refused = "ipvs_node_agent_refused_external_ips"
        self.prometheus.reaches(refused, 2)
        # A sample that the next one ends at once may be in none of the picture's steps.
        with self.prometheus.growing(f"count_over_time({refused}[1h])", 6):
            pass
        self.pause()
        self.api.delete("Service", "default", "bad")

    def _drift(self) -> None:
        self._meddle("ChainFlushed", "-F IPVS_PREROUTING")
        self._meddle("JumpMissing", "-D OUTPUT -j IPVS_OUTPUT")
        self._meddle("JumpNotFirst", "-I PREROUTING 1 -i eth9 -j RETURN")

    def _fight(self) -> None:
        for _ in range(self.size.fights):
            self._meddle("ChainFlushed", "-F IPVS_OUTPUT")

    def _meddle(self, reason: str, text: str) -> None:
        counter = f'ipvs_node_agent_drift_repairs_total{{reason="{reason}"}}'
        with self.prometheus.growing(counter):
            restore(self.wired.node, IPV4, BACKEND, f"*nat\n{text}\nCOMMIT\n")

    def _lock(self) -> None:
        with self._programmed():
            failures = "ipvs_node_agent_sync_failures_total"
            with locked(LOCK), self.prometheus.growing(failures, self.size.failures, 60):
                self.api.put(_one("late", 200))

    def _break(self) -> None:
        counter = 'ipvs_node_agent_watch_restarts_total{{reason="{}"}}'.format
        with self.prometheus.growing(counter("Unreadable")):
            self.api.truncate_watches("services")
        with self.prometheus.growing(counter("Expired")):
            self.api.compact()
            self.api.close_watches("services")
        with self.prometheus.growing(counter("Unreachable"), 2):
            self.api.stop()
        self.api.start()
        agents = 1 + len(OTHERS)
        self.api.wait_for(lambda: self.api.watches("services") == agents, 60)

    def _renew(self) -> None:
        expires = datetime.now(timezone.utc) + timedelta(days=300)
        renewed = self.directory / "renewed.pem"
        self.pki.write_node_client(renewed, NODE.name, expires)
        with self.prometheus.growing("ipvs_node_agent_credentials_expiry_timestamp_seconds", 86400):
            point_to(self.directory / "client.pem", renewed)

    def _programmed(self, changes: int = 1) -> AbstractContextManager[None]:
        """Waits at its end until so many changes more are in the kernel."""
        counter = f"ipvs_node_agent_programming_latency_seconds_count{{{OURS}}}"
        return self.prometheus.growing(counter, changes)

    def record(self, start: float) -> Run:
        """What Prometheus answers to each panel's queries."""
        end = time.time()
        values = {
            "cluster": ".*",
            "instance": ".*",
            "__rate_interval": self.prometheus.rate_interval,
        }
        found = []
        for panel in panels():
            series = [
                Drawn(target.name(labels), points)
                for target in panel.targets
                for labels, points in self.prometheus.range(
                    filled(target.expr, **values), start, end
                )
            ]
            found.append((panel, tuple(series)))
        return Run(start, end, self.prometheus.period, tuple(self.moments), tuple(found))


def _one(name: str, number: int) -> dict[str, object]:
    return service(name, [f"10.231.42.{number}"], [f"10.19.20.{number}"])


@contextmanager
def _other_node(
    name: str, address: str, size: Size, wired: Topology, api: ApiServer, pki: Pki, directory: Path
) -> Iterator[None]:
    """Another node of the cluster with its agent, beside the one that things happen on."""
    own = directory / name
    own.mkdir()
    gateway = f"{address[:-1]}1"
    with namespaces(name) as (namespace,):
        link(wired.node, namespace, f"to-{name}", "eth0")
        wired.node.add_address(f"to-{name}", f"{gateway}/24")
        namespace.add_address("eth0", f"{address}/24")
        namespace.add_route("default", gateway)
        for family in FAMILIES:
            add_mark_masq(namespace, family, BACKEND)
        api.put(node(*map(str, NODE.pod_cidrs), name=name))
        expires = datetime.now(timezone.utc) + timedelta(days=200)
        pki.write_node_client(own / "client.pem", name, expires)
        pki.write_kubeconfig(own / "kubelet.conf", api.url, own / "client.pem")
        settings = {
            "kubeconfig": str(own / "kubelet.conf"),
            "iptables": {"backend": BACKEND, "lockWaitSeconds": size.lock_wait},
            "metricsBindAddress": ":10273",
            "driftCheckPeriod": size.drift_check,
        }
        with agent_process(namespace, own / "agent", settings) as agent:
            if name == list(OTHERS)[-1]:
                agent.program = altered({"observe.metrics.__version__": OLD_VERSION})
            agent.start()
            yield
            assert agent.stop(signal.SIGTERM) == 0


@contextmanager
def scene(size: Size) -> Iterator[Scene]:
    """A node whose agent is in sync, and whose Prometheus has seen it so."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wired = stack.enter_context(topology())
        targets = {
            NODE.name: ADDRESS,
            **{name: f"{address}:10273" for name, address in OTHERS.items()},
        }
        # Early, as it takes five seconds to its first scrape.
        watching = stack.enter_context(
            prometheus(wired.node, directory / "prometheus", targets, size.period)
        )
        for family in FAMILIES:
            add_mark_masq(wired.node, family, BACKEND)
        for number, _, _ in ASKED.values():
            wired.backend.add_address("lo", f"10.231.42.{number}/32")
            wired.node.add_address("kube-ipvs0", f"10.19.20.{number}/32")
            stack.enter_context(serving(wired.backend, f"10.231.42.{number}"))
        pki = Pki()
        soon = datetime.now(timezone.utc) + timedelta(days=30)
        pki.write_node_client(directory / "first.pem", NODE.name, soon)
        (directory / "client.pem").symlink_to("first.pem")
        wired.node.add_address("lo", f"{API_ADDRESS}/32")
        api = stack.enter_context(ApiServer(API_ADDRESS, netns=str(wired.node.path), pki=pki))
        for known in (raw_node(), DUAL, *(_one(name, ASKED[name][0]) for name in ASKED)):
            api.put(known)
        pki.write_kubeconfig(directory / "kubelet.conf", api.url, directory / "client.pem")
        settings = {
            "kubeconfig": str(directory / "kubelet.conf"),
            "iptables": {"backend": BACKEND, "lockWaitSeconds": size.lock_wait},
            "metricsBindAddress": ADDRESS,
            "driftCheckPeriod": size.drift_check,
        }
        agent = stack.enter_context(agent_process(wired.node, directory / "agent", settings))
        agent.start()
        for name, address in OTHERS.items():
            stack.enter_context(_other_node(name, address, size, wired, api, pki, directory))
        synced = "count(ipvs_node_agent_last_sync_timestamp_seconds > 0)"
        watching.reaches(synced, len(FAMILIES) * len(targets), 60)
        for name, (number, pod, host) in ASKED.items():
            for client, pause in ((wired.pod, pod), (wired.node, host)):
                if pause:
                    addresses = [f"10.19.20.{number}"]
                    addresses += EXTERNAL_IP.values() if name == "wiki" else []
                    stack.enter_context(streaming(client, *addresses, pause=pause))
        yield Scene(size, wired, api, agent, watching, directory, pki)
        assert agent.stop(signal.SIGTERM) == 0


def run(size: Size) -> Run:
    """Plays it, and gives what Prometheus has seen. Each panel has something to show."""
    with scene(size) as made:
        start = time.time()
        made.play()
        recorded = made.record(start)
    empty = [
        panel.title
        for panel, series in recorded.panels
        if not any(math.isfinite(value) for each in series for _, value in each.points)
    ]
    assert not empty, f"nothing to show in {empty}"
    return recorded
