"""One family's nat table as values: what is wanted, what was found, and the change between them.

A rule is the text that iptables-save prints after `-A CHAIN `, since a rule given in that very form
comes back byte for byte; comparing rules is comparing strings. Of other owners' rules only their
position relative to our jumps is read, and whether they refer to a chain of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Callable

from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, stem

Rules = tuple[str, ...]

_CHAIN_LINE = re.compile(r":(\S+) ")
# The overlap matters: a comment may be `-j`, which is printed without quotes.
_TARGETS = re.compile(r" -[jg](?= (\S+))")
# So many chains in one input are worth an order that iptables likes.
_MANY = 64
# So many are what one input may hold before it is taken apart.
_PART = 2048
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class Ruleset:
    """The chains and jumps that are wanted.

    `jumps` names, for a built-in chain, the chain of ours that its first rule must jump to. It is
    the right one only where others have rules in all of the chains `needs`, and in none of
    `instead_of`.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, str] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    instead_of: frozenset[str] = frozenset()

    def fits(self, filled: frozenset[str]) -> bool:
        """Whether it is the right one where others have rules in the chains `filled`."""
        return self.needs <= filled and not self.instead_of & filled


@dataclass(frozen=True)
class Found:
    """What a nat table holds of ours.

    `jumps` lists, for a built-in chain, each plain jump to a chain of ours and its place, from 1.
    `foreign` are the names of all other chains, and `filled` of those that have a rule; `held` are
    chains of ours that somebody else's rule refers to, which the kernel therefore does not let go.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Change:
    """The steps from what was found to what is wanted; falsy where there are none.

    `unhooked` has an entry for each copy of a jump that goes; `new` are those of the written chains
    that were not there; `replaced` is what the written and dropped chains held. `repairs` says what
    others had done to the table (see `drift`) that it undoes. `appended` are rules that come behind
    those of a chain, which is not written anew.
    """

    written: Mapping[str, Rules] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unhooked: tuple[tuple[str, str], ...] = ()
    hooked: tuple[tuple[str, str], ...] = ()
    new: frozenset[str] = frozenset()
    replaced: Mapping[str, Rules] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    appended: Mapping[str, Rules] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.written or self.dropped or self.unhooked or self.hooked or self.appended)

    def parts(self) -> Iterator[Change]:
        """The change as several ones, to be applied in their order; mostly there is but one.

        Thousands of chains at once would take iptables-nft a time that grows with their square. All
        parts but the last only make chains that nothing jumps to yet, so the last is the change.
        """
        leaves = [name for name in self._leaves() if name in self.new]
        early = leaves[: len(leaves) // _PART * _PART]
        for start in range(0, len(early), _PART):
            names = early[start : start + _PART]
            yield Change({name: self.written[name] for name in names}, new=frozenset(names))
        done = frozenset(early)
        rest = {name: rules for name, rules in self.written.items() if name not in done}
        yield replace(self, written=rest, new=self.new - done)

    def restore_input(self) -> str:
        """The change as one input for `iptables-restore --noflush`, which applies it as one.

        Every chain is declared, and so emptied, before a rule jumps to it; a dropped one is emptied
        and unhooked before it goes.
        """
        lines = ["*nat"]
        leaves = self._leaves()
        for name in leaves:
            lines.append(f":{name} - [0:0]")
            lines += [f"-A {name} {rule}" for rule in self.written[name]]
        others = sorted(self.written.keys() - {*leaves})
        lines += [f":{name} - [0:0]" for name in sorted({*others, *self.dropped})]
        lines += [f"-D {built_in} -j {name}" for built_in, name in self.unhooked]
        for name in others:
            lines += [f"-A {name} {rule}" for rule in self.written[name]]
        for name, rules in self.appended.items():
            lines += [f"-A {name} {rule}" for rule in rules]
        lines += [f"-I {built_in} 1 -j {name}" for built_in, name in self.hooked]
        lines += [f"-X {name}" for name in self.dropped]
        return "\n".join([*lines, "COMMIT", ""])

    def _leaves(self) -> list[str]:
        """Written chains that jump to none of the others, names descending, where there are many.

        For each rule iptables-nft walks the sorted list of the chains it has met so far; with the
        last names first it is at the right place at once, which saves a third of a long restore.
        The chain of ours that marks comes before all of them, as they jump to it.
        """
        if len(self.written) < _MANY:
            return []
        others = self.written.keys() - {OWN_MARK_CHAIN}
        leaves = sorted(
            (
                name
                for name in others
                if not any(rule.rpartition(" -j ")[2] in others for rule in self.written[name])
            ),
            reverse=True,
        )
        return [OWN_MARK_CHAIN, *leaves] if OWN_MARK_CHAIN in self.written else leaves


def owner(names: frozenset[str]) -> Callable[[str], bool]:
    """Tells whether a chain is ours: one of `names`, or one split off from it (`NAME-...`)."""
    prefixes = tuple(f"{stem(name)}-" for name in names)
    return lambda chain: chain in names or chain.startswith(prefixes)


def parse_save(
    text: str, owns: Callable[[str], bool], expected: Mapping[str, Rules] = MappingProxyType({})
) -> Found:
    """What `text`, printed by iptables-save for the nat table, holds of ours.

    Rules that are as `expected` are the very same objects, and take no memory of their own.
    """
    chains: dict[str, list[str]] = {}
    built_in: set[str] = set()
    foreign: set[str] = set()
    held: set[str] = set()
    jumps: dict[str, list[tuple[int, str]]] = {}
    positions: dict[str, int] = {}
    for line in lines(text):
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            if chain in chains:
                rules, known = chains[chain], expected.get(chain, ())
                place = len(rules)
                same = place < len(known) and known[place] == rule
                rules.append(known[place] if same else rule)
                continue
            positions[chain] = positions.get(chain, 0) + 1
            for target in _targets(rule) & chains.keys():
                if chain in built_in and rule == f"-j {target}":
                    jumps.setdefault(chain, []).append((positions[chain], target))
                else:
                    held.add(target)
        elif declared := _CHAIN_LINE.match(line):
            name = declared[1]
            if owns(name):
                chains[name] = []
            else:
                # A chain of a user's own has no policy, and iptables-save prints a dash for it.
                (foreign if line.startswith(f":{name} - ") else built_in).add(name)
    return Found(
        chains={name: tuple(rules) for name, rules in chains.items()},
        jumps={name: tuple(found) for name, found in jumps.items()},
        foreign=frozenset(foreign),
        held=frozenset(held),
        filled=frozenset(foreign & positions.keys()),
    )


def lines(text: str) -> Iterator[str]:
    """The lines of a saved table; a line break inside quotes, as in a comment, ends none."""
    pending, start = "", 0
    # Not split at once, as forty thousand lines would all be in memory twice.
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = pending + text[start:end]
        start = end + 1
        if '"' in line and (line.count('"') % 2 or "\\" in line) and '"' in _QUOTED.sub("", line):
            pending = line + "\n"
        else:
            pending = ""
            yield line


def _targets(rule: str) -> set[str]:
    """The chains or targets that `rule` may go to, whatever its comments say."""
    return set(_TARGETS.findall(" " + _QUOTED.sub('""', rule)))


def difference(found: Found, wanted: Ruleset) -> Change:
    """What has to be done so that `found` becomes `wanted`; nothing that is right is touched."""
    written = {}
    for name, rules in wanted.chains.items():
        there = found.chains.get(name)
        # Mostly the very same object; comparing thousands of chains takes longer than a write.
        if there is not rules and there != rules:
            written[name] = rules
    dead = [name for name in sorted(found.chains) if name not in wanted.chains]
    dropped = tuple(name for name in dead if name not in found.held)
    # Somebody else's rule keeps the chain alive: emptied, it does no more than return.
    written.update({name: () for name in dead if name in found.held and found.chains[name]})
    unhooked: list[tuple[str, str]] = []
    hooked: list[tuple[str, str]] = []
    for built_in in sorted({*found.jumps, *wanted.jumps}):
        jumps, target = found.jumps.get(built_in, ()), wanted.jumps.get(built_in)
        if jumps == ((1, target),) or not (jumps or target):
            continue
        unhooked += [(built_in, chain) for _, chain in jumps]
        hooked += [(built_in, target)] if target else []
    new = frozenset(written.keys() - found.chains.keys())
    replaced = {name: found.chains[name] for name in (*written, *dropped) if name not in new}
    return Change(written, dropped, tuple(unhooked), tuple(hooked), new, replaced)


def differing(change: Change) -> Iterator[str]:
    """Each rule, chain and jump that `change` removes or adds, for people."""
    for name, rules in change.written.items():
        before = change.replaced.get(name, ())
        if name in change.new:
            yield f"+ chain {name}"
        wanted, there = frozenset(rules), frozenset(before)
        yield from (f"- {name} {rule}" for rule in before if rule not in wanted)
        yield from (f"+ {name} {rule}" for rule in rules if rule not in there)
    yield from (f"- chain {name}" for name in change.dropped)
    yield from (f"- {built_in} -j {name}" for built_in, name in change.unhooked)
    yield from (f"+ {built_in} -j {name} as its first rule" for built_in, name in change.hooked)


def settled(found: Found, wanted: Ruleset) -> Found:
    """What the table holds once the difference between `found` and `wanted` is applied."""
    kept = {name: () for name in found.held & found.chains.keys() if name not in wanted.chains}
    return Found(
        chains={**kept, **wanted.chains},
        jumps={built_in: ((1, chain),) for built_in, chain in wanted.jumps.items()},
        foreign=found.foreign,
        held=found.held,
        filled=found.filled,
    )
