"""UDP flows that connection tracking knows follow the rules as they are now."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import pytest

from ipvs_node_agent.iptables.conntrack import Flow, flows_to
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address
from tests.kernel.conftest import OTHER, Bed
from tests.support.cluster import service
from tests.support.netns import Namespace
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    OUTSIDE,
    POD,
    Topology,
    ask,
)
from tests.support.traffic import serving_udp
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

PORT = 53
OTHER_CLUSTER_IP = {4: "10.231.42.165", 6: "fd00:231::165"}


class Client:
    """A UDP client that goes on from one port, as a resolver or a phone does."""

    def __init__(self, namespace: Namespace, address: str) -> None:
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        with namespace.enter():
            self._socket = socket.socket(kind, socket.SOCK_DGRAM)
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


@pytest.fixture
def running(wired_bed: Bed) -> Bed:
    """The agent, and a Service of somebody else: a rule has to be there for tracking to begin."""
    wired_bed.put(("10.19.9.9", "known", "10.231.9.9"), ("fd00:19::9", "known", "fd00:231::9"))
    wired_bed.agent.start()
    return wired_bed


def dns(family: Family, cluster_ip: dict[int, str], ports: int = 1) -> dict[str, Any]:
    """A Service of so many ports in a row."""
    made = service("dns", [cluster_ip[family.version]], [EXTERNAL_IP[family.version]])
    made["spec"]["ports"] = [
        {"name": f"p{number}", "protocol": "UDP", "port": PORT + number} for number in range(ports)
    ]
    return made


def entries(bed: Bed, family: Family) -> list[str]:
    """What connection tracking knows of UDP to the external IP."""
    name = {4: "ipv4", 6: "ipv6"}[family.version]
    listing = bed.namespace.run("conntrack", "-L", "-f", name, "-p", "udp")
    to = f"dst={EXTERNAL_IP[family.version]} "
    return [line for line in listing.splitlines() if to in line.split("sport=")[0]]


def told(bed: Bed, family: Family) -> tuple[Flow, ...]:
    """What the program reads of flows to the external IP."""
    with bed.namespace.enter():
        found = flows_to(parse_address(EXTERNAL_IP[family.version]))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({}, 1),
        ({"podInterfaces": ["to-pod"]}, 1),
        ({"services": {"matchPorts": "Always"}}, 1),
        ({"services": {"matchPorts": "Always"}}, 3),
    ],
    ids=["pod CIDR", "interface", "port", "ports"],
)
def test_a_flow_follows_its_rule_as_it_is_made_changed_and_removed(
    running: Bed, wired: Topology, family: Family, settings: dict[str, Any], ports: int
) -> None:
    running.reload(**settings)
    version = family.version

    def ip(addresses: dict[int, str]) -> Address:
        return parse_address(addresses[version])

    first, second = CLUSTER_IP[version], OTHER_CLUSTER_IP[version]
    wired.backend.add_address("lo", f"{second}/{family.bits}")
    clients = [Client(who, EXTERNAL_IP[version]) for who in (wired.pod, wired.node)]
    stranger = Client(wired.outside, EXTERNAL_IP[version])
    with serving_udp(wired.backend, first, second, port=PORT):
        assert [client.ask() for client in clients] == ["", ""]
        stranger.ask()
        assert len(entries(running, family)) == 3
        running.api.put(dns(family, CLUSTER_IP, ports))
        for client in clients:
            client.expect(first)
        running.api.put(dns(family, OTHER_CLUSTER_IP, ports))
        for client in clients:
            client.expect(second)
        known = told(running, family)
        assert Flow("udp", ip(POD), ip(EXTERNAL_IP), PORT, ip(OTHER_CLUSTER_IP)) in known
        # Somebody else's flow never met a rule of ours, and is left alone where that is known.
        is_left = "podInterfaces" not in settings
        strangers = Flow("udp", ip(OUTSIDE), ip(EXTERNAL_IP), PORT, ip(EXTERNAL_IP))
        assert (strangers in known) is is_left
        running.api.delete("Service", "default", "dns")
        for client in clients:
            client.expect("")
        found = entries(running, family)
        assert any(f"src={OUTSIDE[version]} " in line for line in found) is is_left
    for client in (*clients, stranger):
        client.close()
    assert "UDP" not in running.agent.log
    assert not any(flow.answered_by == ip(OTHER_CLUSTER_IP) for flow in told(running, family))


def test_a_flow_that_began_while_the_jump_was_gone_meets_the_rules_afterwards(
    running: Bed, wired: Topology, family: Family
) -> None:
    address, first = EXTERNAL_IP[family.version], CLUSTER_IP[family.version]
    running.api.put(dns(family, CLUSTER_IP))
    eventually(lambda: running.has(address))
    running.settled()
    client = Client(wired.pod, address)
    with serving_udp(wired.backend, first, port=PORT):
        running.agent.send(signal.SIGSTOP)
        running.iptables("-D", "PREROUTING", "-j", "IPVS_PREROUTING", family=family)
        assert client.ask() == ""
        running.agent.send(signal.SIGCONT)
        client.expect(first)
    client.close()


def test_flows_of_all_protocols_with_ports_are_told(
    running: Bed, wired: Topology, family: Family
) -> None:
    version = family.version
    running.put((EXTERNAL_IP[version], "web", CLUSTER_IP[version]))
    eventually(lambda: running.has(EXTERNAL_IP[version]))
    assert ask(wired.pod, EXTERNAL_IP[version]) == NODE_TO_BACKEND[version]
    (flow,) = told(running, family)
    assert (flow.protocol, flow.port) == ("tcp", 80)
    assert flow.answered_by == parse_address(CLUSTER_IP[version])


@pytest.mark.once
@pytest.mark.parametrize("backend", ["nft"])
def test_a_pod_that_sends_from_everywhere_holds_up_nobodys_change(
    running: Bed, wired: Topology
) -> None:
    """Connection tracking's entries of a flow to each port go outside of the main loop."""
    running.api.put(dns(IPV4, CLUSTER_IP))
    eventually(lambda: running.has(EXTERNAL_IP[4]))
    program = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for port in range(1, 20001): s.sendto(b'x', ({EXTERNAL_IP[4]!r}, port))\n"
    )
    wired.pod.run("python3", "-c", program)
    # A busy machine drops some of them on the way.
    assert len(entries(running, IPV4)) > 2_000
    running.api.put(dns(IPV4, OTHER_CLUSTER_IP))
    began = time.monotonic()
    running.put(OTHER)
    eventually(lambda: running.has(OTHER[0]))
    assert time.monotonic() - began < 10
    eventually(lambda: not entries(running, IPV4), "no flow", 30)
    assert "UDP flows may not follow" not in running.agent.log
