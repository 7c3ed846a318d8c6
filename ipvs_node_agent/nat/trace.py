"""A packet's walk through a table as the kernel has it: whosever the rules are, and where it ends.

The first packet of a connection starts in a built-in chain. Each rule is looked at in turn; where
all of its matches hold, its target is followed, until something ends the walk or the built-in
chain does. What rules ask for is told in `matches`.

What is not known here is never guessed. A match that nobody here can tell holds for some packets
and not for others, so both ways are walked on: what may end the walk there is one of its possible
`ends`, and it goes on as well. Where all ends are the same, it does not matter; where they are not,
the walk says which rule it could not tell. So a rule on a set of kube-proxy's that leads to a chain
that only marks does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ipvs_node_agent.nat.matches import Packet, Rule, parsed
from ipvs_node_agent.nat.saveformat import lines

# How a walk may end, besides by these targets' own names.
POLICY, UNKNOWN = "policy", "unknown"
_ENDS = frozenset({"DNAT", "SNAT", "MASQUERADE", "REDIRECT", "ACCEPT", "DROP", "REJECT"})
# They let a packet go on with the next rule, and change nothing that a rule of nat may ask for.
_HARMLESS = frozenset({"", "CONNMARK", "LOG", "NFLOG", "SET", "TRACE", "AUDIT", "TEE", "CHECKSUM"})
_ALL_BITS = 0xFFFFFFFF
# The kernel lets jumps go 16 deep. Whoever has more rules than these can be walked by nobody.
_DEEPEST, _MOST_RULES = 64, 1 << 17
_RULE = re.compile(r"(?:\[(\d+):\d+\] )?-A (\S+) ?(.*)", re.DOTALL)
_CHAIN = re.compile(r":(\S+) (\S+)")


@dataclass(frozen=True)
class Table:
    """A table: the rules of its chains, the packets that each has counted, built-in's policies."""

    chains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    packets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)


class Step(NamedTuple):
    """A rule that a packet meets: its place in its chain, from 1.

    `doubt` is what of it nobody here can tell, or why it may not have been reached at all; it is
    empty where the rule matches for certain.
    """

    chain: str
    place: int
    rule: str
    doubt: str = ""


class End(NamedTuple):
    """Where a walk may end: by which target, and where that sends the packet `to`.

    `why` is what is not known, where that is why it ends. `unsure` is the rule of which nobody can
    tell whether it leads here; None where whoever ends nowhere before ends here.
    """

    kind: str
    to: str = ""
    step: Step | None = None
    why: str = ""
    unsure: Step | None = None

    @property
    def fate(self) -> tuple[str, str]:
        """What becomes of the packet: a policy of ACCEPT is as the target."""
        return (
            ("ACCEPT", "") if (self.kind, self.to) == (POLICY, "ACCEPT") else (self.kind, self.to)
        )


@dataclass
class Walk:
    """What a packet met: the rules that match, how many were looked at, and where it may end.

    `mark` is what it is marked with in the end, but for the bits of `doubtful`.
    """

    walked: int = 0
    steps: list[Step] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    mark: int = 0
    doubtful: int = 0

    @property
    def matched(self) -> list[tuple[str, str]]:
        """The rules that match for certain, by their chains."""
        return [(step.chain, step.rule) for step in self.steps if not step.doubt]

    @property
    def end(self) -> End:
        """Where it ends; of the kind `UNKNOWN` where that cannot be told."""
        if len({end.fate for end in self.ends}) == 1:
            return self.ends[-1]
        # Several ends there are only behind what is not known.
        doubted = next(end.unsure for end in self.ends if end.unsure is not None)
        return End(UNKNOWN, step=doubted, why=doubted.doubt)

    @property
    def sent_to(self) -> str | None:
        """Where a translation sends it; None where it keeps its destination."""
        return self.end.to if self.end.kind == "DNAT" else None

    def marked(self, bits: int) -> bool | None:
        """Whether it is marked with all of `bits`; None where that cannot be told."""
        return None if self.doubtful & bits else self.mark & bits == bits


def read(text: str) -> Table:
    """The table that iptables-save printed, with `-c` or without."""
    chains: dict[str, list[str]] = {}
    packets: dict[str, list[int]] = {}
    policies: dict[str, str] = {}
    for line in lines(text):
        if (found := _RULE.fullmatch(line)) is not None:
            chains.setdefault(found[2], []).append(found[3])
            packets.setdefault(found[2], []).append(int(found[1] or 0))
        elif (found := _CHAIN.match(line)) is not None:
            chains.setdefault(found[1], [])
            if found[2] != "-":
                policies[found[1]] = found[2]
    return Table(chains, packets, policies)


