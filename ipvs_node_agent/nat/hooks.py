"""What a built-in chain says of ours: where it jumps to them, and who stands there first."""

from __future__ import annotations

from collections.abc import Container, Iterable, Set
from typing import NamedTuple

from ipvs_node_agent.nat.ahead import MOST_JUMPS, may_stand_before
from ipvs_node_agent.nat.ruletext import targets


class Hooks(NamedTuple):
    """What one built-in chain says.

    `jumps` are its plain jumps to chains of ours, each with its place, from 1, and `leading` the
    jumps that it begins with to chains of others behind whom ours may stand: the rule, and the
    chain. `referenced` are chains of ours that its other rules lead to.
    """

    jumps: tuple[tuple[int, str], ...]
    leading: tuple[tuple[str, str], ...]
    referenced: frozenset[str]


def hooks(rules: Iterable[str], ours: Set[str], foreign: Container[str]) -> Hooks:
    """What these `rules` of a built-in chain say, where the chains `ours` and `foreign` are."""
    jumps: list[tuple[int, str]] = []
    leading: list[tuple[str, str]] = []
    referenced: set[str] = set()
    leads = True
    for place, rule in enumerate(rules, 1):
        for target in targets(rule) & ours:
            if rule == f"-j {target}":
                jumps.append((place, target))
            else:
                referenced.add(target)
        if leads:
            other = may_stand_before(rule, foreign)
            if other and len(leading) < MOST_JUMPS:
                leading.append((rule, other))
            else:
                leads = rule[3:] in ours
    return Hooks(tuple(jumps), tuple(leading), frozenset(referenced))
