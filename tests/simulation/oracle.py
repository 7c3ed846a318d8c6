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
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, Family
from ipvs_node_agent.model.objects import Node, NodeNetwork, PodNetwork, Problem, Service, Snapshot
from ipvs_node_agent.rules.planner import Plan, plan
from ipvs_node_agent.rules.policy import pod_interfaces
from tests.simulation.search import Violation
from tests.support.faketable import BUILT_IN, Chains

OWN_CHAIN = re.compile(
    r"(IPVS_PREROUTING|IPVS_OUTPUT|IPVS_INPUT|NEW_PREROUTING|NEW_OUTPUT|IPVS_MARK_MASQ|IPVS_POSTROUTING)(-.*)?"
)
_DESTINATION = re.compile(r"-d (\S+)(?: -i \S+)?(?: -p (\w+)(?: -m \w+ --dport (\S+))?)?")
_PORTS = re.compile(r"--dport (\d+):(\d+)")
_COMMENT = re.compile(r'--comment "([^"]*)"')


@dataclass(frozen=True, eq=False)
class State:
    """Everything that the rules depend on; None for what is not known."""

    config: Config
    services: Mapping[str, Service] | None = None
    node: Node | None = None
    mode: str | None = None
    # What the node itself tells: None for what it has not told yet.
    addresses: frozenset[Address] | None = None
    api_servers: frozenset[tuple[Address, int]] | None = None
    pod_networks: frozenset[PodNetwork] = frozenset()
    routed: frozenset[tuple[str, Address]] = frozenset()
    absent: frozenset[int] = frozenset()

    @property
    def untold(self) -> bool:
        """Whether something has never been told."""
        return None in (self.services, self.addresses, self.api_servers)

    @property
    def lacking(self) -> bool:
        """Whether there is nothing to go by yet."""
        node = self.node
        if self.untold or node is None or not node.addresses:
            return True
        by_cidr = self.config.pod_cidrs is None and not self.pod_interfaces
        return by_cidr and not node.pod_cidrs

    @property
    def pod_interfaces(self) -> tuple[str, ...]:
        """The interfaces that lead to pods."""
        return pod_interfaces(self.config, self.node, self.pod_networks)

    @property
    def network(self) -> NodeNetwork:
        """What rules depend on of all that the node tells."""
        calico = "cali+" in self.pod_interfaces
        pods = {address for name, address in self.routed if calico and name.startswith("cali")}
        assert self.addresses is not None
        assert self.api_servers is not None
        return NodeNetwork(self.addresses, self.api_servers, frozenset(pods), absent=self.absent)

    @property
    def problems(self) -> frozenset[Problem]:
        """What is wrong with the Services and the Node as they were told."""
        of_node = self.node.problems if self.node is not None else ()
        of_services = (service.problems for service in (self.services or {}).values())
        return frozenset(of_node).union(*of_services)


# By built-in chain and target: jumps whose owner keeps bringing them to the front.
Insisting = AbstractSet[tuple[str, str]]


class Meaning(NamedTuple):
    """By built-in chain: where its first rules lead, and the rules that each destination meets."""

    first: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, Mapping[str, tuple[str, ...]]]


@functools.lru_cache(maxsize=2000)
def planned(state: State, family: Family, own_mark: bool, without: frozenset[str]) -> Plan:
    """What is wanted in `state`, but for the rules of the Services `without`."""
    services = dict(state.services or {}) if state.mode not in ("iptables", "nftables") else {}
    for key in without & services.keys():
        services[key] = services[key]._replace(skipped="the kernel")
    assert state.node is not None
    seen = Snapshot(services, state.node, state.network, state.pod_interfaces)
    return plan(state.config, seen, family, own_mark)


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


def written(text: str) -> Iterator[str]:
    """The agent's chains that a restore's input writes, whole or in part."""
    for line in text.split("\n"):
        name = line[1:].split(" ")[0] if line.startswith(":") else line[3:].split(" ")[0]
        if line.startswith((":", "-A ", "-I ", "-R ", "-D ")) and OWN_CHAIN.fullmatch(name):
            yield name


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


def meaning(chains: Chains, insisting: Insisting = frozenset()) -> Meaning:
    """What becomes of packets in a table whose agent's part is `chains`; see `place`."""
    first, rules = {}, {}
    for built_in in BUILT_IN:
        behind = chains.get(built_in, [])[place(chains, built_in, insisting) - 1 :]
        jumps = itertools.takewhile(_is_jump_to_own, behind)
        tops = tuple(rule[3:] for rule in jumps)
        if tops:
            first[built_in], rules[built_in] = tops, _met(chains, tops)
    return Meaning(first, rules)


def place(chains: Chains, built_in: str, insisting: Insisting = frozenset()) -> int:
    """Where the agent's jump belongs: behind Calico's, unless that takes a Service's address.

    Those who are `insisting` may stand in front as well, if they end no walk.
    """
    there = chains.get(built_in, ())
    others = (rule for rule in there if not _is_jump_to_own(rule))
    calico = f"cali-{built_in}"
    rules = [rule for own_rules in own(chains).values() for rule in own_rules]
    served = {
        found[1] for rule in rules if "comment" in rule and (found := _DESTINATION.search(rule))
    }
    taken = {found[1] for rule in chains.get(calico, ()) if (found := _DESTINATION.search(rule))}
    if taken & served:
        return 1
    harmless = {
        f"-j {target}"
        for at, target in insisting
        if at == built_in and not any(map(_ENDS.search, chains.get(target, ())))
    }
    left = itertools.takewhile(harmless.union([f"-j {calico}"]).__contains__, there)
    # To be there unheard of, it would have to come by a change that nothing shows.
    known = calico in chains
    calicos = sum(known for _ in itertools.takewhile(f"-j {calico}".__eq__, others))
    # Calico's may be said to insist as well.
    counted = {f"-j {calico}"} if known else set()
    return 1 + calicos + sum(1 for rule in left if rule in harmless - counted)


_ENDS = re.compile(r"(^| )(-j (?!RETURN\b|KUBE-MARK-MASQ\b)|-g )")


def keeps(before: Chains, now: Chains) -> bool:
    """Whether all that was there of ours still is, but for trials, which no packet meets."""
    left = _untried(now)
    return all(left.get(name) == rules for name, rules in _untried(before).items())


def _untried(chains: Chains) -> Chains:
    return {
        name: [rule for rule in rules if not rule.endswith("-probe")]
        for name, rules in own(chains).items()
        if not name.endswith("-probe")
    }


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
        # In another chain a run of ports may be two.
        run = _PORTS.search(rule)
        for port in range(int(run[1]), int(run[2]) + 1) if run else ("",):
            single = (
                text if not run else text.replace(run[0], f"--dport {port}")
                for text in (destination, rule)
            )
            found[next(single)].append(next(single))


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
    if not narrow[3]:
        return False
    (first, last), (low, high) = _range(wide[3]), _range(narrow[3])
    return first <= low <= high <= last


def _range(ports: str) -> tuple[int, int]:
    first, _, last = ports.partition(":")
    return int(first), int(last or first)


def with_rules(chains: Iterable[Iterable[str]]) -> frozenset[str]:
    """The Services that have a rule."""
    return frozenset(
        found[1] for rules in chains for rule in rules if (found := _COMMENT.search(rule))
    )
