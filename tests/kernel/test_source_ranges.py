"""`loadBalancerSourceRanges` on real packets: who is let in, and that a mistake lets nobody in."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.cluster import node
from tests.support.topology import POD_CIDR, SECOND_POD_CIDR, Topology, add_pods, reaching
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13", "oldest")]

# The part of the pod CIDR with the first pod and without its neighbour.
PART = ("10.240.2.128/26", "fd00:10:240:2::/80")


@pytest.fixture
def bed(wired: Topology, wired_bed: Bed) -> Bed:
    """The pod's namespace has three pods, in the node's two pod CIDRs of each family."""
    add_pods(wired)
    wired_bed.api.put(node(*POD_CIDR.values(), *SECOND_POD_CIDR.values()))
    return wired_bed


PODS = "pod neighbour second"
EVERYBODY = f"{PODS} host"
# The ranges, and who is let in in IPv4 and in IPv6.
LET_IN: list[tuple[tuple[str, ...], str, str]] = [
    (PART, "pod", "pod"),
    ((*PART, *SECOND_POD_CIDR.values()), "pod second", "pod second"),
    (("192.168.7.0/24", "fd00:192:168:7::/64"), "host", "host"),
    (("10.240.0.0/16", "fd00:192:168:7::11/128"), PODS, "host"),
    # Of one family alone: nobody is kept out of the other.
    (PART[:1], "pod", EVERYBODY),
    (PART[1:], EVERYBODY, "pod"),
    # Somebody else's addresses, of which the node has none.
    (("203.0.113.0/24", "2001:db8::/32"), "", ""),
    (("0.0.0.0/0", "::/0"), EVERYBODY, EVERYBODY),
]
# A range that cannot be read never widens access.
UNREADABLE: list[tuple[tuple[str, ...], str, str]] = [
    (("10.240.2.0/24x", *PART), "pod", "pod"),
    (("10.240.2.128/33", "anybody", ""), "", ""),
    (("10.240.2.128/26", "fd00::/129"), "pod", ""),
]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(LET_IN, id="readable"),
        pytest.param(UNREADABLE, id="unreadable", marks=pytest.mark.once("debian13")),
    ],
)
def test_pods_are_let_in_by_their_own_address_and_the_host_by_the_nodes(
    wired: Topology, bed: Bed, steps: list[tuple[tuple[str, ...], str, str]]
) -> None:
    bed.put(WEB, WEB6)
    bed.agent.start()
    assert [reaching(wired, version) for version in (4, 6)] == [EVERYBODY, EVERYBODY]
    for ranges, *wanted in steps:
        bed.put(WEB, WEB6, loadBalancerSourceRanges=list(ranges))
        for version, clients in zip((4, 6), wanted):
            eventually(
                lambda v=version, wanted=clients: reaching(wired, v) == wanted,  # type: ignore[misc]
                f"IPv{version}: {clients} let in by {ranges}, not {reaching(wired, version)}",
            )
    assert bed.agent.log.count("10.240.2.0/24x") == (1 if steps is UNREADABLE else 0)
    assert bed.agent.running
