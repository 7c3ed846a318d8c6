"""The Services whose rules the kernel refuses in one family: who they are, and when to try again.

Where the kernel does not name the line, it is asked about some of the rules at a time. They go into
chains that no packet reaches, so that nothing of what is in force changes while it is being asked.

A Service is left out for as long as it is the very value that was refused and it is not its turn;
one that changes is tried at once. After a refusal it is tried again after 10 s, doubling to five
minutes; one that was only suspected, after a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Callable, NamedTuple

from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Problem, Service
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN, stem
from ipvs_node_agent.nat.ruleset import Change, Found, Ruleset
from ipvs_node_agent.nat.ruletext import Rules

_FIRST, _CAP = 10.0, 300.0
_SUSPECTED = 1.0
# So many restores at most are tried to find out at one time.
_TRIES = 64
# The kernel judges only rules that a packet may come to, as far as it can tell. None is sent to
# the unspecified address: who connects to it connects to loopback.
_NOWHERE = {4: "0.0.0.0/32", 6: "::/128"}


class Refusal(NamedTuple):
    """The kernel refuses the rules of the Services `refused`; `why` is its own word.

    Some of those that are `suspected` may be refused as well, and nobody knows yet which.
    """

    refused: frozenset[str]
    suspected: frozenset[str]
    why: str


class _Entry(NamedTuple):
    """`why` is what the kernel said of `service`, which is `out` until `again`, then tried.

    `delay` is how long it waits after the next refusal.
    """

    service: Service
    why: str
    delay: float
    again: float
    out: bool = True


class Refused:
    """Keeps count of them."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._entries: dict[str, _Entry] = {}

    def add(self, refusal: Refusal, services: Mapping[str, Service], now: float) -> None:
        """The kernel has just refused them as they are in `services`."""
        why = refusal.why
        for key in refusal.refused:
            last = self._entries.get(key)
            same = last is not None and last.service is services[key]
            delay = last.delay if last is not None and same else _FIRST
            self._entries[key] = _Entry(services[key], why, min(delay * 2, _CAP), now + delay)
        for key in refusal.suspected:
            self._entries[key] = _Entry(services[key], why, _FIRST, now + _SUSPECTED)

    def keep(self, services: Mapping[str, Service]) -> None:
        """Forgets those that are not in `services` as they were."""
        self._entries = {
            key: entry for key, entry in self._entries.items() if services.get(key) is entry.service
        }

    def try_again(self, now: float) -> None:
        """Leaves those out no longer whose turn it is."""
        for key, entry in self._entries.items():
            if entry.again <= now:
                self._entries[key] = entry._replace(out=False)

    @property
    def left_out(self) -> frozenset[str]:
        """Who gets no rules at the moment."""
        return frozenset(key for key, entry in self._entries.items() if entry.out)

    @property
    def known(self) -> frozenset[str]:
        """All of them, left out or being tried again."""
        return frozenset(self._entries)

    def taken(self) -> list[str]:
        """Those that were tried again and that the kernel has just taken; it forgets them."""
        taken = [key for key, entry in self._entries.items() if not entry.out]
        for key in taken:
            del self._entries[key]
        return taken

    @property
    def next_try(self) -> float:
        """When the next of those that are left out is to be tried again."""
        return min((each.again for each in self._entries.values() if each.out), default=math.inf)

    @property
    def problems(self) -> frozenset[Problem]:
        """What an operator should know of them."""
        text = f"its {self._family} rules are left out, trying again"
        return frozenset(
            Problem(key, "KernelRefused", f"{text}: {entry.why}")
            for key, entry in self._entries.items()
        )


# Who it is


def services_in(chains: Mapping[str, Rules]) -> frozenset[str]:
    """The Services that have a rule in `chains`."""
    return frozenset(ruletext.service(rule) for rules in chains.values() for rule in rules) - {""}


def refused_of(
    suspected: Iterable[Iterable[str]], takes: Callable[[frozenset[str]], bool]
) -> tuple[frozenset[str], frozenset[str]]:
    """Those of `suspected` whose rules the kernel does not take, and those of whom it is not known.

    `takes` asks it about the rules of some of them. They come in groups, the least suspected last;
    whole groups are asked about first. Where the kernel does not even take the rules of none, it is
    nobody's fault.
    """
    if not takes(frozenset()):
        return frozenset(), frozenset()
    groups: list[Sequence[str]] = [sorted(group) for group in suspected]
    refused: set[str] = set()
    for _ in range(_TRIES):
        if not groups:
            break
        group = groups.pop()
        if not group or takes(frozenset(group)):
            continue
        if len(group) == 1:
            refused.update(group)
            continue
        middle = len(group) // 2
        groups += [group[middle:], group[:middle]]
    return frozenset(refused), frozenset().union(*groups)


def probe(
    family: Family, wanted: Ruleset, found: Found, keys: frozenset[str]
) -> tuple[Change, Found]:
    """What asks the kernel about the rules of the Services `keys`, and what it makes of `found`.

    No packet comes to them, and no rule that is there is written again. What it leaves goes with
    the next write of what is `wanted`.
    """
    marking = {
        name: wanted.chains[name]
        for name in (OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN)
        if name in wanted.chains and name not in found.chains
    }
    written, appended, hooked = dict(marking), {}, []
    for built_in in ("PREROUTING", "OUTPUT"):
        top = wanted.jumps[built_in]
        name = f"{stem(top)}-probe"
        written[name] = tuple(_rules_of(keys, wanted.chains, top))
        jump = f"-d {_NOWHERE[family.version]} -j {name}"
        if top not in found.chains:
            written[top] = (jump,)
        elif jump not in found.chains[top]:
            appended[top] = (jump,)
        if top not in (target for _, target in found.jumps.get(built_in, ())):
            hooked.append((built_in, wanted.place(found, built_in), top))
    change = Change(written, hooked=tuple(hooked), appended=appended)
    chains = {**found.chains, **written}
    chains.update({top: (*chains[top], *more) for top, more in appended.items()})
    jumps = dict(found.jumps)
    for built_in, at, top in hooked:
        others = found.jumps.get(built_in, ())
        moved = ((place + (place >= at), chain) for place, chain in others)
        jumps[built_in] = tuple(sorted([(at, top), *moved]))
    return change, replace(found, chains=chains, jumps=jumps)


def _rules_of(keys: frozenset[str], chains: Mapping[str, Rules], top: str) -> Iterator[str]:
    """The rules of the Services `keys` in the tree below the chain `top`."""
    for name, rules in chains.items():
        if name == top or name.startswith(f"{stem(top)}-"):
            yield from (rule for rule in rules if ruletext.service(rule) in keys)
