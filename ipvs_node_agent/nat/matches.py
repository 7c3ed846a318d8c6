"""What a rule, whosever it is, asks of a packet: yes, no, or a match that is not known here.

A rule is the text that iptables-save prints. The matches that nat tables of Kubernetes nodes are
made of are known, each with its negation; any other is named where it would decide, which it does
not where the rest of the rule already says no.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Callable, NamedTuple, Optional

from ipvs_node_agent.nat.ruletext import QUOTED

_ALL_BITS = 0xFFFFFFFF
_WORD = re.compile(rf"(?:{QUOTED.pattern}(?=\s|\Z)|\S+)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}
# Of TCP's flags, the first packet of a connection has SYN alone.
_SYN = "SYN"
_FLAGS = frozenset({"FIN", _SYN, "RST", "PSH", "ACK", "URG"})


class Packet(NamedTuple):
    """The first packet of a connection; what is None is known of nobody.

    `local` says that its source is an address of this host, and `to_host` that its destination is.
    It comes in by `interface`, which is empty for one of the host's own, and leaves by `out`. It is
    marked with `mark`, but for the bits of `doubtful`.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    port: int | None = 80
    local: bool = False
    interface: str | None = ""
    to_host: bool | None = None
    out: str | None = None
    mark: int = 0
    doubtful: int = 0


# What a match says of a packet with a mark of which some bits are doubtful.
Match = Callable[[Packet, int, int], Optional[bool]]


class Rule(NamedTuple):
    """A rule as it is walked. Networks and ports are numbers, `others` all matches besides.

    `goes` is a goto. `marking` is which bits a MARK clears, and which it flips then; a CONNMARK
    `restores` where it changes the packet's mark. `unknown` says why nobody can tell whether it
    matches, where nobody can.
    """

    source: tuple[int, int] | None
    destination: tuple[int, int] | None
    protocol: str
    ports: tuple[int, int] | None
    others: tuple[Match, ...]
    target: str
    goes: bool
    to: str
    marking: tuple[int, int] | None
    restores: bool
    unknown: str

    def holds(self, packet: Packet, mark: int = 0, doubtful: int = 0) -> bool | None:
        """Whether it matches; None where that depends on what is not known."""
        if self.destination is not None:
            value, mask = self.destination
            if (_number(packet.destination) ^ value) & mask:
                return False
        if self.source is not None:
            value, mask = self.source
            if (_number(packet.source) ^ value) & mask:
                return False
        if self.protocol and self.protocol != packet.protocol:
            return False
        unsure = False
        if self.ports is not None:
            if packet.port is None:
                unsure = True
            elif not self.ports[0] <= packet.port <= self.ports[1]:
                return False
        for match in self.others:
            held = match(packet, mark, doubtful)
            if held is False:
                return False
            unsure = unsure or held is None
        return None if unsure else True


@lru_cache(maxsize=1 << 12)
def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@lru_cache(maxsize=1 << 18)
def parsed(text: str) -> Rule:
    """The rule that `text` is. Never raises: what cannot be read is a match that is not known."""
    made = _Reading()
    for option in _options(text):
        try:
            made.take(option)
        except (ValueError, IndexError):
            made.not_known(str(option))
    return made.rule()


class _Option(NamedTuple):
    """An option of a rule: of which match (`-m`), its name, its values, and whether negated."""

    match: str
    name: str
    values: Sequence[str]
    negated: bool

    def __str__(self) -> str:
        return " ".join(filter(None, (self.match, "!" * self.negated, self.name, *self.values)))


def _options(text: str) -> Iterator[_Option]:
    words = [found[0] for found in _WORD.finditer(text)]
    match, place = "", 0
    while place < len(words):
        negated = words[place] == "!"
        place += negated
        if place == len(words):
            return
        name = words[place]
        place += 1
        # A comment may look like an option.
        values = words[place : place + 1] if name == "--comment" else []
        place += len(values)
        while not values or name != "--comment":
            if place == len(words) or words[place] == "!" or words[place].startswith("-"):
                break
            values.append(words[place])
            place += 1
        if name == "-m":
            match = values[0] if values else ""
            yield _Option(match, name, values, negated)
        elif name in ("-j", "-g"):
            yield _Option("", name, [_plain(value) for value in values], negated)
            match = "target"
        else:
            yield _Option(match, name, [_plain(value) for value in values], negated)


