"""`dropInvalidInput`: the reset that it is for in packets, and its chain in filter as ours in nat.

The reset: connection tracking no longer knows a connection of a pod's, or finds a packet of it
outside of its window. So the packet is not translated back, and arrives at the host.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Callable

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.netns import Namespace
from tests.support.topology import NODE, OUTSIDE, POD_CIDR, Topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

OURS = [
    ":IPVS_INPUT -",
    "-A INPUT -j IPVS_INPUT",
    "-A IPVS_INPUT ! -i lo -p tcp -m conntrack --ctstate INVALID -j DROP",
]


def filtered(bed: Bed, family: Family, backend: str = "", counts: str = "-t") -> list[str]:
    """The lines of the filter table."""
    command = f"{family.command}-{backend or bed.backend}-save"
    lines = bed.namespace.run(command, counts, *["-t"][: counts != "-t"], "filter").splitlines()
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if line[:1] != "#"]


def ours(bed: Bed, family: Family, backend: str = "") -> list[str]:
    return [line for line in filtered(bed, family, backend) if "IPVS_INPUT" in line]


def expect(bed: Bed, wanted: list[str], backend: str = "") -> None:
    """Waits until exactly these lines of ours are in both families' filter tables."""
    for family in FAMILIES:
        eventually(
            lambda f=family: ours(bed, f, backend) == wanted,  # type: ignore[misc]
            lambda: bed.agent.log,
        )


def meddle(bed: Bed, family: Family, arguments: str, backend: str = "") -> None:
    """Runs somebody else's command on the filter table."""
    command = f"{family.command}-{backend or bed.backend}"
    bed.namespace.run(command, "-w", "10", "-t", "filter", *arguments.split())


def tell_nothing(bed: Bed) -> int:
    """How often nat was written so far."""
    return len(re.findall(r"IPv[46]: (?:wrote|repaired)", bed.agent.log))


# The reset


def resets(node: Namespace) -> int:
    """How many resets the node's own TCP has sent, in either family."""
    with node.enter():
        names, values = (
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Tcp: ")
        )
    return int(values[names.index("OutRsts")])


def dropped(bed: Bed, family: Family) -> int:
    """How many packets our rule has dropped."""
    lines = filtered(bed, family, counts="-c")
    return sum(int(line[1:].partition(":")[0]) for line in lines if "-A IPVS_INPUT " in line)


@contextmanager
def connection(around: Topology, family: Family) -> Iterator[socket.socket]:
    """The outside's end of a connection of the pod's that the node masquerades."""
    version = family.version
    kind = socket.AF_INET if version == 4 else socket.AF_INET6
    with around.outside.enter():
        listening = socket.create_server((OUTSIDE[version], 0), family=kind)
    with around.pod.enter():
        calling = socket.socket(kind)
    with listening, calling:
        calling.settimeout(5)
        calling.connect(listening.getsockname()[:2])
        end, peer = listening.accept()
        assert peer[0] == NODE[version]
        with end:
            yield end


def a_fin_of_a_forgotten_connection(around: Topology, family: Family, end: socket.socket) -> None:
    port = str(end.getsockname()[1])
    around.node.run("conntrack", "-D", "-f", str(family).lower(), "-p", "tcp", "--dport", port)
    end.shutdown(socket.SHUT_WR)


def next_numbers(end: socket.socket) -> list[int]:
    """The sequence numbers that are next in what is sent and received (tcp(7), TCP_REPAIR)."""
    repair, queue, sequence, off_without_a_probe = 19, 20, 21, -1
    end.setsockopt(socket.IPPROTO_TCP, repair, 1)
    numbers = []
    for each in (2, 1):
        end.setsockopt(socket.IPPROTO_TCP, queue, each)
        numbers.append(end.getsockopt(socket.IPPROTO_TCP, sequence) % (1 << 32))
    end.setsockopt(socket.IPPROTO_TCP, repair, off_without_a_probe)
    return numbers


