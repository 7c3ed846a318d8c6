"""One family's nat table, kept as the Services want it: writes, retries, and what comes of them.

A failed write is tried again after a back-off of the family's own, 0.2 s doubling to 10 s; where
only the lock was in the way, 0.2 s each time. Services whose rules the kernel refuses are left out
and tried again on their own (`refused`), so that all others are programmed. The clock is handed in;
there is no thread here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Callable

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.conntrack import Forgetter, changed_flows
from ipvs_node_agent.iptables.programmer import Misfit, Programmer
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Node, NodeNetwork, Service
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from ipvs_node_agent.rules.planner import Basis
from ipvs_node_agent.sync.cluster import Pending
from ipvs_node_agent.sync.progress import Progress
from ipvs_node_agent.sync.refused import Refusal, probe, refused_of, services_in
from ipvs_node_agent.sync.repairs import Repairs, described, explained
from ipvs_node_agent.sync.state import FamilyState, Meter
from ipvs_node_agent.sync.wanted import Wanted

log = logging.getLogger(__name__)

_RETRY_FIRST, _RETRY_CAP = 0.2, 10.0
# So many refusals are made good in one go, which are as many Services where the kernel names them.
_REFUSALS = 16
# What is wanted changes with what others have; more often in a row nobody changes it for good.
_MISFITS = 5


class FamilyTable:
    """What one family's table holds, as far as is known, and what is wanted there."""

    def __init__(
        self,
        family: Family,
        programmer: Programmer,
        conntrack: Forgetter | None,
        clock: Callable[[], float],
        meter: Meter,
    ) -> None:
        self._family, self.programmer, self._conntrack = family, programmer, conntrack
        self._clock = clock
        self.wanted, self.repairs = Wanted(family), Repairs()
        # What the table holds, None where that is not known, and what that was made of last.
        self._holds: Ruleset | None = None
        self._written: Basis | None = None
        self._delay, self._retry_at = _RETRY_FIRST, 0.0
        self.error: TableError | None = None
        self.last_error: tuple[float, str] | None = None
        self._progress = Progress(family, meter)

    @property
    def dirty(self) -> bool:
        """Whether the table may hold something else than what is wanted."""
        return self._holds is not self.wanted.ruleset

    @property
    def state(self) -> FamilyState:
        """What others may know of it."""
        return FamilyState(
            services=self.wanted.planner.services,
            rules=self.wanted.rules,
            chains=len(self.wanted.ruleset.chains),
            failures=self._progress.failures,
            synced=self._progress.synced,
            queued=self._progress.queued,
            waiting_since=self._progress.waiting_since,
        )

    @property
    def due(self) -> float:
        """When `sync` will have something to do besides looking for drift."""
        again = max(self.wanted.refused.next_try, self._retry_at)
        return min(self._retry_at if self.dirty else again, self.wanted.due)

    def use(self, programmer: Programmer) -> None:
        """Goes on with another table, which may still be the same one."""
        self.programmer, self._holds, self._retry_at = programmer, None, 0.0
        self._progress.wait(self._clock())

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
                if self._concerns(before.get(key)) or self._concerns(services.get(key)):
                    self._progress.arrived(key, pending[key].since)

    def _concerns(self, service: Service | None) -> bool:
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
        """Writes what is due; `looking` also for drift that nobody tells of."""
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
        if now < self._retry_at:
            return
        resting = now < self.repairs.rest_until
        looking = not resting and (looking or self.programmer.heard())
        if not (self.dirty or looking):
            return
        outcome = self._write(looking)
        if isinstance(outcome, TableError):
            self._failed(outcome, self._clock() - now)
        else:
            self._succeeded(outcome, self._clock() - now)

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
                # There is less to refuse now, so that the next try need not wait.
                self._delay = _RETRY_FIRST
                refusals, misfits = refusals + 1, 0
            else:
                return outcome
            self._reconcile()
            if misfits == _MISFITS:
                why = "others keep making and removing the chain that marks"
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
        again = suspected & self.wanted.refused.known
        refused, unknown = refused_of([again, suspected - again], takes)
        # Nobody loses rules that are there by a mere suspicion.
        unknown -= services_in(change.replaced)
        return Refusal(refused, unknown, why) if refused or unknown else None

    def _failed(self, error: TableError, seconds: float) -> None:
        now = self._clock()
        nothing = not self.wanted.ruleset.chains and self._written is None
        if nothing and not (error.locked or error.hung):
            # Nothing belongs there, or ever did; a kernel without the family cannot even be asked.
            log.debug("%s: %s", self._family, error)
            self._holds, self.error = self.wanted.ruleset, None
            self._progress.sync(now)
            return
        self._progress.fail(seconds, now)
        self.last_error = (now, f"{self._family}: {error}")
        if self.error is None or str(self.error) != str(error):
            log.error("%s: cannot program the kernel, trying again: %s", self._family, error)
        self._holds, self.error = None, error
        # What hangs leaves the other family half of the time. A lock is let go of at any moment.
        self._retry_at = now + max(self._delay, 0.0 if error.locked else seconds)
        # A lock has been waited for already, and what it keeps away is due as soon as it is free.
        self._delay = _RETRY_FIRST if error.locked else min(self._delay * 2, _RETRY_CAP)

    def _succeeded(self, change: Change, seconds: float) -> None:
        now, wanted = self._clock(), self.wanted
        if self.error is not None:
            log.info("%s: works again", self._family)
        self.error, self._retry_at, self._delay = None, 0.0, _RETRY_FIRST
        for key in wanted.refused.taken():
            if wanted.planner.has_rules(key):
                log.info("%s: the kernel takes its %s rules now", key, self._family)
        if self.repairs.note(change, seconds, now) and change:
            # Who knows when a Service's change came says that it is done.
            alike = self._written is not None and self._written.frame == wanted.basis.frame
            log.log(
                logging.DEBUG if alike and not change.repairs else logging.INFO,
                "%s: %s in %.0f ms%s",
                self._family,
                described(change),
                seconds * 1000,
                explained(change),
            )
        self._give_way(change, now)
        self._forget_flows(change)
        self._holds, self._written = wanted.ruleset, wanted.basis
        self._progress.sync(now, seconds if change else None)

    def _give_way(self, change: Change, now: float) -> None:
        """Leaves the first place to who comes back to it again and again, if he does no harm."""
        for built_in, target in self.repairs.insisting(change, now):
            log.warning(
                "%s: %s keeps coming back to the front of %s; it stays there as long as it"
                " takes nothing that goes to a Service",
                self._family,
                target,
                built_in,
            )
            self.wanted.behind |= {(built_in, target)}

    def _forget_flows(self, change: Change) -> None:
        """Has UDP flows start anew that the rules are about which changed."""
        if self._conntrack is None:
            return
        flows = [each for each in changed_flows(change) if self._has_udp(each.service)]
        if flows:
            self._conntrack.forget(self._family, flows, self.wanted.basis.node.addresses)

    def _has_udp(self, key: str) -> bool:
        before = self._written.services if self._written is not None else Services()
        return any(
            port.protocol == "udp"
            for service in (self.wanted.basis.services.get(key), before.get(key))
            if service is not None
            for port in service.ports
        )
