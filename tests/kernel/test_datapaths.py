"""Pods as network plugins connect them: their packets reach an external IP, and nobody else's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Callable

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, Family
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.cluster import node as node_object
from tests.support.netns import Namespace, link, namespaces
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    OUTSIDE,
    Topology,
    ask,
    other_node_pod,
    reaching,
)

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

# Outside the Node's pod CIDRs, as Calico's and others' IPAM give them.
POD = {4: "10.233.90.5", 6: "fd00:233:90::5"}
GATEWAY = {4: "10.233.90.1", 6: "fd00:233:90::1"}
ELSEWHERE = {4: "10.233.91.7/24", 6: "fd00:233:91::7/64"}
SUBNET_BITS, HOST_BITS = {4: 24, 6: 64}, {4: 32, 6: 128}
LINK_LOCAL = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
DEFAULT = {4: "default", 6: "::/0"}
# What Calico gives this node's pods addresses from, and one that no pod has.
BLOCKS = {4: "10.233.90.0/26", 6: "fd00:233:90::/122"}
IN_BLOCK = {4: "10.233.90.40", 6: "fd00:233:90::30"}
REFUSED = "ConnectionRefusedError"
CALI, LXC = "cali12ab34cd56e", "lxc12ab34cd56e"


def routed(device: str) -> Callable[[Namespace, Namespace], None]:
    """A device for each pod with a host route to it, as Calico and Cilium have it, and ptp."""

    def connect(node: Namespace, pod: Namespace) -> None:
        link(node, pod, device, "eth0")
        # The kernel answers for what it has a route to by another device.
        node.run("ip", "route", "replace", "default", "via", OUTSIDE[4])
        node.set(f"ipv4/conf/{device}/proxy_arp", "1")
        node.set(f"ipv4/neigh/{device}/proxy_delay", "0")
        node.run("ip", "-6", "address", "add", f"{LINK_LOCAL[6]}/64", "dev", device)
        for version in (4, 6):
            ip = ("ip", f"-{version}", "route", "add")
            pod.add_address("eth0", f"{POD[version]}/{HOST_BITS[version]}")
            if version == 4:
                pod.run(*ip, LINK_LOCAL[4], "dev", "eth0", "scope", "link")
            pod.run(*ip, DEFAULT[version], "via", LINK_LOCAL[version], "dev", "eth0")
            node.run(*ip, POD[version], "dev", device)

    return connect


def bridged(bridge: str) -> Callable[[Namespace, Namespace], None]:
    """A bridge that pods are ports of."""

    def connect(node: Namespace, pod: Namespace) -> None:
        node.run("ip", "link", "add", bridge, "type", "bridge")
        node.run("ip", "link", "set", bridge, "up")
        link(node, pod, "veth12ab", "eth0")
        node.run("ip", "link", "set", "veth12ab", "master", bridge)
        _subnet(node, pod, bridge)

    return connect


def gateway(device: str) -> Callable[[Namespace, Namespace], None]:
    """The node's own device in the network of the pods, as kube-ovn has it."""

    def connect(node: Namespace, pod: Namespace) -> None:
        link(node, pod, device, "eth0")
        _subnet(node, pod, device)

    return connect


def _subnet(node: Namespace, pod: Namespace, device: str) -> None:
    for version, bits in SUBNET_BITS.items():
        node.add_address(device, f"{GATEWAY[version]}/{bits}")
        pod.add_address("eth0", f"{POD[version]}/{bits}")
        pod.add_route(DEFAULT[version], GATEWAY[version])


# How it is made, what is set, and what pods are matched by.
DATAPATHS = {
    "Calico": (routed(CALI), None, "cali+"),
    "Cilium": (routed(LXC), ["lxc+"], "lxc+"),
    "kube-router": (bridged("kube-bridge"), ["kube-bridge"], "kube-bridge"),
    "Weave": (bridged("weave"), ["weave"], "weave"),
    "kube-ovn": (gateway("ovn0"), ["ovn0"], "ovn0"),
}


