"""A legacy table's digest: another one with every change, the same whatever was counted."""

from __future__ import annotations

import socket

import pytest

from ipvs_node_agent.iptables import legacytable
from ipvs_node_agent.model.addresses import Family
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

RULES = [
    f'-A CHAIN -p tcp -m tcp --dport {port} -m comment --comment "x/y" -j RETURN'
    for port in range(1, 200)
]


def digest(namespace: Namespace, family: Family) -> bytes:
    with namespace.enter():
        return legacytable.digest(family.version, "nat")


def test_it_changes_with_every_change_and_not_with_the_counts(
    namespace: Namespace, family: Family
) -> None:
    def iptables(arguments: str) -> None:
        namespace.run(f"{family.command}-legacy", "-t", "nat", *arguments.split())

    # It takes a rule that translates for packets to be tracked, and so for the table to be walked.
    to = "10.1.1.1" if family.version == 4 else "fd00::1"
    translation = f"-A CHAIN -p sctp -j DNAT --to-destination {to}"
    text = "\n".join(["*nat", ":CHAIN - [0:0]", *RULES, translation, "COMMIT", ""])
    namespace.run(f"{family.command}-legacy-restore", stdin=text)
    seen = [digest(namespace, family)]
    assert digest(namespace, family) == seen[0]
    for change in (
        "-A OUTPUT -j CHAIN",
        "-R CHAIN 100 -p tcp --dport 100 -j ACCEPT",
        "-D CHAIN 50",
        "-I OUTPUT 1 -j RETURN",
        "-N OTHER",
    ):
        iptables(change)
        seen.append(digest(namespace, family))
    assert len({*seen}) == len(seen)
    iptables("-D OUTPUT 1")
    uncounted = digest(namespace, family)
    before = namespace.run(f"{family.command}-legacy-save", "-c", "-t", "nat")
    send_a_packet(namespace, family)
    assert namespace.run(f"{family.command}-legacy-save", "-c", "-t", "nat") != before
    assert digest(namespace, family) == uncounted


def send_a_packet(namespace: Namespace, family: Family) -> None:
    four = family.version == 4
    kind = socket.AF_INET if four else socket.AF_INET6
    with namespace.enter(), socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1" if four else "::1", 9))
