"""Runs in the machine: holds what the agent reads of a legacy table to what iptables-save says.

    structures.py VERSION    in a network namespace of its own, with that version of IP

The kernel's structures for iptables have gaps and sizes of their own on each processor.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator

from ipvs_node_agent.iptables import legacytable

# What rules are made of here has structures of many sizes.
_RULES = (
    "-A FIRST -p tcp -m tcp --dport 80 -j RETURN",
    '-A FIRST -m comment --comment "default/web" -j DNAT --to-destination {to}',
    "-A FIRST -m addrtype --src-type LOCAL -j MARK --set-xmark 0x4000/0x4000",
    "-A FIRST -s {to} -i lo -p udp -m udp --sport 5:9 -j SECOND",
    "-A FIRST -j SECOND",
    "-A SECOND -p sctp -j RETURN",
    "-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A POSTROUTING -j MASQUERADE",
)
_CHANGES = (
    "-A OUTPUT -j FIRST",
    "-R FIRST 1 -p tcp -m tcp --dport 81 -j RETURN",
    '-R FIRST 2 -m comment --comment "default/wet" -j DNAT --to-destination {to}',
    "-D FIRST 5",
    "-N THIRD",
    "-E THIRD FOURTH",
)
_SAVED_RULE = re.compile(r"\[(\d+):(\d+)\] -A (\S+) ")
_SAVED_CHAIN = re.compile(r":(\S+) (\S+) \[(\d+):(\d+)\]")
_Counts = tuple[int, int]
_NOT_SHOWN = (-1, -1)


class Table:
    """The nat table of one version of IP."""

    def __init__(self, version: int) -> None:
        self._command = {4: "iptables-legacy", 6: "ip6tables-legacy"}[version]
        self.to = {4: "10.1.1.1", 6: "fd00::1"}[version]
        self.seen = legacytable.Seen(version, "nat")

    def fill(self) -> None:
        """Has it hold rules, each with counts that no other one has."""
        chains = [":POSTROUTING ACCEPT [1000:1001]", ":FIRST - [0:0]", ":SECOND - [0:0]"]
        rules = [f"[{n}:{n << 33}] {rule}".format(to=self.to) for n, rule in enumerate(_RULES, 1)]
        text = "\n".join(["*nat", *chains, *rules, "COMMIT", ""])
        subprocess.run([f"{self._command}-restore", "-c"], input=text, text=True, check=True)

    def change(self, arguments: str) -> None:
        """Does what an administrator types."""
        words = arguments.format(to=self.to).replace('"', "").split()
        subprocess.run([self._command, "-w", "5", "-t", "nat", *words], check=True)

    def saved(self) -> list[_Counts]:
        """The counts of each entry as iptables-save has them, in the kernel's order."""
        text = subprocess.check_output([f"{self._command}-save", "-c", "-t", "nat"], text=True)
        found: list[_Counts] = []
        for name, policy, *counts in _SAVED_CHAIN.findall(text):
            rules = [each[:2] for each in _SAVED_RULE.findall(text) if each[2] == name]
            own = policy == "-"
            # A chain that is not built in begins with its name, and ends with a return.
            found += [(0, 0)] * own + [(int(a), int(b)) for a, b in rules]
            found.append(_NOT_SHOWN if own else (int(counts[0]), int(counts[1])))
        return [*found, (0, 0)]

    def read(self) -> Iterator[_Counts]:
        """The same as the agent finds them, which leaves them out."""
        with self.seen._asking() as asking:
            _, block = self.seen._fetched(asking)
        next_at, counts_at = self.seen._layout
        at = legacytable._HEADER.size
        # Behind the last counters is nothing but the end of an entry.
        *pieces, _ = legacytable._between(block, next_at, counts_at)
        for piece in pieces:
            at += struct.calcsize(f"={piece}")
            yield struct.unpack_from("=QQ", block, at - legacytable._COUNTS)

    def compare(self) -> int:
        """Has both say the same; of how many entries."""
        saved, read = self.saved(), list(self.read())
        with self.seen._asking() as asking:
            told = legacytable._INFO.unpack(self.seen._told(asking))
        assert told[-2] == len(read) == len(saved), (told, read, saved)
        wrong = [pair for pair in zip(read, saved) if pair[1] not in (pair[0], _NOT_SHOWN)]
        assert not wrong, wrong
        return len(read)

    def same(self) -> bool | None:
        """Whether it is what was looked at, closely."""
        return self.seen.is_same(closely=True)


def main(version: int) -> None:
    """Prints how much agreed."""
    table = Table(version)
    table.fill()
    entries = table.compare()
    for change in _CHANGES:
        table.seen.look()
        assert table.same() is True
        table.change(change)
        assert table.same() is False, change
        table.compare()
    table.seen.look()
    # Counts alone are no change.
    table.change("-Z")
    assert table.same() is True
    table.compare()
    print(f"IPv{version}: {entries} entries, {len(_CHANGES)} changes")


if __name__ == "__main__":
    main(int(sys.argv[1]))
