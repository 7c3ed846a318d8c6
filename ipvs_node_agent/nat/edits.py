"""A chain put right by its rules that differ, in place of writing all of them again.

Of a chain that is written anew, the kernel frees every rule, makes it again, and tells every
listener of both; its counters start from nothing. A Service that comes, goes or changes is a few
rules next to each other, in one place of a chain.

Places are counted, so this is only right where the chain is certain to hold what it is taken for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile, zip_longest
from typing import NamedTuple

from ipvs_node_agent.nat.ruletext import Rules, service, target

# So many Services are looked for in each rule's text before it is read.
_FEW = 8


class Edit(NamedTuple):
    """The rules `come` take the place of `gone`, the first of which is number `place`, from 1.

    A rule that is the same in both, and in the same place, stays.
    """

    place: int
    gone: Rules
    come: Rules

    @property
    def written(self) -> Rules:
        """Those that come and do not stay."""
        return _differing(self.come, self.gone)

    @property
    def lost(self) -> Rules:
        """Those that go and do not stay."""
        return _differing(self.gone, self.come)

    def commands(self, chain: str) -> Iterator[str]:
        """The lines for iptables-restore."""
        both = min(len(self.gone), len(self.come))
        after = self.place + both
        for number, rules in enumerate(zip(self.gone, self.come), self.place):
            if rules[0] != rules[1]:
                yield f"-R {chain} {number} {rules[1]}"
        for number, rule in enumerate(self.come[both:], after):
            yield f"-I {chain} {number} {rule}"
        for _ in self.gone[both:]:
            yield f"-D {chain} {after}"


def edit(there: Rules, wanted: Rules) -> Edit | None:
    """What makes `wanted` of the rules that are `there`; None where to write all is better.

    That is where most of them differ, or where a Service would keep the counters of some of its
    rules and lose those of others.
    """
    before = _alike(zip(there, wanted))
    most = min(len(there), len(wanted)) - before
    after = min(most, _alike(zip(reversed(there), reversed(wanted))))
    gone, come = there[before : len(there) - after], wanted[before : len(wanted) - after]
    if 2 * max(len(gone), len(come)) > len(wanted):
        return None
    found = Edit(before + 1, gone, come)
    stay = [rule for rule, other in zip(come, gone) if rule == other]
    kept = (*wanted[:before], *stay, *wanted[len(wanted) - after :])
    changed = counted((*found.lost, *found.written))
    if counted(_naming(kept, changed)) & changed:
        return None
    return found


def counted(rules: Iterable[str]) -> set[str]:
    """The Services whose packets are counted at `rules`."""
    return {service(rule) for rule in rules if target(rule) == "DNAT"}


def _naming(rules: Rules, services: set[str]) -> Rules:
    """Those of `rules` that may be for one of `services`; to read each takes longer than all else.

    But not where there are many to look for.
    """
    if len(services) > _FEW:
        return rules
    return tuple(rule for rule in rules if any(key in rule for key in services))


def _differing(rules: Rules, others: Rules) -> Rules:
    """Those of `rules` that are not in the same place of `others`."""
    pairs = zip_longest(rules, others)
    return tuple(rule for rule, other in pairs if rule is not None and rule != other)


def _alike(pairs: Iterable[tuple[str, str]]) -> int:
    """How many of `pairs` are of two alike, until the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
