"""The tracer of tests/support/tracer.py sees what the kernel's packet counters see."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address
from ipvs_node_agent.model.objects import Port, Service, Snapshot
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.rules.planner import plan
from tests.support.fleet import NODE, service
from tests.support.tables import add_mark_masq, restore
from tests.support.topology import BACKEND, POD, Topology
from tests.support.tracer import Packet, chains_of, trace

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

POOL = {4: "172.20.0.0", 6: "2001:db8:19::"}
SHARED = {4: "172.21.0.1", 6: "2001:db8:20::1"}


def services(family: Family) -> dict[str, Service]:
    """A pool, single addresses far away, and an address that forty share, by TCP and UDP."""
    pool, shared = parse_address(POOL[family.version]), parse_address(SHARED[family.version])
    far = [pool + (1 << bit) for bit in range(9, family.bits - 6, 5)]
    made = [
        service(number, address) for number, address in enumerate([pool + n for n in range(60)])
    ]
    made += [service(100 + number, address) for number, address in enumerate(far)]
    made += [
        service(200 + number, shared)._replace(ports=(Port(protocol, 1000 + number),))
        for number in range(40)
        for protocol in [("tcp", "udp")[number % 2]]
    ]
    return {each.key: each for each in made}


def destinations(family: Family, made: Sequence[Service]) -> Iterator[tuple[Address, Port]]:
    """Every third one of the Services, and what is beside it."""
    for each in made[::3]:
        (address,), (port,) = each.load_balancer_ips, each.ports
        yield address, port
        yield address, Port("udp" if port.protocol == "tcp" else "tcp", port.number)
        yield address + 1, port


def send(wired: Topology, packet: Packet) -> None:
    """Sends the first packet of a connection, from the pod or from the host."""
    version = socket.AF_INET6 if ":" in packet.destination else socket.AF_INET
    kind = socket.SOCK_STREAM if packet.protocol == "tcp" else socket.SOCK_DGRAM
    client = wired.node if packet.local else wired.pod
    with client.enter():
        sock = socket.socket(version, kind)
    with sock:
        sock.setblocking(False)
        try:
            sock.connect((packet.destination, packet.port))
            if packet.protocol == "udp":
                sock.send(b"x")
        except OSError:
            pass  # Nobody has to answer.


def counted(wired: Topology, family: Family, backend: str) -> dict[tuple[str, str], int]:
    """How many packets each rule has matched."""
    save = wired.node.run(f"{family.command}-{backend}-save", "-c", "-t", "nat")
    found = re.findall(r"^\[(\d+):\d+\] -A (\S+) (.*)$", save, re.MULTILINE)
    return {(name, rule): int(count) for count, name, rule in found}


@pytest.mark.parametrize("interfaces", [(), ("eth0", "to-p+")], ids=["by CIDR", "by interface"])
def test_the_tracer_and_the_kernel_agree(
    family: Family, backend: str, interfaces: tuple[str, ...], around: Topology
) -> None:
    """On the rules that match, one by one; and on those that there are."""
    fleet = services(family)
    seen = Snapshot(fleet, NODE, pod_interfaces=interfaces)
    ruleset = plan(DEFAULTS, seen, family).ruleset
    add_mark_masq(around.node, family, backend)
    # What is not translated has to leave the node as well.
    around.node.add_route("default" if family is IPV4 else "::/0", BACKEND[family.version])
    restore(around.node, family, backend, restore_input(difference(Found(), ruleset)))
    save = around.node.run(f"{family.command}-{backend}-save", "-t", "nat").splitlines()
    loaded = chains_of(save)
    assert {name: tuple(loaded[name]) for name in ruleset.chains} == ruleset.chains
    before = counted(around, family, backend)
    expected = dict.fromkeys(before, 0)
    for address, port in destinations(family, list(fleet.values())):
        for top, packet in (
            (
                "IPVS_PREROUTING",
                Packet(POD[family.version], str(address), *port, interface="to-pod"),
            ),
            ("IPVS_OUTPUT", Packet(POD[family.version], str(address), *port, local=True)),
        ):
            send(around, packet)
            for rule in trace(ruleset.chains, top, packet).matched:
                expected[rule] += 1
    after = counted(around, family, backend)
    ours = [rule for rule in after if rule[0].startswith("IPVS_")]
    assert {r: after[r] - before[r] for r in ours} == {r: expected[r] for r in ours}
    assert sum(expected[r] for r in ours) > 500
