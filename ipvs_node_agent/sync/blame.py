"""Which Services' rules it is that the kernel refuses, where it takes those of all others.

Where the kernel does not name the line, it is asked about some of the rules at a time. They go into
chains that no packet reaches, so that nothing of what is in force changes while it is being asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Callable

from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN, owner, stem
from ipvs_node_agent.nat.ruleset import Change, Found, Rules, Ruleset
from ipvs_node_agent.nat.ruletext import service

# So many restores at most are tried to find out at one time.
_TRIES = 64
# The kernel judges only rules that a packet may come to, as far as it can tell. None is sent to
# the unspecified address: who connects to it connects to loopback.
_NOWHERE = {4: "0.0.0.0/32", 6: "::/128"}


def suspects(written: Mapping[str, Rules]) -> frozenset[str]:
    """The Services that have a rule in the chains that are `written`."""
    return frozenset(service(rule) for rules in written.values() for rule in rules) - {""}


def culprits(
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
    guilty: set[str] = set()
    for _ in range(_TRIES):
        if not groups:
            break
        group = groups.pop()
        if not group or takes(frozenset(group)):
            continue
        if len(group) == 1:
            guilty.update(group)
            continue
        middle = len(group) // 2
        groups += [group[middle:], group[:middle]]
    return frozenset(guilty), frozenset().union(*groups)


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
            hooked.append((built_in, top))
    change = Change(written, hooked=tuple(hooked), appended=appended)
    chains = {**found.chains, **written}
    chains.update({top: (*chains[top], *more) for top, more in appended.items()})
    jumps = dict(found.jumps)
    for built_in, top in hooked:
        behind = ((place + 1, chain) for place, chain in found.jumps.get(built_in, ()))
        jumps[built_in] = ((1, top), *behind)
    return change, replace(found, chains=chains, jumps=jumps)


def _rules_of(keys: frozenset[str], chains: Mapping[str, Rules], top: str) -> Iterator[str]:
    """The rules of the Services `keys` in the tree below the chain `top`."""
    below = owner(frozenset({top}))
    for name, rules in chains.items():
        if below(name):
            yield from (rule for rule in rules if service(rule) in keys)
