"""Which Services' rules it is that the kernel refuses, where it takes those of all others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable

from ipvs_node_agent.ruleset import Rules

# So many restores at most are tried to find out; whoever is still suspected then stays out.
_TRIES = 64
_COMMENT = re.compile(r'-m comment --comment "([^"]*)"')


def service_of(rule: str) -> str:
    """The key of the Service that `rule` (or a line with it) is for; empty where it is none's."""
    found = _COMMENT.search(rule)
    return found[1] if found else ""


def suspects(wanted: Mapping[str, Rules], found: Mapping[str, Rules]) -> list[str]:
    """The Services that have a rule in `wanted` that is not among those of `found`."""
    known = {rule for rules in found.values() for rule in rules}
    new = (rule for rules in wanted.values() for rule in rules if rule not in known)
    return sorted({*map(service_of, new)} - {""})


def culprits(suspected: Iterable[str], works: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    """Those of `suspected` without which it works, and as few as can be told; nothing if it is not
    them.

    `works` tries without the Services it is given. After the end the last success is in force.
    """
    out = frozenset(suspected)
    if not out or not works(out):
        return frozenset()
    groups: list[Sequence[str]] = [sorted(out)]
    for _ in range(_TRIES):
        if not groups:
            break
        group = groups.pop()
        # A whole half is cleared by one success.
        if works(out - frozenset(group)):
            out -= frozenset(group)
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
    return out
