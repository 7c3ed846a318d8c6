"""Pods as network plugins connect them: their packets reach an external IP, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.netns import Namespace, link, namespaces
from tests.support.topology import EXTERNAL_IP, NODE_TO_BACKEND, OUTSIDE, Topology, ask, reaching

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

# Outside the Node's pod CIDRs, as Calico's and others' IPAM give them.
POD = {4: "10.233.90.5", 6: "fd00:233:90::5"}
GATEWAY = {4: "10.233.90.1", 6: "fd00:233:90::1"}
ELSEWHERE = {4: "10.233.91.7", 6: "fd00:233:91::7"}
SUBNET_BITS, HOST_BITS = {4: 24, 6: 64}, {4: 32, 6: 128}
LINK_LOCAL = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
DEFAULT = {4: "default", 6: "::/0"}
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


# How it is made, what is set, and what pods are known by.
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


@pytest.mark.parametrize("plugin", DATAPATHS)
def test_pods_reach_an_external_ip_and_nobody_from_elsewhere_does(
    around: Topology, wired_bed: Bed, others: tuple[Namespace, Namespace], plugin: str
) -> None:
    connect, interfaces, known_by = DATAPATHS[plugin]
    (pod, remote), node = others, around.node
    connect(node, pod)
    # A tunnel from another node is one more device, whose packets have pods' addresses.
    link(node, remote, "vxlan.calico", "eth0")
    for version, address in ELSEWHERE.items():
        gate = address[:-1] + "1"
        node.add_address("vxlan.calico", f"{gate}/{SUBNET_BITS[version]}")
        remote.add_address("eth0", f"{address}/{SUBNET_BITS[version]}")
        remote.add_route(DEFAULT[version], gate)
    if interfaces is not None:
        wired_bed.configure(podInterfaces=interfaces)
    wired_bed.put(WEB, WEB6)
    wired_bed.agent.start()
    (said,) = (line for line in wired_bed.agent.log.splitlines() if "pods are known by" in line)
    assert known_by in said
    for family in FAMILIES:
        assert f" -i {known_by} " in "\n".join(wired_bed.ours(family))
        assert [reaches(pod, family.version), reaches(remote, family.version)] == [True, False]
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
