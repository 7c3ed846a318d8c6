"""A node in a network namespace: real iptables, the test API server, the real agent's process."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family
from tests.environments import __main__ as environments
from tests.support.agentprocess import AgentProcess, agent_process
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node, service
from tests.support.netns import Namespace
from tests.support.pki import Pki, plain_kubeconfig
from tests.support.tables import add_foreign_rules, add_mark_masq, ours, restore, saved
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, Topology, topology
from tests.support.waiting import eventually

# The rules of a Service in a family: its external IP, its name in `default`, its ClusterIP.
Entry = tuple[str, str, str]

WEB: Entry = (EXTERNAL_IP[4], "web", CLUSTER_IP[4])
WEB6: Entry = (EXTERNAL_IP[6], "web", CLUSTER_IP[6])
OTHER: Entry = ("10.19.22.57", "other", "10.231.2.62")
OTHER6: Entry = ("fd00:19::257", "other", "fd00:231::62")

# For some tests of a module that otherwise runs in fewer environments.
EVERYWHERE = pytest.mark.once(*environments.EVERYWHERE)


@dataclass
class Bed:
    """One node for one test."""

    namespace: Namespace
    backend: str
    api: ApiServer
    agent: AgentProcess
    settings: dict[str, Any]

    @property
    def other_backend(self) -> str:
        """The one that is not the node's."""
        return "legacy" if self.backend == "nft" else "nft"

    def put(self, *entries: Entry, **fields: Any) -> None:
        """Makes or changes the Services that are to get these rules; `fields` go into the spec."""
        for name in dict.fromkeys(name for _, name, _ in entries):
            halves = [entry for entry in entries if entry[1] == name]
            # A ClusterIP counts once, however many external IPs lead to it.
            clusters = [*dict.fromkeys(cluster for _, _, cluster in halves)]
            external = [external for external, _, _ in halves]
            self.api.put(service(name, clusters, external, **fields))

    def delete(self, name: str) -> None:
        """Deletes a Service."""
        self.api.delete("Service", "default", name)

    def ours(self, family: Family) -> list[str]:
        """The agent's lines in the family's nat table, by chain."""
        return by_chain(ours(saved(self.namespace, family, self.backend)))

    def has(self, address: str) -> bool:
        """Whether a rule of the agent's is about this external IP."""
        family = IPV6 if ":" in address else IPV4
        return any(f" -d {address}/{family.bits} " in line for line in self.ours(family))

    def expect(self, *entries: Entry, **options: Any) -> None:
        """Waits until exactly these rules are there, in both families."""
        cidrs = options.pop("pod_cidrs", POD_CIDRS)
        for family in FAMILIES:
            here = [entry for entry in entries if (":" in entry[0]) == (family is IPV6)]
            here.sort(key=lambda entry: int(ip_address(entry[0])))
            pods = [cidr for cidr in cidrs if (":" in cidr) == (family is IPV6)]
            self.wait_for_lines(family, expected_rules(here, pods, **options))

    def settled(self) -> None:
        """Waits until the agent says that it is in sync; all that it wrote is in its log then.

        The kernel has what was written a moment before.
        """
        eventually(lambda: self.agent.call("status").returncode == 0, lambda: self.agent.log)

    def wait_for_lines(self, family: Family, wanted: list[str]) -> None:
        """Waits until the agent's lines are `wanted`; shows both where they do not get so."""
        try:
            eventually(lambda: self.ours(family) == wanted, timeout=30)
        except AssertionError:
            assert self.ours(family) == wanted, self.agent.log

    def configure(self, **settings: Any) -> None:
        """Has these settings on top of the present ones in the agent's configuration."""
        self.settings = {**self.settings, **settings}
        self.agent.configure(self.settings)

    def reload(self, **settings: Any) -> None:
        """Has the running agent go on with these settings on top of the present ones."""
        self.configure(**settings)
        before = self.agent.log.count("read the configuration again")
        self.agent.send(signal.SIGHUP)
        eventually(lambda: self.agent.log.count("read the configuration again") > before)

    def restore(self, family: Family, text: str) -> None:
        """Changes the table as somebody else would."""
        restore(self.namespace, family, self.backend, text)

    def iptables(self, *arguments: str, family: Family = IPV4) -> None:
        """Runs somebody else's command on the nat table."""
        command = f"{family.command}-{self.backend}"
        self.namespace.run(command, "-w", "10", "-t", "nat", *arguments)

    def stand_in(self, directory: Path, command: str, script: str) -> None:
        """Has the agent find this script, of the shell, before the system's command.

        In the script `$real` is the system's, `$here` the directory.
        """
        there = directory / "bin"
        there.mkdir(exist_ok=True)
        real = shutil.which(command)
        (there / command).write_text(f"#!/bin/sh\nreal={real}\nhere={directory}\n{script}\n")
        (there / command).chmod(0o755)
        self.agent.variables["PATH"] = f"{there}:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both of iptables' backends, one after the other."""
    return str(request.param)


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """IPv4 and IPv6."""
    chosen: Family = request.param
    return chosen


@contextmanager
def node_bed(
    namespace: Namespace,
    backend: str,
    directory: Path,
    pki: Pki | None = None,
    server: ApiServer | None = None,
) -> Iterator[Bed]:
    """A node whose API server knows a dual-stack Node and no Service; the agent is down.

    With `pki` it is set up as kubeadm does that, and the configuration has nothing else.
    """
    with server or ApiServer(netns=str(namespace.path), pki=pki) as api:
        api.put(node(*POD_CIDRS))
        kubeconfig = directory / "kubelet.conf"
        settings: dict[str, Any] = {"kubeconfig": str(kubeconfig)}
        if pki is not None:
            pem = directory / "kubelet-client-current.pem"
            pki.write_node_client(pem, "worker-1")
            pki.write_kubeconfig(kubeconfig, api.url, pem)
        else:
            plain_kubeconfig(kubeconfig, api.url, "worker-1")
            settings["nodeName"] = "worker-1"
            settings["iptables"] = {"backend": backend}
            settings["metricsBindAddress"] = ""
        with agent_process(namespace, directory / "agent", settings) as agent:
            yield Bed(namespace, backend, api, agent, settings)


@pytest.fixture
def bed(namespace: Namespace, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """`node_bed` with the chain that marks."""
    for family in FAMILIES:
        add_mark_masq(namespace, family, backend)
    with node_bed(namespace, backend, tmp_path) as made:
        yield made


@pytest.fixture
def running(bed: Bed) -> Bed:
    """A node whose agent has programmed a Service, and another one that is not touched."""
    bed.put(WEB, OTHER)
    bed.agent.start()
    bed.expect(WEB, OTHER)
    return bed


@pytest.fixture
def around() -> Iterator[Topology]:
    """The node with its neighbours, and no rules at all."""
    with topology() as made:
        yield made


@pytest.fixture
def wired(around: Topology, backend: str) -> Topology:
    """The node with its neighbours; kube-proxy's and others' rules are in its tables."""
    for family in FAMILIES:
        add_foreign_rules(around.node, family, backend)
    return around


@pytest.fixture
def wired_bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """`node_bed` with neighbours."""
    with node_bed(wired.node, backend, tmp_path) as made:
        yield made
