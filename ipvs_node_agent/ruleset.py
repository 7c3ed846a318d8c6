"""One family's nat table as values: what is wanted, what was found, and the change between them.

A rule is the text that iptables-save prints after `-A CHAIN `, since a rule given in that very form
comes back byte for byte; comparing rules is comparing strings. Of other owners' rules only their
position relative to our jumps is read, and whether they refer to a chain of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Callable

Rules = tuple[str, ...]

_CHAIN_LINE = re.compile(r":(\S+) ")
# The overlap matters: a comment may be `-j`, which is printed without quotes.
_TARGETS = re.compile(r" -[jg](?= (\S+))")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class Ruleset:
    """The chains and jumps that are wanted.

    `jumps` names, for a built-in chain, the chain of ours that its first rule must jump to.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a nat table holds of ours.

    `jumps` lists, for a built-in chain, each plain jump to a chain of ours and its place, from 1.
    `foreign` are the names of all other chains; `held` are chains of ours that somebody else's
    rule refers to, which the kernel therefore does not let go.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Change:
    """The steps from what was found to what is wanted; falsy where there are none.

    `unhooked` has an entry for each copy of a jump that goes.
    """

    written: Mapping[str, Rules] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unhooked: tuple[tuple[str, str], ...] = ()
    hooked: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.written or self.dropped or self.unhooked or self.hooked)

    def restore_input(self) -> str:
        """The change as one input for `iptables-restore --noflush`, which applies it as one.

        Every chain is declared, and so emptied, before a rule is added; a dropped one is emptied
        and unhooked before it goes.
        """
        lines = ["*nat"]
        lines += [f":{name} - [0:0]" for name in sorted({*self.written, *self.dropped})]
        lines += [f"-D {built_in} -j {name}" for built_in, name in self.unhooked]
        for name in sorted(self.written):
            lines += [f"-A {name} {rule}" for rule in self.written[name]]
        lines += [f"-I {built_in} 1 -j {name}" for built_in, name in self.hooked]
        lines += [f"-X {name}" for name in self.dropped]
        return "\n".join([*lines, "COMMIT", ""])


def owner(names: frozenset[str]) -> Callable[[str], bool]:
    """Tells whether a chain is ours: one of `names`, or one split off from it (`NAME-...`)."""
    prefixes = tuple(f"{name}-" for name in names)
    return lambda chain: chain in names or chain.startswith(prefixes)


def parse_save(text: str, owns: Callable[[str], bool]) -> Found:
    """What `text`, printed by iptables-save for the nat table, holds of ours."""
    chains: dict[str, list[str]] = {}
    built_in: set[str] = set()
    foreign: set[str] = set()
    held: set[str] = set()
    jumps: dict[str, list[tuple[int, str]]] = {}
    positions: dict[str, int] = {}
    for line in _lines(text):
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            if chain in chains:
                chains[chain].append(rule)
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
    )


def _lines(text: str) -> Iterator[str]:
    """The lines of `text`; a line break inside quotes, as a comment may have, ends none."""
    pending = ""
    for part in text.split("\n"):
        line = pending + part
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
    written = {
        name: rules for name, rules in wanted.chains.items() if found.chains.get(name) != rules
    }
    dead = [name for name in sorted(found.chains) if name not in wanted.chains]
    dropped = tuple(name for name in dead if name not in found.held)
    # Somebody else's rule keeps the chain alive: emptied, it does no more than return.
    written.update({name: () for name in dead if name in found.held and found.chains[name]})
    unhooked: list[tuple[str, str]] = []
    hooked: list[tuple[str, str]] = []
    for built_in in sorted({*found.jumps, *wanted.jumps}):
        there, target = found.jumps.get(built_in, ()), wanted.jumps.get(built_in)
        if there == ((1, target),) or not (there or target):
            continue
        unhooked += [(built_in, chain) for _, chain in there]
        hooked += [(built_in, target)] if target else []
    return Change(written, dropped, tuple(unhooked), tuple(hooked))


def settled(found: Found, wanted: Ruleset) -> Found:
    """What the table holds once the difference between `found` and `wanted` is applied."""
    kept = {name: () for name in found.held & found.chains.keys() if name not in wanted.chains}
    return Found(
        chains={**kept, **wanted.chains},
        jumps={built_in: ((1, chain),) for built_in, chain in wanted.jumps.items()},
        foreign=found.foreign,
        held=found.held,
    )
