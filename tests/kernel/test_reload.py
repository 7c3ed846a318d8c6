"""The configuration's choices on real packets, and SIGHUP while new connections flow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.tables import add_mark_masq, saved
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    Topology,
    ask,
)
from tests.support.traffic import more, streaming
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

VERSIONS = (4, 6)
# A pod of a second pod CIDR.
SECOND_CIDR = {4: "10.240.9.0/24", 6: "fd00:10:240:9::/64"}
SECOND = {4: "10.240.9.5", 6: "fd00:10:240:9::5"}
SECOND_GATEWAY = {4: "10.240.9.1/24", 6: "fd00:10:240:9::1/64"}

SERVICE = service("one", list(CLUSTER_IP.values()), EXTERNAL_IP.values())
# Enough company for a small servicesPerChain to make trees of the chains.
COMPANY = [
    service(f"company-{last}", [f"10.231.9.{last}"], [f"10.19.20.{last}"])
    for last in range(10, 200, 10)
]


@pytest.fixture
def second_pod(wired: Topology) -> None:
    """A second pod in the pod's namespace, with addresses in another pod CIDR."""
    for version, bits in ((4, 24), (6, 64)):
        wired.node.add_address("to-pod", SECOND_GATEWAY[version])
        wired.pod.add_address("eth0", f"{SECOND[version]}/{bits}")


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """The Node has one pod CIDR in each family; the agent is down."""
    with node_bed(wired.node, backend, tmp_path, node(*POD_CIDR.values())) as made:
        yield made


def expect(wired: Topology, *reached: str) -> None:
    """Waits until exactly those of `pod`, `second` and `host` reach the external IP."""

    def reach() -> set[tuple[str, int]]:
        clients = (
            ("pod", wired.pod, POD),
            ("second", wired.pod, SECOND),
            ("host", wired.node, {4: "", 6: ""}),
        )
        return {
            (name, version)
            for name, client, sources in clients
            for version in VERSIONS
            if ask(client, EXTERNAL_IP[version], source=sources[version])
            == NODE_TO_BACKEND[version]
        }

    wanted = {(name, version) for name in reached for version in VERSIONS}
    eventually(lambda: reach() == wanted, f"{reached} reaching the external IP")


def test_external_ips_and_the_traffic_policy_are_asked_for(wired: Topology, bed: Bed) -> None:
    def by_external_ips(policy: str) -> dict[str, Any]:
        clusters = list(CLUSTER_IP.values())
        made = service("one", clusters, [], externalIPs=list(EXTERNAL_IP.values()))
        made["spec"].update(type="ClusterIP", externalTrafficPolicy=policy)
        return made

    bed.api.put(by_external_ips("Local"))
    bed.agent.start()
    expect(wired)
    bed.reload(services={"externalIPs": True, "externalTrafficPolicy": "Local"})
    expect(wired, "pod", "host")
    bed.api.put(by_external_ips("Cluster"))
    expect(wired)
    bed.reload(services={"externalIPs": True})
    expect(wired, "pod", "host")
    bed.reload(services={})
    expect(wired)


@pytest.mark.usefixtures("second_pod")
def test_several_pod_cidrs_and_an_override_of_the_nodes(wired: Topology, bed: Bed) -> None:
    bed.api.put(SERVICE)
    bed.agent.start()
    expect(wired, "pod", "host")
    bed.api.put(node(*POD_CIDR.values(), *SECOND_CIDR.values()))
    expect(wired, "pod", "second", "host")
    bed.reload(podCIDRs=list(SECOND_CIDR.values()))
    expect(wired, "second", "host")
    bed.reload(podCIDRs=[])
    expect(wired, "host")
    bed.reload(podCIDRs=None)
    expect(wired, "pod", "second", "host")


def test_not_one_connection_fails_while_the_configuration_changes(
    wired: Topology, bed: Bed
) -> None:
    """The old state goes, the new one comes, and each new connection finds one of them."""
    other = "legacy" if bed.backend == "nft" else "nft"
    for family in FAMILIES:
        add_mark_masq(wired.node, family, other)
    for each in (SERVICE, *COMPANY):
        bed.api.put(each)
    bed.agent.start()

    def ours(backend: str, start: str) -> list[str]:
        """The names after `start` of chains that are or were ours, in both families."""
        lines = [line for family in FAMILIES for line in saved(wired.node, family, backend)]
        pattern = re.compile(
            rf"{start}((?:IPVS_PREROUTING|IPVS_OUTPUT|MY_PRE|MY_OUT)(?:-\S+)?)( -)?"
        )
        return [found[1] for found in map(pattern.fullmatch, lines) if found]

    def settled(backend: str, names: set[str], trees: bool = True) -> bool:
        unused = "nft" if backend == "legacy" else "legacy"
        return (
            set(ours(backend, "-A (?:PREROUTING|OUTPUT) -j ")) == names
            and (len(ours(backend, ":")) > 4) == trees
            and {name.partition("-")[0] for name in ours(backend, ":")} == names
            and not ours(unused, ":")
        )

    default, mine = {"IPVS_PREROUTING", "IPVS_OUTPUT"}, {"MY_PRE", "MY_OUT"}
    own_names = {"prerouting": "MY_PRE", "output": "MY_OUT"}
    eventually(lambda: settled(bed.backend, default))
    with (
        streaming(wired.pod, *EXTERNAL_IP.values()) as pod,
        streaming(wired.node, *EXTERNAL_IP.values()) as host,
    ):
        more(pod, host)
        bed.reload(chains=own_names)
        eventually(lambda: settled(bed.backend, mine), "the other names")
        more(pod, host)
        bed.reload(chains={**own_names, "servicesPerChain": 1000})
        eventually(lambda: settled(bed.backend, mine, trees=False), "flat chains")
        more(pod, host)
        bed.reload(iptables={"backend": other})
        eventually(lambda: settled(other, mine, trees=False), "the other backend")
        more(pod, host)
        bed.reload(iptables={"backend": bed.backend}, chains={})
        eventually(lambda: settled(bed.backend, default), "all at once, back again")
        more(pod, host)
        seen = [pod.seen(), host.seen()]
        assert seen == [{EXTERNAL_IP[v]: {NODE_TO_BACKEND[v]} for v in VERSIONS}] * 2
        bed.reload(masquerade="HostOnly")
        for version in VERSIONS:
            eventually(lambda: ask(wired.pod, EXTERNAL_IP[version]) == POD[version])  # noqa: B023
        more(pod, host)
        for version in VERSIONS:
            assert pod.seen()[EXTERNAL_IP[version]] <= {NODE_TO_BACKEND[version], POD[version]}
        bed.reload(masquerade="All")
        for version in VERSIONS:
            eventually(
                lambda: ask(wired.pod, EXTERNAL_IP[version]) == NODE_TO_BACKEND[version]  # noqa: B023
            )
        more(pod, host)
        for version in VERSIONS:
            assert pod.seen()[EXTERNAL_IP[version]] <= {NODE_TO_BACKEND[version], POD[version]}
        assert host.seen() == {EXTERNAL_IP[v]: {NODE_TO_BACKEND[v]} for v in VERSIONS}
    assert bed.agent.log.count("ERROR") == 0
