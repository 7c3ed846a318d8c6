"""Follows a packet through nat chains given as text; tests/kernel/test_tracer.py proves it.

It reads rules by itself, with nothing of the program's own but the names of families, and counts
every rule that it looks at, as the kernel has to.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

MARK = "KUBE-MARK-MASQ"


class Packet(NamedTuple):
    """The first packet of a connection, and the interface that it comes in by.

    `local` says that its source is an address of the host.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    port: int = 80
    local: bool = False
    interface: str = ""


@dataclass
class Walk:
    """What a packet met: how many rules, which of them matched, and where it is sent to."""

    walked: int = 0
    matched: list[tuple[str, str]] = field(default_factory=list)
    marked: bool = False
    sent_to: str | None = None

    @property
    def fate(self) -> tuple[bool, str | None]:
        """Whether the packet is marked, and its new destination, None where it keeps its own."""
        return self.marked, self.sent_to


class _Rule(NamedTuple):
    source: tuple[int, int] | None
    destination: tuple[int, int] | None
    protocol: str
    ports: tuple[int, int] | None
    local: bool
    interface: str
    target: str
    sent_to: str


def trace(chains: Mapping[str, Sequence[str]], start: str, packet: Packet) -> Walk:
    """Lets `packet` walk from the chain `start` until its fate is decided or the chain ends."""
    source = int(ipaddress.ip_address(packet.source))
    address = ipaddress.ip_address(packet.destination)
    destination, bits = int(address), address.max_prefixlen
    walk = Walk()

    def matches(rule: _Rule) -> bool:
        return (
            _within(destination, rule.destination, bits)
            and _within(source, rule.source, bits)
            and rule.protocol in ("", packet.protocol)
            and (rule.ports is None or rule.ports[0] <= packet.port <= rule.ports[1])
            and (packet.local or not rule.local)
            and _is_by(packet.interface, rule.interface)
        )

    def visit(name: str) -> None:
        for text in chains[name]:
            rule = _parsed(text)
            walk.walked += 1
            if not matches(rule):
                continue
            walk.matched.append((name, text))
            if rule.target in chains:
                visit(rule.target)
            elif rule.target == "DNAT":
                walk.sent_to = rule.sent_to
            elif rule.target == MARK:
                walk.marked = True
            else:
                raise ValueError(f"a target that the tracer does not know: {text}")
            if walk.sent_to is not None:
                return

    visit(start)
    return walk


def _within(number: int, network: tuple[int, int] | None, bits: int) -> bool:
    return network is None or not (number ^ network[0]) >> (bits - network[1])


def _is_by(interface: str, wanted: str) -> bool:
    if wanted.endswith("+"):
        return interface.startswith(wanted[:-1])
    return wanted in ("", interface)


@lru_cache(maxsize=1 << 18)
def _parsed(text: str) -> _Rule:
    values: dict[str, str] = {}
    words = iter(shlex.split(text) if '"' in text else text.split(" "))
    for word in words:
        if word == "-m":
            next(words)
        else:
            values[word] = next(words)
    known = {"-s", "-d", "-i", "-p", "-j", "--dport", "--comment", "--src-type", "--to-destination"}
    if not values.keys() <= known or values.get("--src-type", "LOCAL") != "LOCAL":
        raise ValueError(f"a rule that the tracer does not know: {text}")
    ports = None
    if "--dport" in values:
        first, _, last = values["--dport"].partition(":")
        ports = int(first), int(last or first)
    return _Rule(
        _network(values.get("-s")),
        _network(values.get("-d")),
        values.get("-p", ""),
        ports,
        "--src-type" in values,
        values.get("-i", ""),
        values["-j"],
        values.get("--to-destination", ""),
    )


def _network(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    address, _, length = text.partition("/")
    return int(ipaddress.ip_address(address)), int(length)


def chains_of(lines: Iterable[str]) -> dict[str, list[str]]:
    """The chains in the lines of iptables-save."""
    chains: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(":"):
            chains[line[1:].split(" ")[0]] = []
        elif line.startswith("-A "):
            _, name, rule = line.split(" ", 2)
            chains.setdefault(name, []).append(rule)
    return chains
