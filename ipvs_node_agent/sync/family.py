"""One family's nat table, kept as the Services want it: writes, retries, and what comes of them.

Services whose rules the kernel refuses are left out and tried again on their own (`refused`), so
that all others are programmed. All else is as with any table that is kept (`kept`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Callable

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.conntrack import Forgetter
from ipvs_node_agent.iptables.programmer import Misfit, Programmer
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Node, NodeNetwork, Service
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.flows import changed_flows
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from ipvs_node_agent.rules.planner import Basis
from ipvs_node_agent.sync.cluster import Pending
from ipvs_node_agent.sync.kept import KeptTable
from ipvs_node_agent.sync.refused import Refusal, probe, refused_of, services_in
from ipvs_node_agent.sync.state import FamilyState, Meter
from ipvs_node_agent.sync.wanted import Wanted

log = logging.getLogger(__name__)

# So many refusals are made good in one go, which are as many Services where the kernel names them.
_REFUSALS = 16
# What is wanted changes with what others have; more often in a row nobody changes it for good.
_MISFITS = 5


class FamilyTable(KeptTable):
    """What one family's nat table holds, as far as is known, and what is wanted there."""

    def __init__(
        self,
        family: Family,
        programmer: Programmer,
        conntrack: Forgetter | None,
        clock: Callable[[], float],
        meter: Meter,
    ) -> None:
        super().__init__(str(family), family, programmer, clock, meter)
        self._family, self._conntrack = family, conntrack
        self.wanted = Wanted(family)
        # What that was made of which the table held last.
        self._made_of: Basis | None = None

    @property
    def ruleset(self) -> Ruleset:
        """See `KeptTable`."""
        return self.wanted.ruleset

    @property
    def state(self) -> FamilyState:
        """What others may know of it."""
        return replace(super().state, services=self.wanted.planner.services)

    @property
    def _rules(self) -> int:
        # Counted once, as there may be thousands of chains.
        return self.wanted.rules

    @property
    def due(self) -> float:
        """See `KeptTable`."""
        again = math.inf if self.dirty else max(self.wanted.refused.next_try, self._retry_at)
        return min(super().due, again, self.wanted.due)

    def plan(
        self,
        config: Config,
        node: Node,
        services: Services,
        network: NodeNetwork,
        pod_interfaces: tuple[str, ...],
        pending: Mapping[str, Pending],
        since: float,
    ) -> None:
        """Goes by these from now on; to be called before the first `sync`.

        `pending` are changed Services with external IPs, and `since` is when it was first told of
        anything that changed.
        """
        before = self.wanted.basis.services
        self.wanted.basis = Basis(
            config, node, services, network=network, pod_interfaces=pod_interfaces
        )
        self._reconcile(since)
        if self.dirty and pending:
            for key in pending.keys() & {*services.differing(before)}:
                if self.concerns(before.get(key)) or self.concerns(services.get(key)):
                    self._progress.arrived(key, pending[key].since)

    def concerns(self, service: Service | None) -> bool:
        """Whether `service` has external IPs of this family."""
        return service is not None and any(
            address.version == self._family.version
            for address in (*service.load_balancer_ips, *service.external_ips)
        )

    def _reconcile(self, since: float = math.inf) -> None:
        """Plans what follows from all that is known, first told of at the time `since`."""
        now = self._clock()
        if self.wanted.reconcile(now) and self.dirty:
            self._progress.queue(since, now)

    def sync(self, looking: bool) -> None:
        """See `KeptTable`."""
        self._sync(looking)
        if not self.dirty and self.wanted.refused.next_try <= self._clock():
            # Their turn came while something else was written.
            self._sync(looking=False)

    def _sync(self, looking: bool) -> None:
        now, refused = self._clock(), self.wanted.refused
        self._reconcile()
        if not self.dirty:
            # Whoever was tried again asks for nothing that the table does not hold. The next ones
            # are tried when all others are done.
            refused.taken()
            refused.try_again(now)
            self._reconcile()
        super().sync(looking)

    def _write(self, looking: bool) -> Change | TableError:
        """Has the table hold what is wanted; what an attempt shows is planned for, and tried."""
        refusals = misfits = 0
        while True:
            outcome = self._attempt(looking, asking=refusals < _REFUSALS)
            if isinstance(outcome, Misfit):
                self.wanted.own_mark = not self.wanted.own_mark
                misfits += 1
            elif isinstance(outcome, Refusal):
                self.wanted.refused.add(outcome, self.wanted.basis.services, self._clock())
                # There is less to refuse now.
                self._hurry()
                refusals, misfits = refusals + 1, 0
            else:
                return outcome
            self._reconcile()
            if misfits == _MISFITS:
                why = "another program keeps creating and removing the chain for masquerading"
                return TableError(str(self._family), why)

    def _attempt(self, looking: bool, asking: bool) -> Change | Misfit | Refusal | TableError:
        """What comes of one write; with `asking`, the kernel is asked whose rules it refuses."""
        write = self.programmer.check if looking else self.programmer.apply
        try:
            return write(self.wanted.ruleset)
        except Misfit as misfit:
            return misfit
        except TableError as error:
            if not (asking and error.by_content):
                return error
            try:
                return self._refusal(error) or error
            except TableError as another:
                return another

    def _refusal(self, error: TableError) -> Refusal | None:
        """Whose rules the kernel refuses; None where it is nobody's fault. Raises TableError."""
        basis, ruleset, why = self.wanted.basis, self.wanted.ruleset, str(error)
        key = ruletext.service(error.blamed)
        if key in basis.services and key not in basis.left_out:
            return Refusal(frozenset({key}), frozenset(), why)
        try:
            change = self.programmer.pending(ruleset)
        except Misfit:
            # What the rules jump to has just gone, which is no Service's fault.
            return None

        def takes(keys: frozenset[str]) -> bool:
            return self.programmer.takes(lambda found: probe(self._family, ruleset, found, keys))

        suspected = services_in(change.written)
        if not suspected:
            return None
        again = suspected & self.wanted.refused.known
        refused, unknown = refused_of([again, suspected - again], takes)
        # Nobody loses rules that are there by a mere suspicion.
        unknown -= services_in(change.replaced)
        return Refusal(refused, unknown, why) if refused or unknown else None

    def _level(self, change: Change) -> int:
        # Who knows when a Service's change came says that it is done.
        alike = self._made_of is not None and self._made_of.frame == self.wanted.basis.frame
        return logging.DEBUG if alike else logging.INFO

    def _succeeded(self, change: Change, seconds: float) -> None:
        super()._succeeded(change, seconds)
        wanted = self.wanted
        for key in wanted.refused.taken():
            if wanted.planner.has_rules(key):
                log.info("%s: the kernel takes its %s rules now", key, self._family)
        self._forget_flows(change)
        self._made_of = wanted.basis

    def _give_way(self, other: tuple[str, str]) -> None:
        self.wanted.behind |= {other}

    def _forget_flows(self, change: Change) -> None:
        """Has UDP flows start anew that the rules are about which changed."""
        if self._conntrack is None:
            return
        if flows := changed_flows(change, self.ruleset, self._has_udp):
            basis = self.wanted.basis
            hosts = basis.network.addresses.union(basis.node.addresses)
            self._conntrack.forget(self._family, flows, hosts)

    def _has_udp(self, key: str) -> bool:
        made_of = self._made_of
        before: Mapping[str, Service] = {} if made_of is None else made_of.services
        return any(
            port.protocol == "udp"
            for service in (self.wanted.basis.services.get(key), before.get(key))
            if service is not None
            for port in service.ports
        )
