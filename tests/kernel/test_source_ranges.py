"""`loadBalancerSourceRanges` on real packets: who is let in, and that a mistake lets nobody in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.netns import Namespace
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    Topology,
    ask,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13", "oldest")]

# Another pod of the same pod CIDR, and one of a second pod CIDR.
NEIGHBOUR = {4: "10.240.2.200", 6: "fd00:10:240:2:8000::200"}
SECOND_CIDR = {4: "10.240.9.0/24", 6: "fd00:10:240:9::/64"}
SECOND = {4: "10.240.9.5", 6: "fd00:10:240:9::5"}
SECOND_GATEWAY = {4: "10.240.9.1", 6: "fd00:10:240:9::1"}

# The part of the pod CIDR with the first pod and without its neighbour.
PART = ["10.240.2.128/26", "fd00:10:240:2::/80"]
HOSTS = ["192.168.7.0/24", "fd00:192:168:7::/64"]
EVERYBODY = {"pod", "neighbour", "second", "host"}


@pytest.fixture
def wired(wired: Topology) -> Topology:
    """The pod's namespace has three pods, in two pod CIDRs."""
    for version, bits in ((4, (25, 24)), (6, (64, 64))):
        wired.node.add_address("to-pod", f"{SECOND_GATEWAY[version]}/{bits[1]}")
        wired.pod.add_address("eth0", f"{NEIGHBOUR[version]}/{bits[0]}")
        wired.pod.add_address("eth0", f"{SECOND[version]}/{bits[1]}")
    return wired


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """The node has two pod CIDRs in each family; the agent is down."""
    cidrs = [*POD_CIDR.values(), *SECOND_CIDR.values()]
    with node_bed(wired.node, backend, tmp_path, node(*cidrs)) as made:
        yield made


def put(bed: Bed, ranges: list[str] | None) -> None:
    fields = {} if ranges is None else {"loadBalancerSourceRanges": ranges}
    bed.api.put(service("one", list(CLUSTER_IP.values()), EXTERNAL_IP.values(), **fields))


def let_in(wired: Topology, version: int) -> set[str]:
    """Those clients that reach the Service."""
    clients: dict[str, tuple[Namespace, str]] = {
        "pod": (wired.pod, POD[version]),
        "neighbour": (wired.pod, NEIGHBOUR[version]),
        "second": (wired.pod, SECOND[version]),
        "host": (wired.node, ""),
        "outsider": (wired.outside, ""),
    }
    return {
        name
        for name, (client, source) in clients.items()
        if ask(client, EXTERNAL_IP[version], source=source) == NODE_TO_BACKEND[version]
    }


def expect(wired: Topology, ipv4: set[str], ipv6: set[str]) -> None:
    for version, wanted in ((4, ipv4), (6, ipv6)):
        eventually(
            lambda: let_in(wired, version) == wanted,  # noqa: B023
            f"IPv{version}: {sorted(wanted)} let in, and not {sorted(let_in(wired, version))}",
        )


def test_pods_are_let_in_by_their_own_address_and_the_host_by_the_nodes(
    wired: Topology, bed: Bed
) -> None:
    put(bed, None)
    bed.agent.start()
    expect(wired, EVERYBODY, EVERYBODY)
    put(bed, PART)
    expect(wired, {"pod"}, {"pod"})
    put(bed, [*PART, *SECOND_CIDR.values()])
    expect(wired, {"pod", "second"}, {"pod", "second"})
    put(bed, HOSTS)
    expect(wired, {"host"}, {"host"})
    put(bed, ["10.240.0.0/16", "fd00:192:168:7::11/128"])
    expect(wired, EVERYBODY - {"host"}, {"host"})
    # Somebody else's addresses, of which the node has none.
    put(bed, ["203.0.113.0/24", "2001:db8::/32"])
    expect(wired, set(), set())
    put(bed, ["0.0.0.0/0", "::/0"])
    expect(wired, EVERYBODY, EVERYBODY)


@pytest.mark.once("debian13")
def test_a_range_that_cannot_be_read_never_widens_access(wired: Topology, bed: Bed) -> None:
    put(bed, ["10.240.2.0/24x", *PART])
    bed.agent.start()
    expect(wired, {"pod"}, {"pod"})
    put(bed, ["10.240.2.128/33", "anybody", ""])
    expect(wired, set(), set())
    put(bed, ["10.240.2.128/26", "fd00::/129"])
    expect(wired, {"pod"}, set())
    assert bed.agent.log.count("10.240.2.0/24x") == 1
    assert bed.agent.running
