"""What is wanted in one family's nat table, kept up to date Service by Service.

A `Planner` is filled once and then told each change; what it plans depends on the Services alone,
and not on the way there, once it is settled. `plan` is the same in one step, and a `Replanner` goes
from one `Basis` to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, Family, show_address
from ipvs_node_agent.model.objects import (
    NO_NETWORK,
    Node,
    NodeNetwork,
    Problem,
    Service,
    Snapshot,
)
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.claims import Claims
from ipvs_node_agent.rules.destinations import Entries
from ipvs_node_agent.rules.dispatch import Tree
from ipvs_node_agent.rules.render import MARK_CHAINS, MARK_JUMPS, MOST_RULES, Writer

# What says that a Service is left alone whose rules the kernel refuses.
HELD_BACK = "the kernel, which refuses its rules"


@dataclass(frozen=True)
class Plan:
    """What is wanted in one family's nat table, and what was asked for and is refused."""

    ruleset: Ruleset
    problems: tuple[Problem, ...]


class Basis(NamedTuple):
    """All that one family's rules depend on; it never changes.

    `left_out` are the Services that get no rules since the kernel refuses them. With `own_mark` the
    node lacks the chain of Kubernetes' that marks, and we bring one of our own. `network` is the
    node's, and `pod_interfaces` lead to its pods, where they are not known by pod CIDR. `behind`
    are jumps of others that insist on being first (see `Ruleset`).
    """

    config: Config
    node: Node
    services: Services
    left_out: frozenset[str] = frozenset()
    own_mark: bool = False
    network: NodeNetwork = NO_NETWORK
    pod_interfaces: tuple[str, ...] = ()
    behind: frozenset[tuple[str, str]] = frozenset()

    @property
    def frame(self) -> tuple[Config, Node, bool, tuple[str, ...], frozenset[int]]:
        """What all rules depend on alike."""
        return self.config, self.node, self.own_mark, self.pod_interfaces, self.network.absent

    def planned(self, key: str) -> Service | None:
        """The Service as it is to be planned."""
        service = self.services.get(key)
        if service is None or key not in self.left_out:
            return service
        # As one that the user wants left alone: it still guards its ClusterIPs and ports.
        return service._replace(skipped=HELD_BACK)


class Planner:
    """Plans for one family and what is the same for all Services of a `basis`."""

    def __init__(self, basis: Basis, family: Family) -> None:
        config, node, own_mark = basis.config, basis.node, basis.own_mark
        names = config.chains
        self._limit = names.services_per_chain
        self._claims = Claims(config, node, family, basis.network)
        self._own_mark, self._kubernetes_mark = own_mark, frozenset({names.mark_masquerade})
        marking = OWN_MARK_CHAIN if own_mark else names.mark_masquerade
        is_absent = family.version in basis.network.absent
        self._writer = Writer(config, node, family, marking, basis.pod_interfaces, is_absent)
        self._tree = Tree(family, (names.prerouting, names.output), self._limit)
        self._jumps = {"PREROUTING": names.prerouting, "OUTPUT": names.output}
        # What became of each address: who has rules for it, and who was refused it.
        self._served: dict[Address, tuple[str, ...]] = {}
        self._refused: dict[Address, tuple[Problem, ...]] = {}
        # For how many addresses a Service has rules.
        self._addresses: Counter[str] = Counter()

    def fill(self, services: Iterable[Service]) -> None:
        """Takes in all Services at once, which is faster than one by one."""
        for service in services:
            self._claims.replace(None, service)
        entries: Entries = {}
        for address in self._claims:
            entries.update(self._entries(address))
        self._tree.fill(entries)

    def replace(self, old: Service | None, new: Service | None) -> None:
        """Takes in that a Service changed, came (`old` is None) or went (`new` is None)."""
        self._place(self._claims.replace(old, new))

    def move(self, network: NodeNetwork) -> None:
        """Takes in that the node's network is another one."""
        self._place(self._claims.move(network))

    def _place(self, addresses: Iterable[Address]) -> None:
        for address in sorted(addresses, key=int):
            self._tree.place(address, self._entries(address))

    @property
    def served(self) -> Mapping[Address, tuple[str, ...]]:
        """The addresses that have rules, and the Services that they are for; a copy."""
        return self._served.copy()

    def holders(self, address: Address) -> tuple[str, ...]:
        """The Services that have rules for `address`."""
        return self._served.get(address, ())

    @property
    def services(self) -> int:
        """How many Services have rules."""
        return len(self._addresses)

    def has_rules(self, key: str) -> bool:
        """Whether the Service `key` has rules for any address."""
        return key in self._addresses

    @property
    def loose(self) -> bool:
        """Whether `settle` might change the plan."""
        return self._tree.loose

    def settle(self) -> None:
        """Splits chains that have become too long, and joins short ones."""
        self._tree.settle()

    def plan(self, behind: frozenset[tuple[str, str]] = frozenset()) -> Plan:
        """What is wanted now; see `Basis` for `behind`."""
        problems = tuple(sorted(p for found in self._refused.values() for p in found))
        if not (self._writer.has_family or self._served):
            # The node is not in this family: not even an empty chain belongs there.
            return Plan(Ruleset(), problems)
        chains = self._tree.chains(flat=self._tree.weight <= self._limit)
        ruleset = Ruleset(chains, self._jumps, addresses=frozenset(self._served), behind=behind)
        if self._served and self._own_mark:
            ruleset = replace(
                ruleset,
                chains={**chains, **MARK_CHAINS},
                jumps={**self._jumps, **MARK_JUMPS},
                instead_of=self._kubernetes_mark,
            )
        elif self._served:
            ruleset = replace(ruleset, needs=self._kubernetes_mark)
        return Plan(ruleset, problems)

    def _entries(self, address: Address) -> Entries:
        """The rules for `address` as its claims are now; takes note of who has it."""
        claims, problems = self._claims.awarded(address)
        entries: Entries = {}
        served = []
        for claim in claims:
            if self._writer.rule_bound(claim) > MOST_RULES:
                why = f"over {MOST_RULES} rules for one Service"
                text = f"{show_address(address)} is refused: {why}"
                problems.append(Problem(claim.service.key, "TooManyRules", text))
                continue
            found = self._writer.entries(address, claim)
            if found:
                served.append(claim.service.key)
                entries.update(found)
        self._note(address, tuple(served), tuple(problems))
        return entries

    def _note(
        self, address: Address, served: tuple[str, ...], problems: tuple[Problem, ...]
    ) -> None:
        before = self._served.get(address, ())
        if before != served:
            for key in served:
                self._addresses[key] += 1
            for key in before:
                self._addresses[key] -= 1
                if not self._addresses[key]:
                    del self._addresses[key]
            if served:
                self._served[address] = served
            else:
                del self._served[address]
        if problems:
            self._refused[address] = problems
        else:
            self._refused.pop(address, None)


