"""The configuration's choices on real packets, and SIGHUP while new connections flow."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.cluster import node, service
from tests.support.tables import add_mark_masq, saved
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    SECOND_POD_CIDR,
    Topology,
    add_pods,
    ask,
    reaching,
)
from tests.support.traffic import streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

# Enough company for a small servicesPerChain to make trees of the chains.
COMPANY = [(f"10.19.20.{n}", f"company-{n}", f"10.231.9.{n}") for n in range(10, 200, 10)]


def expect(wired: Topology, reached: str) -> None:
    """Waits until exactly these reach the external IP."""
    for version in EXTERNAL_IP:
        eventually(lambda v=version: reaching(wired, v) == reached, reached)  # type: ignore[misc]


def test_external_ips_and_the_traffic_policy_are_asked_for(wired: Topology, wired_bed: Bed) -> None:
    def by_external_ips(policy: str) -> dict[str, Any]:
        made = service("one", [*CLUSTER_IP.values()], [], externalIPs=[*EXTERNAL_IP.values()])
        made["spec"].update(type="ClusterIP", externalTrafficPolicy=policy)
        return made

    wired_bed.api.put(by_external_ips("Local"))
    wired_bed.agent.start()
    expect(wired, "")
    wired_bed.reload(services={"externalIPs": True, "externalTrafficPolicy": "Local"})
    expect(wired, "pod host")
    wired_bed.api.put(by_external_ips("Cluster"))
    expect(wired, "")
    wired_bed.reload(services={"externalIPs": True})
    expect(wired, "pod host")
    wired_bed.reload(services={})
    expect(wired, "")


def test_several_pod_cidrs_and_an_override_of_the_nodes(wired: Topology, wired_bed: Bed) -> None:
    add_pods(wired)
    wired_bed.put(WEB, WEB6)
    wired_bed.agent.start()
    expect(wired, "pod neighbour host")
    wired_bed.api.put(node(*POD_CIDR.values(), *SECOND_POD_CIDR.values()))
    expect(wired, "pod neighbour second host")
    wired_bed.reload(podCIDRs=[*SECOND_POD_CIDR.values()])
    expect(wired, "second host")
    wired_bed.reload(podCIDRs=[])
    expect(wired, "host")
    wired_bed.reload(podCIDRs=None)
    expect(wired, "pod neighbour second host")


@pytest.mark.once("debian13", "oldest")
def test_not_one_connection_fails_while_the_configuration_changes(
    wired: Topology, wired_bed: Bed
) -> None:
    """The old state goes, the new one comes, and each new connection finds one of them."""
    bed, other = wired_bed, wired_bed.other_backend
    for family in FAMILIES:
        add_mark_masq(wired.node, family, other)
    bed.put(WEB, WEB6, *COMPANY)
    bed.agent.start()

    def ours(backend: str, start: str) -> list[str]:
        """The names after `start` of chains that are or were ours, in both families."""
        lines = [line for family in FAMILIES for line in saved(wired.node, family, backend)]
        pattern = re.compile(
            rf"{start}((?:IPVS_PREROUTING|IPVS_OUTPUT|MY_PRE|MY_OUT)(?:-\S+)?)( -)?"
        )
        return [found[1] for found in map(pattern.fullmatch, lines) if found]

    def settled(backend: str, names: set[str], trees: bool) -> bool:
        unused = "nft" if backend == "legacy" else "legacy"
        return (
            set(ours(backend, "-A (?:PREROUTING|OUTPUT) -j ")) == names
            and (len(ours(backend, ":")) > 4) == trees
            and {name.partition("-")[0] for name in ours(backend, ":")} == names
            and not ours(unused, ":")
        )

    default, mine = {"IPVS_PREROUTING", "IPVS_OUTPUT"}, {"MY_PRE", "MY_OUT"}
    own_names = {"prerouting": "MY_PRE", "output": "MY_OUT"}
    flat = {**own_names, "servicesPerChain": 1000}
    back = {"iptables": {"backend": bed.backend}, "chains": {}}
    steps: list[tuple[dict[str, Any], str, set[str], bool]] = [
        ({}, bed.backend, default, True),
        ({"chains": own_names}, bed.backend, mine, True),
        ({"chains": flat}, bed.backend, mine, False),
        ({"iptables": {"backend": other}}, other, mine, False),
        # All at once, back again.
        (back, bed.backend, default, True),
    ]
    with streams(wired) as flowing:
        for change, *wanted in steps:
            if change:
                bed.reload(**change)
            eventually(lambda wanted=wanted: settled(*wanted), f"{change}")  # type: ignore[misc]
            flowing.expect(NODE_TO_BACKEND)
        for masquerade, seen in (("HostOnly", POD), ("All", NODE_TO_BACKEND)):
            bed.reload(masquerade=masquerade)
            for version, external in EXTERNAL_IP.items():
                eventually(lambda e=external, s=seen[version]: ask(wired.pod, e) == s)  # type: ignore[misc]
            flowing.pod.expect(NODE_TO_BACKEND, POD)
            flowing.host.expect(NODE_TO_BACKEND)
    assert bed.agent.log.count("ERROR") == 0
