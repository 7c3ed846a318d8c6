"""Which interfaces lead to pods, from what the network plugins wrote and made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.host.links import Links, Route
from ipvs_node_agent.host.pods import Plugin, blocks, candidates, networks, plugins, routed
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import PodNetwork

CALICO, FLANNEL = Plugin("calico"), Plugin("flannel", "cni0")


def links(*routes: str, **addresses: str) -> Links:
    """Interfaces with an address each, and routes like "10.0.0.1/32 cali1"."""
    made = []
    for route in routes:
        destination, interface = route.split()
        is_blackhole = interface == "blackhole"
        name = "" if is_blackhole else interface
        made.append(Route(parse_network(destination), name, is_blackhole))
    return Links(
        names=frozenset({"eth0", *addresses}),
        addresses=frozenset((name, parse_address(ip)) for name, ip in addresses.items() if ip),
        routes=frozenset(made),
    )


def bridge(name: str, *subnets: str) -> Plugin:
    return Plugin("bridge", name, tuple(map(parse_network, subnets)))


def of(interface: str, *subnets: str) -> PodNetwork:
    return PodNetwork(interface, tuple(map(parse_network, subnets)))


CALI = PodNetwork("cali+")


@pytest.mark.parametrize(
    ("there", "configured", "found"),
    [
        pytest.param(links(), [], [], id="nothing"),
        pytest.param(links(), [CALICO], [CALI], id="Calico without pods"),
        pytest.param(links("10.233.90.5/32 cali12"), [], [CALI], id="a pod of Calico's"),
        pytest.param(links("fd00:233::5/128 cali12"), [], [CALI], id="a pod of its IPv6"),
        pytest.param(links("10.233.90.0/26 cali12"), [], [], id="no host route"),
        pytest.param(links("10.233.90.5/32 lxc12"), [], [], id="Cilium"),
        pytest.param(
            links(cni0="10.240.2.129"), [FLANNEL], [of("cni0", "10.240.2.129/32")], id="flannel"
        ),
        pytest.param(
            links(br1="10.88.0.1"),
            [bridge("br1", "10.88.0.0/16", "fd00:88::/64")],
            [of("br1", "10.88.0.0/16", "fd00:88::/64")],
            id="a bridge",
        ),
        pytest.param(links(br1=""), [bridge("br1")], [], id="one without addresses yet"),
        pytest.param(links(), [bridge("br1", "10.88.0.0/16")], [], id="a bridge not yet made"),
        pytest.param(
            links("10.233.90.5/32 cali12", br1="10.88.0.1"),
            [bridge("br1")],
            [CALI, of("br1", "10.88.0.1/32")],
            id="two of them",
        ),
    ],
)
def test_pods_are_told_of_by_plugins_and_by_what_they_made(
    there: Links, configured: list[Plugin], found: list[PodNetwork]
) -> None:
    assert networks(there, configured) == set(found)


def test_single_addresses_have_routes_to_pods() -> None:
    there = links(
        "10.0.0.1/32 cali1", "10.0.0.2/32 br1", "10.0.1.0/24 cali1", "10.0.2.0/26 blackhole"
    )
    assert routed(there) == {
        ("cali1", parse_address("10.0.0.1")),
        ("br1", parse_address("10.0.0.2")),
    }


def test_blocks_are_blackholes_as_small_as_calicos() -> None:
    small = ["10.0.0.0/26", "10.0.16.0/20", "fd00:10::/116"]
    large = ["10.32.0.0/19", "10.0.0.0/8", "fd00:10::/64"]
    there = links("10.0.3.0/26 tunl0", *(f"{each} blackhole" for each in (*small, *large)))
    assert blocks(there) == set(map(parse_network, small))


# What network plugins write.

CALICO_CONF = {"plugins": [{"type": "calico"}, {"type": "portmap"}]}
HOST_LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "x"}]]}
BRIDGE_CONF = {"type": "bridge", "bridge": "br1", "ipam": HOST_LOCAL}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        ({"10-calico.conflist": CALICO_CONF}, [CALICO, Plugin("portmap")]),
        ({"10-calico.conflist": CALICO_CONF, "20-bridge.conf": BRIDGE_CONF}, None),
        ({"10-a.conflist.bak": BRIDGE_CONF, "20-calico.conflist": CALICO_CONF}, None),
        ({"10-broken.conf": "{", "11-list.conf": [], "20-calico.conflist": CALICO_CONF}, None),
        ({"10-odd.conf": {"type": 7, "plugins": 7, "ipam": 7}, "20.conflist": CALICO_CONF}, None),
        ({"10-deep.conf": "[" * 100_000, "20-calico.conflist": CALICO_CONF}, None),
        ({"10.conf": BRIDGE_CONF}, [bridge("br1", "10.1.0.0/24")]),
        (
            {"10.conf": {"type": "bridge", "ipam": {"subnet": "10.1.0.0/24"}}},
            [bridge("cni0", "10.1.0.0/24")],
        ),
        ({"10.conf": {"type": "flannel", "delegate": {"hairpinMode": True}}}, [FLANNEL]),
        ({"10.conf": {"type": "flannel", "delegate": {"bridge": "b"}}}, [Plugin("flannel", "b")]),
        (
            {"00-multus.conf": {"type": "multus", "delegates": [CALICO_CONF]}},
            [Plugin("multus"), CALICO, Plugin("portmap")],
        ),
        (
            {"00-multus.conf": {"type": "multus-shim"}, "10.conf": {"type": "calico"}},
            [Plugin("multus-shim"), CALICO],
        ),
        # What podman keeps there is none of Kubernetes'.
        (
            {
                "00-multus.conf": {"type": "multus-shim"},
                "05.conf": {"type": "cilium-cni"},
                "87-podman.conflist": {"plugins": [BRIDGE_CONF]},
            },
            [Plugin("multus-shim"), Plugin("cilium-cni")],
        ),
        (
            {
                "00-multus.conf": {"type": "multus", "delegates": [CALICO_CONF]},
                "87-podman.conflist": {"plugins": [BRIDGE_CONF]},
            },
            [Plugin("multus"), CALICO, Plugin("portmap")],
        ),
    ],
)
def test_plugins_are_those_of_the_file_that_the_container_runtime_takes(
    files: Mapping[str, Any], found: list[Plugin] | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert plugins(tmp_path) == ([CALICO, Plugin("portmap")] if found is None else found)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("none")])
def test_what_is_no_file_is_passed_over_and_leaves_nothing_open(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "00-odd.conflist")
    (tmp_path / "10.conf").write_text('{"type": "calico"}')
    before = os.listdir("/proc/self/fd")
    assert [plugins(tmp_path) for _ in range(20)] == [[CALICO]] * 20
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_without_a_folder_there_are_no_plugins(tmp_path: Path) -> None:
    assert plugins(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("there", "configured", "beside", "found"),
    [
        pytest.param(links("10.9.0.5/32 veth1"), [], [], ["veth1 10.9.0.5/32"], id="a route"),
        pytest.param(links("fd00::5/128 veth1"), [], [], ["veth1 fd00::5/128"], id="of IPv6"),
        pytest.param(links("10.9.0.0/24 veth1", "10.9.0.0/26 80"), [], [], [], id="no host route"),
        pytest.param(links(), [], ["br1 10.9.0.5"], ["br1 10.9.0.5/32"], id="a neighbour"),
        pytest.param(
            links(br1="10.9.0.1"),
            [bridge("br1", "10.9.0.0/24", "fd00:9::/64")],
            [],
            ["br1 10.9.0.0/24", "br1 fd00:9::/64"],
            id="a bridge",
        ),
        pytest.param(
            links("192.0.2.9/32 br0", br0="192.0.2.1"),
            [],
            ["br0 192.0.2.7", "br0 fd00::7"],
            [],
            id="the LAN",
        ),
        pytest.param(
            links("169.254.1.5/32 veth1"),
            [],
            ["veth1 fe80::5", "veth1 ff02::5", "veth1 169.254.0.9"],
            [],
            id="link-local and multicast",
        ),
    ],
)
def test_what_may_be_a_pods_is_routed_to_a_neighbour_or_a_bridges(
    there: Links, configured: list[Plugin], beside: list[str], found: list[str]
) -> None:
    neighbours = [(name, parse_address(ip)) for name, ip in (text.split() for text in beside)]
    made = candidates(there, configured, neighbours, [parse_address("192.0.2.1")])
    shown = [f"{each.interface} {each.address}/{each.length}" for each in made]
    assert sorted(shown) == sorted(found)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_passed_over_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "00-odd.conf"
    {"fifo": os.mkfifo, "folder": os.mkdir, "device": lambda to: os.symlink("/dev/zero", to)}[kind](
        path
    )
    (tmp_path / "10-real.conf").write_text('{"type": "calico"}')
    assert plugins(tmp_path) == [Plugin("calico")]