class Replanner:
    """Plans one family for a basis that becomes another one, from what differs between the two.

    It is a cache: settled, it has the plan that would be made of its basis from nothing.
    """

    def __init__(self, family: Family, basis: Basis) -> None:
        self._family = family
        self._basis: Basis | None = None
        self.planner, _ = self._become(basis)

    def is_for(self, basis: Basis) -> bool:
        """Whether it plans for `basis` already."""
        return self._basis == basis

    def become(self, basis: Basis) -> int:
        """Plans for `basis` from now on; gives how many Services differ from those before."""
        self.planner, changed = self._become(basis)
        return changed

    def _become(self, basis: Basis) -> tuple[Planner, int]:
        # Whatever ends this early leaves nothing to go on from.
        before, self._basis = self._basis, None
        if before is None or before.frame != basis.frame:
            planner, changed = self._made(basis), len(basis.services)
        else:
            planner = self.planner
            differing = {*before.services.differing(basis.services)}
            differing |= before.left_out ^ basis.left_out
            # In an order that is the same in each process, or no history could be played again.
            for key in sorted(differing):
                planner.replace(before.planned(key), basis.planned(key))
            if before.network != basis.network:
                planner.move(basis.network)
            changed = len(differing)
        self._basis = basis
        return planner, changed

    def _made(self, basis: Basis) -> Planner:
        planner = Planner(basis, self._family)
        planner.fill(filter(None, map(basis.planned, basis.services)))
        return planner


class Plans:
    """The plans for the cluster as it was `seen`, each made when it is asked for, and once."""

    def __init__(self, config: Config, seen: Snapshot) -> None:
        services = Services().listed(seen.services.values())
        network, interfaces = seen.network, seen.pod_interfaces
        self._basis = Basis(config, seen.node, services, network=network, pod_interfaces=interfaces)
        self._made: dict[tuple[Family, bool], Plan] = {}

    def of(self, family: Family, own_mark: bool = False) -> Plan:
        """The rules that are wanted in `family`'s nat table."""
        key = family, own_mark
        if key not in self._made:
            basis = self._basis._replace(own_mark=own_mark)
            self._made[key] = Replanner(family, basis).planner.plan()
        return self._made[key]


def plan(config: Config, snapshot: Snapshot, family: Family, own_mark: bool = False) -> Plan:
    """The rules that are wanted in `family`'s nat table; a function of the arguments alone."""
    return Plans(config, snapshot).of(family, own_mark)