@pytest.fixture
def others() -> Iterator[tuple[Namespace, Namespace]]:
    """A pod of this node's, and one of another node's."""
    with namespaces("local", "remote") as (local, remote):
        yield local, remote


def reaches(client: Namespace, version: int) -> bool:
    return ask(client, EXTERNAL_IP[version]) == NODE_TO_BACKEND[version]


def taken_for_pods(bed: Bed, family: Family) -> int:
    """How many packets the rules for pods have matched."""
    saved = bed.namespace.run(f"{family.command}-{bed.backend}-save", "-c", "-t", "nat")
    counted = re.findall(r"^\[(\d+):\d+\] -A IPVS_PREROUTING ", saved, re.MULTILINE)
    return sum(map(int, counted))


@pytest.mark.parametrize("plugin", DATAPATHS)
def test_pods_reach_an_external_ip_and_nobody_from_elsewhere_does(
    around: Topology, wired_bed: Bed, others: tuple[Namespace, Namespace], plugin: str
) -> None:
    connect, interfaces, known_by = DATAPATHS[plugin]
    (pod, remote), node = others, around.node
    connect(node, pod)
    # A tunnel from another node is one more device, whose packets have pods' addresses.
    other_node_pod(node, remote, "vxlan.calico", ELSEWHERE)
    if interfaces is not None:
        wired_bed.configure(podInterfaces=interfaces)
    wired_bed.put(WEB, WEB6)
    wired_bed.agent.start()
    (said,) = (line for line in wired_bed.agent.log.splitlines() if "pods are matched by" in line)
    assert known_by in said
    for family in FAMILIES:
        assert f" -i {known_by} " in "\n".join(wired_bed.ours(family))
        assert reaches(pod, family.version)
        # By the node itself, so the tunnel is one.
        assert ask(remote, EXTERNAL_IP[family.version]) == REFUSED
        # The topology's own pod is none by interface, so it is like anybody from outside.
        assert reaching(around, family.version) == "host"


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_a_prefix_means_all_that_begin_with_it(
    around: Topology, wired_bed: Bed, others: tuple[Namespace, Namespace]
) -> None:
    routed("lxcbr0")(around.node, others[0])
    wired_bed.configure(podInterfaces=["lxc+"])
    wired_bed.put(WEB, WEB6)
    wired_bed.agent.start()
    assert reaches(others[0], 4)


def test_calicos_pods_inside_the_pod_cidr_by_chance_and_its_blocks(
    around: Topology, wired_bed: Bed, others: tuple[Namespace, Namespace]
) -> None:
    """Pods stay known by interface; an external IP among pods' addresses is refused."""
    (pod, remote), node, bed = others, around.node, wired_bed
    routed(CALI)(node, pod)
    other_node_pod(node, remote, "vxlan.calico", ELSEWHERE)
    for block in BLOCKS.values():
        node.run("ip", "route", "add", "blackhole", block, "proto", "80")
    # The other node's pods are inside as well: by pod CIDR they would be taken for this one's.
    bed.api.put(node_object("10.233.90.0/23", "fd00:233:90::/47"))
    bed.put(WEB, WEB6)
    bed.agent.start()
    for family in FAMILIES:
        version = family.version
        own = POD[version]
        remote.add_address("eth0", f"{own}/{family.bits}")
        # A local pod's packet that comes back in by the tunnel; no answer finds its way to it.
        ask(remote, EXTERNAL_IP[version], timeout=0.2, source=own)
        assert ask(remote, EXTERNAL_IP[version], source=ELSEWHERE[version].split("/")[0]) == REFUSED
        assert taken_for_pods(bed, family) == 0
        assert reaches(pod, version)
        assert taken_for_pods(bed, family) > 0
    # Without the pod CIDR the block alone has to tell.
    bed.api.put(node_object("10.240.2.128/25", "fd00:10:240:2::/64"))
    bed.put(*((address, "greedy", CLUSTER_IP[version]) for version, address in IN_BLOCK.items()))
    for version, address in IN_BLOCK.items():
        bed.agent.said(f"{address} is refused: it is inside {BLOCKS[version]}")
        assert not bed.has(address)
        assert reaches(pod, version)