def _plain(word: str) -> str:
    return _ESCAPED.sub(r"\1", word[1:-1]) if word.startswith('"') and len(word) > 1 else word


def _network(text: str) -> tuple[int, int]:
    """The number and the mask of ADDRESS/LENGTH or ADDRESS/MASK. Raises ValueError."""
    base, _, length = text.partition("/")
    address = ipaddress.ip_address(base)
    bits = address.max_prefixlen
    whole = (1 << bits) - 1
    if "." in length or ":" in length:
        mask = int(ipaddress.ip_address(length))
    else:
        mask = whole ^ (whole >> int(length or bits))
    return int(address) & mask, mask


def _range(text: str, separator: str = ":") -> tuple[int, int]:
    first, _, last = text.partition(separator)
    return int(first), int(last or first)


def _valued(text: str) -> tuple[int, int]:
    """The number and the mask of VALUE/MASK, as marks are printed. Raises ValueError."""
    value, _, mask = text.partition("/")
    return int(value, 16), int(mask, 16) if mask else _ALL_BITS


def is_by(interface: str, wanted: str) -> bool:
    """Whether a rule that asks for the interface `wanted` means this one."""
    return interface.startswith(wanted[:-1]) if wanted.endswith("+") else interface == wanted


class _Reading:
    """A rule that is being read, option by option."""

    def __init__(self) -> None:
        self._source: tuple[int, int] | None = None
        self._destination: tuple[int, int] | None = None
        self._protocol = ""
        self._ports: tuple[int, int] | None = None
        self._others: list[Match] = []
        self._target, self._goes, self._to = "", False, ""
        self._marking: tuple[int, int] | None = None
        self._restores = False
        self._unknown: list[str] = []

    def rule(self) -> Rule:
        """What was read."""
        named = ", ".join(self._unknown)
        return Rule(
            self._source,
            self._destination,
            self._protocol,
            self._ports,
            tuple(self._others),
            self._target,
            self._goes,
            self._to,
            self._marking,
            self._restores,
            f"has the match {named}, which is not known here"
            if named
            else "depends on more than is known of the packet",
        )

    def take(self, option: _Option) -> None:
        """Reads one option. Raises ValueError or IndexError where it cannot be read."""
        match, name, values, negated = option
        if name == "-m":
            if match not in _KNOWN:
                self.not_known(match)
        elif match and match not in _KNOWN:
            # It is of a match that is not known already.
            self._unknown[-1] += f" {option._replace(match='')}"
        elif match == "comment":
            return
        elif match == "target":
            self._of_target(name, values)
        elif name in ("-j", "-g"):
            self._target, self._goes = values[0], name == "-g"
        elif name in ("-s", "-d"):
            self._address(name, _network(values[0]), negated)
        elif name in ("-i", "-o"):
            self._add(_interface(name == "-o", values[0]), negated)
        elif name == "-p":
            protocol = _PROTOCOLS.get(values[0], values[0])
            if negated:
                self._add(lambda packet, *_: packet.protocol == protocol, negated)
            else:
                self._protocol = protocol
        elif name == "--dport" and not negated and self._ports is None:
            self._ports = _range(values[0])
        elif (read := _MATCHES.get((match, name))) is not None:
            self._add(read(values), negated)
        else:
            self.not_known(str(option))

    def not_known(self, name: str) -> None:
        """Takes note of a match that nobody here can tell."""
        self._unknown.append(name)
        self._others.append(lambda *_: None)

    def _add(self, match: Match, negated: bool) -> None:
        def opposite(packet: Packet, mark: int, doubtful: int) -> bool | None:
            held = match(packet, mark, doubtful)
            return None if held is None else not held

        self._others.append(opposite if negated else match)

    def _address(self, name: str, network: tuple[int, int], negated: bool) -> None:
        value, mask = network
        if not negated:
            if name == "-s":
                self._source = network
            else:
                self._destination = network
            return

        def match(packet: Packet, _mark: int, _doubtful: int) -> bool:
            address = packet.source if name == "-s" else packet.destination
            return not (_number(address) ^ value) & mask

        self._add(match, negated)

    def _of_target(self, name: str, values: Sequence[str]) -> None:
        if name in ("--to-destination", "--to-source", "--to-ports"):
            self._to = values[0]
        elif name == "--set-xmark":
            value, mask = _valued(values[0])
            self._marking = mask, value
        elif name == "--restore-mark":
            self._restores = True