def a_segment_outside_of_the_window(around: Topology, family: Family, end: socket.socket) -> None:
    addresses = [ip_address(each[0]).packed for each in (end.getsockname(), end.getpeername())]
    ports = end.getsockname()[1], end.getpeername()[1]
    sent, received = next_numbers(end)
    far = (sent + (1 << 30)) % (1 << 32)
    unsummed = struct.pack("!HHIIBBHHH", *ports, far, received, 5 << 4, 0x10, 1024, 0, 0)
    pseudo = b"".join(addresses) + struct.pack("!HH", socket.IPPROTO_TCP, len(unsummed))
    total = sum(struct.unpack(f"!{len(pseudo + unsummed) // 2}H", pseudo + unsummed))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    with around.outside.enter(), socket.socket(end.family, socket.SOCK_RAW, 6) as raw:
        raw.sendto(
            unsummed[:16] + struct.pack("!H", checksum) + unsummed[18:], (end.getpeername()[0], 0)
        )


Late = Callable[[Topology, Family, socket.socket], None]


@pytest.mark.parametrize("late", [a_fin_of_a_forgotten_connection, a_segment_outside_of_the_window])
def test_the_host_answers_a_late_packet_of_a_pods_connection_with_a_reset_or_not(
    wired: Topology, wired_bed: Bed, late: Late, family: Family
) -> None:
    bed, version = wired_bed, family.version
    bed.iptables(
        *f"-A POSTROUTING -s {POD_CIDR[version]} -o eth0 -j MASQUERADE".split(), family=family
    )
    bed.put(WEB, WEB6)
    bed.agent.start()
    writes = tell_nothing(bed)
    for dropping in (False, True, False):
        bed.reload(dropInvalidInput=dropping)
        expect(bed, OURS if dropping else [])
        before = resets(wired.node)
        with connection(wired, family) as end:
            late(wired, family, end)
            if dropping:
                eventually(lambda: dropped(bed, family), "a packet that is dropped")
            else:
                end.settimeout(5)
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        assert (resets(wired.node) > before) is not dropping
    assert tell_nothing(bed) == writes


# The chain


MEDDLING = {
    "-F IPVS_INPUT": "a chain was empty",
    "-R IPVS_INPUT 1 -p tcp -j RETURN": "a chain's rules were different",
    "-I IPVS_INPUT 1 -p udp -j RETURN": "a chain's rules were different",
    "-E IPVS_INPUT GONE": "all chains and jumps were gone",
    "-N IPVS_INPUT-x": "there was an extra chain",
    "-D INPUT -j IPVS_INPUT": "a jump was gone",
    "-A INPUT -j IPVS_INPUT": "a jump was duplicated",
    "-I INPUT 1 -p udp -j RETURN": "a jump was not the first rule",
    "-F": "a jump was gone",
}


def test_what_others_do_to_it_is_undone(bed: Bed, family: Family) -> None:
    def state() -> list[str]:
        """Our lines, and the first rule of INPUT."""
        lines = filtered(bed, family)
        first = next((line for line in lines if line.startswith("-A INPUT ")), "")
        return [first, *(line for line in lines if "IPVS_INPUT" in line)]

    bed.configure(dropInvalidInput=True, driftCheckPeriod="300ms")
    bed.agent.start()
    expect(bed, OURS)
    wanted = state()
    for arguments, reason in MEDDLING.items():
        meddle(bed, family, arguments)
        eventually(lambda: state() == wanted, lambda: bed.agent.log)
        said = f"{family} filter: repaired .*{reason}"
        eventually(lambda said=said: re.search(said, bed.agent.log), said)  # type: ignore[misc]
    assert not re.search(r"IPv[46]: repaired", bed.agent.log)


