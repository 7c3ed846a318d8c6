"""What the rules have to be, from nothing: the judge of what an agent does along the way.

All that a table may hold is what `plan` makes of some state, so the judge plans, each time from the
beginning. Two tables are compared by what becomes of packets, as the shape of a tree of chains may
lag behind: the rules that each destination meets, in their order, are what counts.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Node, Problem, Service, Snapshot
from ipvs_node_agent.rules.planner import Plan, plan
from tests.simulation.search import Violation
from tests.support.faketable import BUILT_IN, Chains

OWN_CHAIN = re.compile(
    r"(IPVS_PREROUTING|IPVS_OUTPUT|NEW_PREROUTING|NEW_OUTPUT|IPVS_MARK_MASQ|IPVS_POSTROUTING)(-.*)?"
)
_DESTINATION = re.compile(r"-d (\S+)(?: -p (\w+)(?: -m \w+ --dport (\S+))?)?")
_COMMENT = re.compile(r'--comment "([^"]*)"')


@dataclass(frozen=True, eq=False)
class State:
    """Everything that the rules depend on; None for what is not known."""

    config: Config
    services: Mapping[str, Service] | None = None
    node: Node | None = None
    mode: str | None = None

    @property
    def lacking(self) -> bool:
        """Whether there is nothing to go by yet."""
        node = self.node
        if self.services is None or node is None or not node.addresses:
            return True
        return self.config.pod_cidrs is None and not node.pod_cidrs

    @property
    def problems(self) -> frozenset[Problem]:
        """What is wrong with the Services and the Node as they were told."""
        of_node = self.node.problems if self.node is not None else ()
        of_services = (service.problems for service in (self.services or {}).values())
        return frozenset(of_node).union(*of_services)


class Meaning(NamedTuple):
    """By built-in chain: where its first rules lead, and the rules that each destination meets."""

    first: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, Mapping[str, tuple[str, ...]]]


@functools.lru_cache(maxsize=2000)
def planned(state: State, family: Family, own_mark: bool, without: frozenset[str]) -> Plan:
    """What is wanted in `state`, but for the rules of the Services `without`."""
    services = dict(state.services or {}) if state.mode not in ("iptables", "nftables") else {}
    for key in without & services.keys():
        services[key] = services[key]._replace(skipped=True)
    assert state.node is not None
    return plan(state.config, Snapshot(services, state.node), family, own_mark)


@functools.lru_cache(maxsize=2000)
def meant(state: State, family: Family, own_mark: bool, without: frozenset[str]) -> Meaning:
    """What becomes of packets where the table is as wanted in `state`."""
    ruleset = planned(state, family, own_mark, without).ruleset
    chains = {name: list(rules) for name, rules in ruleset.chains.items()}
    jumps = {built_in: [f"-j {target}"] for built_in, target in ruleset.jumps.items()}
    return meaning({**chains, **jumps})


def own(chains: Chains) -> Chains:
    """Those of the agent's."""
    return {name: rules for name, rules in chains.items() if OWN_CHAIN.fullmatch(name)}


def own_jumps(chains: Chains) -> dict[str, list[tuple[int, str]]]:
    """For each built-in chain the plain jumps to the agent's, with their places."""
    found = {
        built_in: [
            (place, rule[3:])
            for place, rule in enumerate(chains.get(built_in, ()), 1)
            if _is_jump_to_own(rule)
        ]
        for built_in in BUILT_IN
    }
    return {built_in: jumps for built_in, jumps in found.items() if jumps}


def foreign(chains: Chains) -> Chains:
    """All that is not the agent's."""
    return {
        name: [rule for rule in rules if name not in BUILT_IN or not _is_jump_to_own(rule)]
        for name, rules in chains.items()
        if not OWN_CHAIN.fullmatch(name)
    }


def meaning(chains: Chains) -> Meaning:
    """What becomes of packets in a table whose agent's part is `chains`."""
    first, rules = {}, {}
    for built_in in BUILT_IN:
        jumps = itertools.takewhile(_is_jump_to_own, chains.get(built_in, ()))
        tops = tuple(rule[3:] for rule in jumps)
        if tops:
            first[built_in], rules[built_in] = tops, _met(chains, tops)
    return Meaning(first, rules)


def keeps(before: Meaning, now: Meaning) -> bool:
    """Whether all that became of packets before becomes of them now."""
    return all(now.rules.get(at, {}) == rules for at, rules in before.rules.items())


def _is_jump_to_own(rule: str) -> bool:
    return rule.startswith("-j ") and OWN_CHAIN.fullmatch(rule[3:]) is not None


def _met(chains: Chains, tops: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for top in tops:
        _descend(chains, top, "", found)
    return {destination: tuple(rules) for destination, rules in found.items()}


def _descend(chains: Chains, name: str, within: str, found: dict[str, list[str]]) -> None:
    for rule in chains.get(name, ()):
        target = rule.rpartition("-j ")[2]
        if "comment" not in rule and OWN_CHAIN.fullmatch(target):
            if target.rpartition("-")[2] != "probe":
                _descend(chains, target, rule, found)
            continue
        matched = _DESTINATION.search(rule)
        destination = matched[0] if matched else ""
        if within and matched and not _inside(within, destination):
            raise Violation(f"the rule {rule!r} stands behind the jump {within!r}")
        found[destination].append(rule)


@functools.lru_cache(maxsize=50_000)
def _inside(jump: str, destination: str) -> bool:
    """Whether every packet to `destination` follows `jump`."""
    wide, narrow = _DESTINATION.search(jump), _DESTINATION.search(destination)
    assert wide is not None
    assert narrow is not None
    if not ipaddress.ip_network(narrow[1]).subnet_of(ipaddress.ip_network(wide[1])):  # type: ignore[arg-type]
        return False
    if wide[2] and wide[2] != narrow[2]:
        return False
    if not wide[3]:
        return True
    first, _, last = wide[3].partition(":")
    return bool(narrow[3]) and int(first) <= int(narrow[3]) <= int(last or first)


def with_rules(chains: Iterable[Iterable[str]]) -> frozenset[str]:
    """The Services that have a rule."""
    return frozenset(
        found[1] for rules in chains for rule in rules if (found := _COMMENT.search(rule))
    )