def _interface(out: bool, wanted: str) -> Match:
    def match(packet: Packet, _mark: int, _doubtful: int) -> bool | None:
        there = packet.out if out else packet.interface
        return None if there is None else is_by(there, wanted)

    return match


def _dport(values: Sequence[str]) -> Match:
    first, last = _range(values[0])
    return _among([(first, last)])


def _dports(values: Sequence[str]) -> Match:
    return _among([_range(each) for each in values[0].split(",")])


def _among(ranges: Sequence[tuple[int, int]]) -> Match:
    def match(packet: Packet, _mark: int, _doubtful: int) -> bool | None:
        port = packet.port
        return None if port is None else any(first <= port <= last for first, last in ranges)

    return match


def _address_type(to: bool) -> Callable[[Sequence[str]], Match]:
    def read(values: Sequence[str]) -> Match:
        kinds = set(values[0].split(","))

        def match(packet: Packet, _mark: int, _doubtful: int) -> bool | None:
            is_local = packet.to_host if to else packet.local
            if kinds == {"LOCAL"}:
                return is_local
            return True if is_local and "LOCAL" in kinds else None

        return match

    return read


def _state(values: Sequence[str]) -> Match:
    # Of a first packet; whether it was translated, none of the tables here tells.
    states = set(values[0].split(","))
    held = True if "NEW" in states else None if states & {"DNAT", "SNAT"} else False
    return lambda *_: held


def _marked(values: Sequence[str]) -> Match:
    value, mask = _valued(values[0])

    def match(_packet: Packet, mark: int, doubtful: int) -> bool | None:
        if (mark ^ value) & mask & ~doubtful:
            return False
        return None if doubtful & mask else True

    return match


def _flags(values: Sequence[str]) -> Match:
    looked_at, wanted = (
        _FLAGS if value == "ALL" else {*value.split(",")} - {"NONE"} for value in values[:2]
    )
    held = looked_at & {_SYN} == wanted
    return lambda *_: held


# kube-proxy's, of endpoints that are reached by themselves: by definition nobody else is in it.
_LOOP_BACK = re.compile(r"KUBE-(6-)?LOOP-BACK")


def _in_set(values: Sequence[str]) -> Match:
    if not _LOOP_BACK.fullmatch(values[0]):
        raise ValueError("what is in it cannot be told")
    return lambda packet, *_: None if packet.source == packet.destination else False


_MATCHES: dict[tuple[str, str], Callable[[Sequence[str]], Match]] = {
    **{(protocol, "--dport"): _dport for protocol in ("tcp", "udp", "sctp")},
    ("tcp", "--tcp-flags"): _flags,
    ("multiport", "--dports"): _dports,
    ("addrtype", "--src-type"): _address_type(to=False),
    ("addrtype", "--dst-type"): _address_type(to=True),
    ("conntrack", "--ctstate"): _state,
    ("state", "--state"): _state,
    ("mark", "--mark"): _marked,
    ("set", "--match-set"): _in_set,
}
_KNOWN = {"comment", "target", "tcp", "udp", "sctp"} | {match for match, _ in _MATCHES}
