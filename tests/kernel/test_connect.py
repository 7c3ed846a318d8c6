"""Real connections from the host and from a pod, in both families."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.explain.connect import Attempt, connections
from ipvs_node_agent.host import links
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.rules.coverage import Coverage
from tests.kernel.test_network_plugins import BRIDGE, PTP, SUBNETS, connected
from tests.support.netns import Namespace, link, namespaces
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    PORT,
    Topology,
    own,
    serving,
)
from tests.support.waiting import eventually

# The environment that has the plugins, see its recipe.
pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

BY_CIDR = Coverage((), tuple(map(parse_network, POD_CIDR.values())))
# No interface of the node has an address inside, or a route to one.
ALONE = Coverage(
    (), tuple(parse_network(f"{ip}/{128 if ':' in ip else 32}") for ip in POD.values())
)
NONE = Coverage(("cali+",), ())
CLOSED, FILTERED, FORBIDDEN = 81, 82, 83


def by(*interfaces: str) -> Coverage:
    return Coverage(interfaces, ())


def tried(
    node: Namespace, address: str, known: Coverage, *ports: int, names: Sequence[str] = ()
) -> dict[str, list[Attempt]]:
    """What becomes of connections from the node, by the first word of who tried."""
    to = parse_address(address)
    called = {parse_address(each): f"default/{each}" for each in names}
    with node.enter():
        made = connections(to, ports or (PORT,), known, links.ask(), called)
    found: dict[str, list[Attempt]] = {}
    for attempt in made:
        found.setdefault(attempt.origin.split()[0], []).append(attempt)
    return found


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("known", [BY_CIDR, ALONE, by("to-pod"), by("to-p+", "cali+")], ids=str)
def test_they_come_from_the_host_and_from_the_pod(
    around: Topology, version: int, known: Coverage
) -> None:
    seen: list[str] = []

    def says(connection: socket.socket) -> str:
        seen.append(str(connection.getpeername()[0]))
        return "words that nobody reads"

    with serving(around.backend, CLUSTER_IP[version], port=90, says=says):
        found = tried(around.node, CLUSTER_IP[version], known, 90)
        # Who connects need not wait for who answers.
        eventually(lambda: len(seen) == len(found))
    assert found == {
        "host": [Attempt("host", 90, True, "connected")],
        "pod": [Attempt(f"pod {POD[version]}", 90, True, "connected")],
    }
    assert sorted(seen) == sorted([NODE_TO_BACKEND[version], POD[version]])


def test_a_pod_is_called_by_its_name(around: Topology) -> None:
    (pod,) = tried(around.node, CLUSTER_IP[4], BY_CIDR, names=[POD[4]])["pod"]
    assert pod.origin == f"pod default/{POD[4]}"


def test_what_was_in_the_way_is_said_and_nobody_waits_for_another(around: Topology) -> None:
    rules = (
        f"-A INPUT -p tcp --dport {FILTERED} -j DROP",
        f"-A INPUT -p tcp --dport {FORBIDDEN} -j REJECT --reject-with icmp-host-prohibited",
    )
    text = "\n".join(["*filter", *rules, "COMMIT", ""])
    around.backend.run("iptables-nft-restore", stdin=text)
    ports = (PORT, CLOSED, FILTERED, FORBIDDEN, *range(9000, 9020))
    found = tried(around.node, CLUSTER_IP[4], BY_CIDR, *ports)
    for attempts in found.values():
        assert [each.port for each in attempts] == list(ports[:16])
        words = {each.port: each.text for each in attempts}
        assert words[CLOSED] == words[9000] == "refused"
        assert words[FILTERED] == "no answer within 3 s"
        assert words[FORBIDDEN].startswith("no route")
        assert [each.port for each in attempts if each.ok] == [PORT]
    around.pod.run("ip", "route", "del", "default")
    around.node.run("ip", "route", "add", "prohibit", f"{CLUSTER_IP[4]}/32")
    around.pod.run("ip", "route", "add", "unreachable", f"{CLUSTER_IP[4]}/32")
    (host,) = tried(around.node, CLUSTER_IP[4], BY_CIDR)["host"]
    assert host.text.startswith("prohibited")


def test_without_a_fit_pod_the_host_alone_connects(around: Topology) -> None:
    assert tried(around.node, CLUSTER_IP[4], NONE).keys() == {"host"}
    elsewhere = Coverage((), (parse_network("10.99.0.0/16"),))
    assert tried(around.node, CLUSTER_IP[4], elsewhere).keys() == {"host"}
    # It has the address itself.
    assert tried(around.node, CLUSTER_IP[4], by("to-backend")).keys() == {"host"}
    # Neither the family's address nor a way there.
    around.pod.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    assert tried(around.node, CLUSTER_IP[4], by("to-pod")).keys() == {"host"}


def test_the_process_in_the_pod_has_no_rights(around: Topology) -> None:
    """Of the pod's own rules, those for root are not the ones that a connection meets."""
    rule = "-A OUTPUT -p tcp -m owner ! --uid-owner 65534 -j REJECT"
    around.pod.run("iptables-nft-restore", stdin=f"*filter\n{rule}\nCOMMIT\n")
    (pod,) = tried(around.node, CLUSTER_IP[4], BY_CIDR)["pod"]
    assert pod.ok


@contextmanager
def bystanders(node: Namespace) -> Iterator[None]:
    """A container that is no pod, and a pod without any address, with devices that come first."""
    with namespaces("container", "empty") as (container, empty):
        link(node, container, "aaaa0", "eth0")
        link(node, empty, "aaaa1", "eth0")
        container.add_address("eth0", "172.17.0.2/16")
        container.run("ip", "route", "add", "default", "dev", "eth0")
        yield


PLUGINS: dict[str, tuple[Mapping[str, Any], Coverage]] = {
    "bridge by CIDR": (BRIDGE, Coverage((), tuple(map(parse_network, SUBNETS)))),
    "bridge by interface": (BRIDGE, by("cni7")),
    "ptp by CIDR": (PTP, Coverage((), tuple(map(parse_network, SUBNETS)))),
    "ptp by interface": (PTP, by("veth+")),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_pods_of_network_plugins(around: Topology, tmp_path: Path, name: str) -> None:
    plugin, known = PLUGINS[name]
    with (
        namespaces("local") as (local,),
        bystanders(around.node),
        connected(around.node, local, plugin, tmp_path / "leases"),
    ):
        for address, subnet in zip(EXTERNAL_IP.values(), SUBNETS):
            # Answered by the node itself, which has it.
            with serving(around.node, address, port=91, says=own):
                (pod,) = tried(around.node, address, known, 91)["pod"]
            assert (pod.ok, pod.port) == (True, 91)
            assert pod.origin.split()[1].startswith(subnet.split("3")[0])


def test_the_own_namespace_is_never_left(around: Topology) -> None:
    def files() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    here, before = os.readlink("/proc/self/ns/net"), files()
    tried(around.node, CLUSTER_IP[4], BY_CIDR)
    assert os.readlink("/proc/self/ns/net") == here
    # The server of this very process closes its end a moment later.
    eventually(lambda: files() <= before, "no file too many")
