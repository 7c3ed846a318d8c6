"""What is known of a table, put right where a few of its chains have become others.

It is the same as what the whole table would give, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Callable, Optional, TypeVar

from ipvs_node_agent.nat.chains import BUILT_IN_CHAINS
from ipvs_node_agent.nat.hooks import hooks
from ipvs_node_agent.nat.ruleset import Found
from ipvs_node_agent.nat.ruletext import Rules

T = TypeVar("T")

# The rules of some chains; None of one that is gone.
Amendment = Mapping[str, Optional[Rules]]


def amended(
    found: Found,
    there: Amendment,
    owns: Callable[[str], bool],
    expected: Mapping[str, Rules] = MappingProxyType({}),
) -> Found | None:
    """What the table holds that held `found`, since `there` is what these chains have become.

    None where it takes the whole table to tell. Chains that are as `expected` are the very same
    objects.
    """
    if not all(name in found.chains if owns(name) else name in BUILT_IN_CHAINS for name in there):
        return None
    chains = dict(found.chains)
    for name, rules in there.items():
        if not owns(name):
            continue
        if rules is None:
            del chains[name]
        else:
            chains[name] = expected[name] if expected.get(name) == rules else rules
    jumps, ahead = dict(found.jumps), dict(found.ahead)
    judged = {other.target: other for others in found.ahead.values() for other in others}
    for name in there.keys() - found.chains.keys():
        says = hooks(there[name] or (), chains.keys(), found.foreign)
        known = all(target in judged for _, target in says.leading)
        # Whose rules they are that refer to ours otherwise is not known.
        if there[name] is None or says.referenced or found.referenced or not known:
            return None
        _put(jumps, name, says.jumps)
        _put(ahead, name, tuple(judged[to]._replace(rule=rule) for rule, to in says.leading))
    # The kernel lets go of no chain that is referred to.
    return replace(
        found,
        chains=chains,
        jumps=jumps,
        ahead=ahead,
        referenced=found.referenced.intersection(chains),
    )


def _put(values: dict[str, tuple[T, ...]], name: str, value: tuple[T, ...]) -> None:
    values.pop(name, None)
    if value:
        values[name] = value
