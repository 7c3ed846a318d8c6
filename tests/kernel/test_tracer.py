"""`nat.trace` sees what the kernel's packet counters see, with others' rules around ours too."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address
from ipvs_node_agent.model.objects import Port, Service, Snapshot
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import leads_to, read, trace
from ipvs_node_agent.rules.planner import plan
from tests.support.fleet import NODE, service
from tests.support.tables import add_mark_masq, restore
from tests.support.topology import BACKEND, NODE_TO_BACKEND, POD, POD_CIDR, Topology
from tests.support.waiting import eventually

Rule = tuple[str, str]

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


def agree(
    wired: Topology,
    family: Family,
    backend: str,
    met: Callable[[], Counter[Rule]],
    concerns: Callable[[Rule], bool],
) -> Counter[Rule]:
    """The kernel counts on rules that it `concerns` what is expected to be `met`, and gives that.

    A node sends packets of its own now and then (IGMP, neighbour discovery), so it may try again.
    """
    for _ in range(3):
        before = counted(wired, family, backend)
        expected = met()
        wanted = {rule: expected[rule] for rule in before if concerns(rule)}

        def found(base: dict[Rule, int] = before) -> dict[Rule, int]:
            after = counted(wired, family, backend)
            return {rule: after[rule] - base[rule] for rule in after if concerns(rule)}

        # Of a busy machine's packets, the last are still on their way.
        with suppress(AssertionError):
            eventually(lambda seen=found, all_of=wanted: seen() == all_of, timeout=5)  # type: ignore[misc]
            return expected
    assert found() == wanted
    return expected


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
    loaded = read(around.node.run(f"{family.command}-{backend}-save", "-t", "nat")).chains
    assert {name: tuple(loaded[name]) for name in ruleset.chains} == ruleset.chains

    def met() -> Counter[Rule]:
        """What the rules are expected to meet, of packets that are sent meanwhile."""
        expected: Counter[Rule] = Counter()
        for address, port in destinations(family, list(fleet.values())):
            source, destination = POD[family.version], str(address)
            for top, packet in (
                ("IPVS_PREROUTING", Packet(source, destination, *port, interface="to-pod")),
                ("IPVS_OUTPUT", Packet(source, destination, *port, local=True)),
            ):
                send(around, packet)
                expected.update(trace(loaded, top, packet).matched)
        return expected

    expected = agree(around, family, backend, met, lambda rule: rule[0].startswith("IPVS_"))
    assert sum(expected.values()) > 500


# Others' rules that a packet meets before ours and behind them. {taken} and {left} are addresses
# that nobody translates for the pod, {ours} is the Service's.
FOREIGN = """*nat
:cali-PREROUTING - [0:0]
:cali-fip-dnat - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-DN-1 - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:DOCKER - [0:0]
:REPAIR - [0:0]
:TAIL - [0:0]
-A cali-PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-fip-dnat
-A cali-fip-dnat -d {taken} -m comment --comment "-j DROP" -j DNAT --to-destination {to}
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"k8s\\"" -m multiport --dports 81,8000:8010 -j CNI-DN-1
-A CNI-DN-1 ! -s {pods} -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-1 -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-1 -p tcp -m tcp --dport 81 -j DNAT --to-destination {to_port}
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 82 -j REDIRECT --to-ports 80
-A REPAIR -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j MARK --set-xmark 0x1/0xff
-A REPAIR -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A REPAIR -m mark --mark 0x1/0x1 -g TAIL
-A REPAIR -j ACCEPT
-A TAIL -m mark ! --mark 0x1/0xff -j ACCEPT
-A TAIL -d {left} -p tcp -m mark --mark 0x1/0xff -j ACCEPT
-I PREROUTING 1 -j cali-PREROUTING
-I PREROUTING 2 -j REPAIR
-I PREROUTING 3 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -p tcp -m mark --mark 0x1/0x1 -m tcp --dport 83
-A PREROUTING -p tcp -j ACCEPT
-I OUTPUT 1 -o lo -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
"""  # noqa: E501


def test_with_others_in_front_and_behind_they_agree_as_well(
    family: Family, backend: str, around: Topology
) -> None:
    """On each rule of the table, from the built-in chains on, for all kinds of packets."""
    version, bits = family.version, family.bits
    ours, node, taken, left = (
        parse_address(each)
        for each in {
            4: ("10.19.20.201", "192.168.7.11", "10.19.99.1", "10.19.99.2"),
            6: ("fd00:19::201", "fd00:192:168:7::11", "fd00:19::9:1", "fd00:19::9:2"),
        }[version]
    )
    made = service(0, ours)
    ruleset = plan(DEFAULTS, Snapshot({made.key: made}, NODE), family).ruleset
    add_mark_masq(around.node, family, backend)
    around.node.add_route("default" if family is IPV4 else "::/0", BACKEND[version])
    restore(around.node, family, backend, restore_input(difference(Found(), ruleset)))
    to = BACKEND[version]
    rules = FOREIGN.format(
        taken=f"{taken}/{bits}",
        left=f"{left}/{bits}",
        to=to,
        to_port=f"{to}:80" if family is IPV4 else f"[{to}]:80",
        pods=POD_CIDR[version],
        loopback="127.0.0.0/8" if family is IPV4 else "::1/128",
    )
    restore(around.node, family, backend, rules)
    table = read(around.node.run(f"{family.command}-{backend}-save", "-t", "nat"))
    for here in (ours, node):
        # An IPv6 address that has just come may not count as local yet.
        eventually(lambda at=str(here): "local" in around.node.run("ip", "route", "get", at))  # type: ignore[misc]
    walked = {each for top in ("PREROUTING", "OUTPUT") for each in leads_to(table.chains, top)}

    def met() -> Counter[Rule]:
        """What the rules are expected to meet, of packets that are sent meanwhile."""
        expected: Counter[Rule] = Counter()
        for address in (ours, node, taken, left):
            is_here = address in (ours, node)
            for protocol, port in (("tcp", 80), ("tcp", 81), ("tcp", 82), ("tcp", 83), ("udp", 81)):
                to_it = Packet(POD[version], str(address), protocol, port, to_host=is_here)
                pod = to_it._replace(interface="to-pod")
                host = to_it._replace(
                    source=str(address) if is_here else NODE_TO_BACKEND[version],
                    local=True,
                    out="lo" if is_here else "to-backend",
                )
                for top, packet in (("PREROUTING", pod), ("OUTPUT", host)):
                    send(around, packet)
                    walk = trace(table.chains, top, packet)
                    assert len(walk.ends) == 1, (packet, walk)
                    expected.update(walk.matched)
        return expected

    # What a walk through POSTROUTING adds is not counted here.
    expected = agree(around, family, backend, met, lambda rule: rule[0] in walked)
    rules_met = [rule for rule in counted(around, family, backend) if rule[0] in walked]
    never = {"docker0", "RELATED", "-A", "! -s"}
    assert [r for r in rules_met if not expected[r] and not any(n in r[1] for n in never)] == [
        ("TAIL", "-m mark ! --mark 0x1/0xff -j ACCEPT")
    ]
