"""What is seen of a legacy table: every change, and nothing of what was counted."""

from __future__ import annotations

import socket

import pytest

from ipvs_node_agent.iptables.legacytable import Seen
from ipvs_node_agent.model.addresses import Family
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

RULES = [
    f'-A CHAIN -p tcp -m tcp --dport {port} -m comment --comment "x/y" -j RETURN'
    for port in range(1, 200)
]


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
    seen = Seen(family.version, "nat")

    def same() -> tuple[bool | None, bool | None]:
        """Whether it is, by its size and closely."""
        with namespace.enter():
            return seen.is_same(closely=False), seen.is_same(closely=True)

    assert same() == (None, None)
    for change, by_size in (
        ("-A OUTPUT -j CHAIN", False),
        ("-R CHAIN 100 -p tcp -m tcp --dport 7 -m comment --comment x/y -j RETURN", None),
        ("-D CHAIN 50", False),
        ("-I OUTPUT 1 -j RETURN", False),
        ("-N OTHER", False),
    ):
        with namespace.enter():
            seen.look()
        assert same() == (None, True)
        iptables(change)
        assert same() == (by_size, False)
    iptables("-D OUTPUT 1")
    with namespace.enter():
        seen.look()
    before = namespace.run(f"{family.command}-legacy-save", "-c", "-t", "nat")
    send_a_packet(namespace, family)
    assert namespace.run(f"{family.command}-legacy-save", "-c", "-t", "nat") != before
    assert same() == (None, True)
    with namespace.enter():
        seen.glance()
    assert same() == (None, None)
    iptables("-A CHAIN -j RETURN")
    assert same() == (False, False)


def send_a_packet(namespace: Namespace, family: Family) -> None:
    four = family.version == 4
    kind = socket.AF_INET if four else socket.AF_INET6
    with namespace.enter(), socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1" if four else "::1", 9))
