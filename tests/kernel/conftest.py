"""A node in a network namespace: real iptables, the test API server, the real agent's process."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family
from tests.environments.__main__ import RECIPES
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node
from tests.support.netns import Namespace
from tests.support.pki import plain_kubeconfig
from tests.support.places import STANDIN
from tests.support.tables import add_foreign_rules, add_mark_masq, ours, restore, saved
from tests.support.topology import Topology, topology
from tests.support.waiting import eventually

Entry = tuple[str, str, str]

# For some tests of a module that otherwise runs in fewer environments.
EVERYWHERE = pytest.mark.once(*RECIPES)


@dataclass
class Bed:
    """One node for one test."""

    namespace: Namespace
    backend: str
    api: ApiServer
    agent: AgentProcess
    settings: dict[str, Any]

    def ours(self, family: Family) -> list[str]:
        """The agent's lines in the family's nat table, by chain."""
        return by_chain(ours(saved(self.namespace, family, self.backend)))

    def expect(
        self,
        ipv4: Sequence[Entry] = (),
        ipv6: Sequence[Entry] = (),
        pod_cidrs: Sequence[str] = POD_CIDRS,
        **options: str,
    ) -> None:
        """Waits until exactly these rules are there, in both families."""
        for family, entries in ((IPV4, ipv4), (IPV6, ipv6)):
            cidrs = [cidr for cidr in pod_cidrs if (":" in cidr) == (family is IPV6)]
            wanted = expected_rules(entries, cidrs, **options)
            self.wait_for_lines(family, wanted)

    def wait_for_lines(self, family: Family, wanted: list[str]) -> None:
        """Waits until the agent's lines are `wanted`; shows both where they do not get so."""
        try:
            eventually(lambda: self.ours(family) == wanted, timeout=8)
        except AssertionError:
            assert self.ours(family) == wanted, self.agent.log

    def reload(self, **settings: Any) -> None:
        """Has the running agent go on with these settings on top of the present ones."""
        self.settings = {**self.settings, **settings}
        self.agent.configure(self.settings)
        before = self.agent.log.count("read the configuration again")
        self.agent.send(signal.SIGHUP)
        eventually(lambda: self.agent.log.count("read the configuration again") > before)

    def restore(self, family: Family, text: str) -> None:
        """Changes the table as somebody else would."""
        restore(self.namespace, family, self.backend, text)


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both of iptables' backends, one after the other."""
    return str(request.param)


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """IPv4 and IPv6."""
    chosen: Family = request.param
    return chosen


@pytest.fixture
def wired(backend: str) -> Iterator[Topology]:
    """The node with its neighbours; kube-proxy's and others' rules are in its tables."""
    with topology() as made:
        for family in FAMILIES:
            add_foreign_rules(made.node, family, backend)
        yield made


@contextmanager
def node_bed(
    namespace: Namespace, backend: str, directory: Path, *objects: dict[str, Any]
) -> Iterator[Bed]:
    """A node whose API server knows `objects`; the agent is down."""
    with ApiServer(netns=str(namespace.path)) as api:
        for known in objects:
            api.put(known)
        kubeconfig = directory / "kubelet.conf"
        plain_kubeconfig(kubeconfig, api.url, "worker-1")
        settings: dict[str, Any] = {
            "kubeconfig": str(kubeconfig),
            "nodeName": "worker-1",
            "iptables": {"backend": backend},
            "metricsBindAddress": "",
        }
        with agent_process(namespace, directory / "agent", settings) as agent:
            agent.path.append(STANDIN)
            yield Bed(namespace, backend, api, agent, settings)


@pytest.fixture
def bed(namespace: Namespace, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node whose API server knows a dual-stack Node and no Service; the agent is down."""
    for family in FAMILIES:
        add_mark_masq(namespace, family, backend)
    with node_bed(namespace, backend, tmp_path, node(*POD_CIDRS)) as made:
        yield made