@pytest.mark.parametrize(
    ("jump", "chain", "known"),
    [
        ('-m comment --comment "cali:Cz_u1IQiXIMmKD4c"', "cali-INPUT", True),
        ('-m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV"', "KUBE-ROUTER-INPUT", True),
        # Nobody who is known: he has to show that he means it.
        ("-m comment --comment stranger", "STRANGER", False),
    ],
)
def test_it_gives_way_to_who_insists_on_the_first_place(
    bed: Bed, jump: str, chain: str, known: bool
) -> None:
    theirs = f"{jump} -j {chain}"
    bed.configure(dropInvalidInput=True, driftCheckPeriod="200ms")
    bed.agent.start()
    expect(bed, OURS)

    def insist() -> None:
        """Puts the jump first, if it is not there, as felix does at each look of its own."""
        inputs = [line for line in filtered(bed, IPV4) if line.startswith("-A INPUT ")]
        if inputs[0] == f"-A INPUT {theirs}":
            return
        there = f"-D INPUT {theirs}" if f"-A INPUT {theirs}" in inputs else f":{chain} - [0:0]"
        bed.restore(
            IPV4,
            f"*filter\n{there}\n-I INPUT 1 {theirs}\n"
            f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
        )

    def settled() -> bool:
        insist()
        inputs = [line for line in filtered(bed, IPV4) if line.startswith("-A INPUT ")]
        return inputs == [f"-A INPUT {theirs}", OURS[1]]

    # Where the two are as both want them, the agent may not have looked yet.
    gives_way = f"IPv4 filter: {chain} keeps returning to the front of INPUT"
    eventually(lambda: settled() and (known or gives_way in bed.agent.log), lambda: bed.agent.log)
    marker = bed.agent.log.count("filter: ")
    # As many looks of theirs and of ours as would show a fight.
    meddle(bed, IPV4, "-F IPVS_INPUT")
    eventually(lambda: ours(bed, IPV4) == OURS)
    assert settled()
    assert bed.agent.log.count("filter: ") <= marker + 2
    assert known == ("a jump was not the first rule" not in bed.agent.log)


def test_it_stays_over_a_restart_and_goes_with_the_key_the_backend_or_cleanup(bed: Bed) -> None:
    other = bed.other_backend
    for family in FAMILIES:
        meddle(bed, family, "-A INPUT -p icmp -j ACCEPT")
    foreign = {family: filtered(bed, family) for family in FAMILIES}
    bed.configure(dropInvalidInput=True)
    bed.agent.start()
    expect(bed, OURS)
    bed.agent.stop()
    assert all(ours(bed, family) == OURS for family in FAMILIES)
    said = bed.agent.log.count("filter: wrote")
    bed.agent.start()
    assert bed.agent.log.count("filter: wrote") == said
    bed.reload(iptables={"backend": other})
    expect(bed, OURS, other)
    expect(bed, [])
    bed.agent.stop()
    # What a run with the key left, and another one without finds.
    bed.configure(dropInvalidInput=False)
    bed.agent.start()
    expect(bed, [], other)
    bed.agent.stop()
    for family in FAMILIES:
        for backend in ("nft", "legacy"):
            for arguments in (
                "-N IPVS_INPUT",
                "-A IPVS_INPUT -p tcp -j DROP",
                "-I INPUT -j IPVS_INPUT",
            ):
                meddle(bed, family, arguments, backend)
    assert bed.agent.call("cleanup").stdout.count("removed IPVS_INPUT") == 2 * len(FAMILIES)
    expect(bed, [], other)
    assert {family: filtered(bed, family) for family in FAMILIES} == foreign


@pytest.mark.parametrize("backend", ["legacy"])
def test_no_table_is_made_for_nothing(bed: Bed) -> None:
    bed.agent.start()
    with bed.namespace.enter():
        assert "filter" not in Path("/proc/thread-self/net/ip_tables_names").read_text().split()


@pytest.mark.parametrize("backend", ["nft"])
def test_a_table_that_iptables_cannot_use_matters_to_nobody_who_does_not_ask_for_it(
    bed: Bed,
) -> None:
    chain = "add chain ip filter INPUT { type filter hook input priority 0; }"
    rule = "add rule ip filter INPUT meta mark set numgen random mod 2"
    bed.namespace.run("nft", f"add table ip filter; {chain}; {rule}")
    bed.agent.start()
    assert not re.search("WARNING .*filter|ERROR", bed.agent.log)
    bed.reload(dropInvalidInput=True)
    eventually(lambda: "IPv4 filter: cannot program the kernel" in bed.agent.log)
    # Ready it is as soon as Services have their rules, which `start` waits for.
    bed.agent.stop()
    bed.agent.start()
    eventually(lambda: bed.agent.log.count("IPv4 filter: cannot program the kernel") == 2)
    eventually(lambda: ours(bed, FAMILIES[1]) == OURS)
    bed.reload(dropInvalidInput=False)
    eventually(lambda: "IPv6 filter: wrote 1 chain removed" in bed.agent.log, lambda: bed.agent.log)
    bed.agent.stop()
    # It may have been used here, so that nobody can tell whether all is gone.
    assert bed.agent.call("cleanup").returncode == 3
    (bed.agent.runtime / "chains").unlink()
    assert bed.agent.call("cleanup").returncode == 0