def chains_of(saved: Iterable[str]) -> dict[str, Sequence[str]]:
    """The chains in the lines of iptables-save."""
    return dict(read("\n".join(saved)).chains)


def trace(
    chains: Mapping[str, Sequence[str]], start: str, packet: Packet, policy: str = "ACCEPT"
) -> Walk:
    """The walk of `packet` from the chain `start`, whose end means `policy`."""
    walker = _Walker(chains, packet)
    if not walker.visit(start, 0, None):
        walker.walk.ends.append(End(POLICY, policy))
    return walker.walk


class _Walker:
    def __init__(self, chains: Mapping[str, Sequence[str]], packet: Packet) -> None:
        self._chains, self._packet = chains, packet
        self.walk = Walk(mark=packet.mark, doubtful=packet.doubtful)

    def visit(self, name: str, depth: int, unsure: Step | None) -> bool:
        """Walks the chain `name`; whether the packet cannot come back from it.

        Of `unsure`, nobody can tell whether it has the packet come here at all.
        """
        walk, may_return = self.walk, False
        for place, text in enumerate(self._chains[name], 1):
            if walk.walked >= _MOST_RULES or depth > _DEEPEST:
                why = "leads into chains that are too long to follow"
                step = Step(name, place, text, why)
                walk.ends.append(End(UNKNOWN, step=step, why=why, unsure=unsure))
                return True
            walk.walked += 1
            rule = parsed(text)
            held = rule.holds(self._packet, walk.mark, walk.doubtful)
            if held is False:
                continue
            step = Step(name, place, text, "" if held else rule.unknown)
            here = unsure or (None if held else step)
            walk.steps.append(step._replace(doubt=here.doubt) if here else step)
            gone, passes = False, rule.target == "RETURN"
            if rule.target in self._chains:
                gone = self.visit(rule.target, depth + 1, here)
                # Who comes back from a goto has passed by the rest of this chain.
                passes = rule.goes and not gone
            elif not passes:
                gone = self._applies(rule, here)
            if held and (gone or passes):
                return gone and not may_return
            if passes:
                may_return, unsure = True, here
        return False

    def _applies(self, rule: Rule, unsure: Step | None) -> bool:
        """What a target does that is no chain; whether the walk of a packet that matches ends."""
        walk, target = self.walk, rule.target
        if target == "MARK" and rule.marking is not None and not unsure:
            clears, flips = rule.marking
            walk.mark = (walk.mark & ~clears & _ALL_BITS) ^ flips
            walk.doubtful &= ~clears
        elif target == "MARK" or (target == "CONNMARK" and rule.restores):
            clears, flips = rule.marking or (_ALL_BITS, 0)
            walk.doubtful |= clears | flips
        elif target in _ENDS:
            walk.ends.append(End(target, rule.to, walk.steps[-1], unsure=unsure))
            return True
        elif target not in _HARMLESS:
            why = f"has the target {target}, which is not known"
            walk.ends.append(End(UNKNOWN, target, walk.steps[-1], why, unsure))
            return True
        return False


def masquerades(table: Table, packet: Packet) -> bool | None:
    """Whether POSTROUTING gives `packet` another source; None where that cannot be told."""
    walk = trace(table.chains, "POSTROUTING", packet) if "POSTROUTING" in table.chains else Walk()
    kinds = {end.kind in ("MASQUERADE", "SNAT") for end in walk.ends} or {False}
    return kinds.pop() if len(kinds) == 1 else None


def marked_by(table: Table) -> int:
    """The bits that some rule of `table` may change in a packet's mark."""
    bits = 0
    for rule in (parsed(text) for rules in table.chains.values() for text in rules):
        if rule.target == "MARK" or (rule.target == "CONNMARK" and rule.restores):
            clears, flips = rule.marking or (_ALL_BITS, 0)
            bits |= clears | flips
    return bits


def leads_to(chains: Mapping[str, Sequence[str]], start: str) -> Iterator[str]:
    """The chains that can be got to from `start`, itself first."""
    reached, left = {start}, [start]
    while left:
        name = left.pop()
        yield name
        for text in chains.get(name, ()):
            target = parsed(text).target
            if target in chains and target not in reached:
                reached.add(target)
                left.append(target)
