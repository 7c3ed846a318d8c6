"""A UDP flow that connection tracking knows follows the rules as they are now."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, Family
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    OUTSIDE,
    POD_CIDR,
    Topology,
    topology,
)
from tests.support.traffic import serving_udp
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

PORT = 53
OTHER_CLUSTER_IP = {4: "10.231.42.165", 6: "fd00:231::165"}


class Client:
    """A UDP client that goes on from one port, as a resolver or a phone does."""

    def __init__(self, namespace: Namespace, address: str) -> None:
        with namespace.enter():
            self._socket = socket.socket(_kind(address), socket.SOCK_DGRAM)
        self._socket.settimeout(0.2)
        self._socket.connect((address, PORT))

    def ask(self) -> str:
        """Who answers; nothing if nobody does."""
        try:
            self._socket.send(b"?")
            return self._socket.recv(100).decode()
        except OSError:
            return ""

    def expect(self, answer: str) -> None:
        """Waits until it gets this answer."""
        eventually(lambda: self.ask() == answer, f"the answer {answer!r}")

    def close(self) -> None:
        self._socket.close()


def _kind(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture
def around() -> Iterator[Topology]:
    with topology() as made:
        yield made


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    assert isinstance(request.param, Family)
    return request.param


@pytest.fixture
def running(around: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node with a Service of somebody else, and the agent on it."""
    for each in FAMILIES:
        add_mark_masq(around.node, each, backend)
    # Some rule has to be there for connection tracking to begin.
    known = service("known", ["10.231.9.9", "fd00:231::9"], ["10.19.9.9", "fd00:19::9"])
    with node_bed(around.node, backend, tmp_path, node(*POD_CIDR.values()), known) as made:
        made.agent.start()
        yield made


def dns(family: Family, cluster_ip: dict[int, str]) -> dict[str, Any]:
    made = service("dns", [cluster_ip[family.version]], [EXTERNAL_IP[family.version]])
    made["spec"]["ports"] = [{"protocol": "UDP", "port": PORT}]
    return made


def entries(bed: Bed, family: Family) -> list[str]:
    """What connection tracking knows of UDP to the external IP."""
    name = {4: "ipv4", 6: "ipv6"}[family.version]
    listing = bed.namespace.run("conntrack", "-L", "-f", name, "-p", "udp")
    to = f"dst={EXTERNAL_IP[family.version]} "
    return [line for line in listing.splitlines() if to in line.split("sport=")[0]]


def test_a_flow_follows_its_rule_as_it_is_made_changed_and_removed(
    running: Bed, around: Topology, family: Family
) -> None:
    version = family.version
    first, second = CLUSTER_IP[version], OTHER_CLUSTER_IP[version]
    around.backend.add_address("lo", f"{second}/{family.bits}")
    clients = [Client(who, EXTERNAL_IP[version]) for who in (around.pod, around.node)]
    stranger = Client(around.outside, EXTERNAL_IP[version])
    with serving_udp(around.backend, first, second, port=PORT):
        assert [client.ask() for client in clients] == ["", ""]
        stranger.ask()
        assert len(entries(running, family)) == 3
        running.api.put(dns(family, CLUSTER_IP))
        for client in clients:
            client.expect(first)
        running.api.put(dns(family, OTHER_CLUSTER_IP))
        for client in clients:
            client.expect(second)
        running.api.delete("Service", "default", "dns")
        for client in clients:
            client.expect("")
        # Somebody else's flow never met a rule of ours, and is left alone.
        assert any(f"src={OUTSIDE[version]} " in line for line in entries(running, family))
    for client in (*clients, stranger):
        client.close()
    assert "UDP" not in running.agent.log
