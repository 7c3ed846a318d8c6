"""One family's nat table, kept as the Services want it: what is wanted, writes, retries, repairs.

What is wanted is a function of one `Basis`, which never changes: whatever is learnt makes another
one, and `_reconcile` alone goes from one to the next. Nothing here is told to be made anew.

A failed write is tried again after a back-off of the family's own, 0.2 s doubling to 10 s; where
only the lock was in the way, 0.2 s each time. Services whose rules the kernel refuses are left out
and tried again on their own (`refused`), so that all others are programmed. The clock is handed in;
there is no thread here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Callable

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.conntrack import Forgetter, changed_flows
from ipvs_node_agent.iptables.programmer import Misfit, Programmer
from ipvs_node_agent.model.addresses import Address, Family
from ipvs_node_agent.model.objects import Node, Problem, Service
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.ruleset import DRIFT, Change, Ruleset
from ipvs_node_agent.rules.planner import Basis, Plan, Planner, Replanner
from ipvs_node_agent.sync import blame
from ipvs_node_agent.sync.refused import Refused
from ipvs_node_agent.sync.state import FamilyFigures, Meter, Unmetered

log = logging.getLogger(__name__)

_RETRY_FIRST, _RETRY_CAP = 0.2, 10.0
# A repair of the same kind within this time is counted, and not said again.
_QUIET = 60.0
# After so many of the same kind: this long between two repairs, and no more than a share of a core.
_PATIENCE, _REST, _REPAIR_SHARE = 5, 2.0, 0.2
# Looks that others cause, and that find nothing changed, take no more than this share of a core.
_LOOK_SHARE = 0.05
# So many Services that the kernel names itself are left out in one go.
_NAMED = 16
# What is wanted changes with what others have; more often in a row nobody changes it for good.
_MISFITS = 5
# Splitting chains that a change made too long waits for a quiet moment, but not for longer.
_SETTLE_AFTER = 1.0
# So many changes at once are a burst, which need not write as few chains as a single one.
_BURST = 8
_NO_TIMES: Mapping[str, float] = MappingProxyType({})


class FamilyTable:
    """What one family's table has to hold, and how far it does."""

    def __init__(
        self,
        family: Family,
        config: Config,
        programmer: Programmer,
        conntrack: Forgetter | None,
        clock: Callable[[], float],
        meter: Meter | None = None,
    ) -> None:
        self._family, self._programmer, self._conntrack = family, programmer, conntrack
        self._clock, self._meter = clock, meter or Unmetered()
        # All that the rules depend on, but for what only this table knows.
        self._basis = Basis(config, Node("", (), (), ()), Services())
        self._replanner: Replanner | None = None
        self._plan = Plan(Ruleset(), ())
        # What the table was made of and holds, as far as is known.
        self._written: Basis | None = None
        self._holds: Ruleset | None = None
        # Whether others' tables lack Kubernetes' chain that marks.
        self._own_mark = False
        self._refused = Refused(family)
        # Since when the plan may have another shape than the settled one.
        self._loose_since = math.inf
        self._delay = _RETRY_FIRST
        self._repaired_at: dict[str, list[float]] = {}
        self._rest_until = 0.0
        self.error: TableError | None = None
        self.retry_at = 0.0
        self.repairs: Counter[str] = Counter()
        self.failures = 0
        self.last_error: tuple[float, str] | None = None
        self._synced = self._queued = -math.inf
        self._waiting_since = math.inf
        # When the API server told of those changed Services that the next write is about.
        self._arrived: dict[str, float] = {}
        # The plan that was counted last, and how many rules it has.
        self._counted: tuple[Ruleset | None, int] = (None, 0)

    @property
    def dirty(self) -> bool:
        """Whether the table may hold something else than what is wanted."""
        return self._holds is not self._wanted

    @property
    def services(self) -> int:
        """How many Services have rules."""
        return self._planner.services if self._planner else 0

    @property
    def having(self) -> Mapping[Address, tuple[str, ...]]:
        """The external IPs that have rules, and the Services that they are for; a copy."""
        return self._planner.having if self._planner else {}

    def serves(self, key: str, address: Address) -> bool:
        """Whether the Service `key` has rules for `address`."""
        return self._planner is not None and key in self._planner.holders(address)

    @property
    def figures(self) -> FamilyFigures:
        """The table in figures."""
        if self._counted[0] is not self._wanted:
            self._counted = (self._wanted, sum(map(len, self._wanted.chains.values())))
        return FamilyFigures(
            services=self.services,
            rules=self._counted[1],
            chains=len(self._wanted.chains),
            failures=self.failures,
            synced=self._synced,
            queued=self._queued,
            waiting_since=self._waiting_since,
            writes=self._programmer.writes,
        )

    @property
    def _wanted(self) -> Ruleset:
        return self._plan.ruleset

    @property
    def _planner(self) -> Planner | None:
        return self._replanner.planner if self._replanner is not None else None

    @property
    def check_seconds(self) -> float:
        """What the last look for drift took."""
        return self._programmer.check_seconds

    @property
    def problems(self) -> frozenset[Problem]:
        """What was asked for and is refused, by us or by the kernel."""
        return self._refused.problems.union(self._plan.problems)

    @property
    def due(self) -> float:
        """When `sync` will have something to do besides looking for drift."""
        write = self.retry_at if self.dirty else math.inf
        again = math.inf if self.dirty else max(self._refused.next_try, self.retry_at)
        return min(write, again, self._loose_since + _SETTLE_AFTER)

    def use(self, programmer: Programmer) -> None:
        """Goes on with another table."""
        # The table may still be the same one.
        programmer.writes, self._programmer = self._programmer.writes, programmer
        self.retry_at = 0.0
        self._holds = None
        self._wait_since(self._clock())

    def doubt(self) -> None:
        """Has the next `sync` read the table, whatever the kernel says."""
        self._programmer.doubt()

    def plan(
        self,
        config: Config,
        node: Node,
        services: Services,
        arrived: Mapping[str, float] = _NO_TIMES,
        since: float = math.inf,
    ) -> None:
        """Goes by these from now on.

        `arrived` is when it was told of changed Services with external IPs, and `since` when first
        of anything that changed.
        """
        before = self._basis.services
        self._basis = Basis(config, node, services)
        self._reconcile(since)
        if self.dirty and arrived:
            for key in arrived.keys() & {*services.differing(before)}:
                if self._concerns(before.get(key)) or self._concerns(services.get(key)):
                    self._arrived.setdefault(key, arrived[key])

    def _concerns(self, service: Service | None) -> bool:
        """Whether `service` has external IPs of this family."""
        return service is not None and any(
            address.version == self._family.version
            for address in (*service.load_balancer_ips, *service.external_ips)
        )

    def _wait_since(self, since: float) -> None:
        self._waiting_since = min(self._waiting_since, since)

    def _reconcile(self, since: float = math.inf) -> None:
        """Makes the plan that follows from all that is known; the one place that makes one.

        `since` is when the first thing was told that makes it another one.
        """
        now = self._clock()
        self._refused.keep(self._basis.services)
        left_out = self._refused.left_out
        basis = self._basis._replace(left_out=left_out, own_mark=self._own_mark)
        settling = now >= self._loose_since + _SETTLE_AFTER
        self._basis = basis
        if self._replanner is None:
            self._replanner, changed = Replanner(self._family, basis), 0
        elif self._replanner.is_for(basis) and not settling:
            return
        else:
            changed = self._replanner.become(basis)
        planner = self._replanner.planner
        if changed >= _BURST or settling:
            planner.settle()
        self._loose_since = min(self._loose_since, now) if planner.loose else math.inf
        plan = planner.plan()
        if self._plan.ruleset == plan.ruleset and self._holds is not None:
            # The very same object says that nothing has to be written.
            self._plan = Plan(self._plan.ruleset, plan.problems)
            return
        self._plan = plan
        self._queued = max(self._queued, min(since, now))
        self._wait_since(self._queued if since == math.inf else since)

    def sync(self, looking: bool) -> None:
        """Writes what is due; `looking` also for drift that nobody tells of."""
        if self._replanner is None:
            return
        self._sync(looking)
        if not self.dirty and self._refused.next_try <= self._clock():
            # Their turn came while something else was written.
            self._sync(looking=False)

    def _sync(self, looking: bool) -> None:
        now = self._clock()
        self._reconcile()
        if not self.dirty:
            # Whoever was tried again asks for nothing that the table does not hold. The next ones
            # are tried when all others are done.
            self._refused.taken()
            self._refused.try_again(now)
            self._reconcile()
        if now < self.retry_at:
            return
        looking = now >= self._rest_until and (looking or self._programmer.heard())
        if not (self.dirty or looking):
            return
        try:
            change = self._write(looking)
        except TableError as error:
            self._failed(error, self._clock() - now)
            return
        self._succeeded(change, self._clock() - now)

    def _write(self, looking: bool) -> Change:
        """Writes what is wanted, if need be without what the kernel refuses. Raises TableError."""
        for _ in range(_NAMED):
            try:
                return self._fitting(looking)
            except TableError as error:
                if not self._leave_out(error):
                    raise
                # There is less to refuse now, so that the next try need not wait.
                self._delay = _RETRY_FIRST
                self._reconcile()
        return self._fitting(looking)

    def _leave_out(self, error: TableError) -> bool:
        """Leaves out Services that the kernel refuses; False where it is not them.

        Raises TableError.
        """
        if not error.by_content:
            return False
        services, why, now = self._basis.services, str(error), self._clock()
        key = ruletext.service(error.blamed)
        if key in services and key not in self._basis.left_out:
            self._refused.add([key], services, why, now)
            return True
        try:
            pending = self._programmer.pending(self._wanted)
        except Misfit:
            # What the rules jump to has just gone, which is no Service's fault.
            return False

        def takes(keys: frozenset[str]) -> bool:
            return self._programmer.takes(
                lambda found: blame.probe(self._family, self._wanted, found, keys)
            )

        suspected = blame.suspects(pending.written)
        again = suspected & self._refused.known
        guilty, untold = blame.culprits([again, suspected - again], takes)
        # Nobody loses rules that are there by a mere suspicion.
        untold -= blame.suspects(pending.replaced)
        self._refused.add(guilty, services, why, now)
        self._refused.suspect(untold - guilty, services, why, now)
        return bool(guilty or untold)

    def _fitting(self, looking: bool) -> Change:
        """Writes what is wanted beside the chains that others have. Raises TableError."""
        for _ in range(_MISFITS):
            try:
                if looking:
                    return self._programmer.check(self._wanted)
                return self._programmer.apply(self._wanted)
            except Misfit:
                self._own_mark = not self._own_mark
                self._reconcile()
        raise TableError(str(self._family), "others keep making and removing the chain that marks")

    def _failed(self, error: TableError, seconds: float) -> None:
        nothing = not self._wanted.chains and self._written is None
        if nothing and not (error.locked or error.hung):
            # Nothing belongs there, or ever did; a kernel without the family cannot even be asked.
            log.debug("%s: %s", self._family, error)
            self._holds, self._synced, self._waiting_since = self._wanted, self._clock(), math.inf
            self.error = None
            return
        self.failures += 1
        self.last_error = (self._clock(), f"{self._family}: {error}")
        self._meter.synced(self._family, seconds)
        self._wait_since(self._clock())
        if self.error is None or str(self.error) != str(error):
            log.error("%s: cannot program the kernel, trying again: %s", self._family, error)
        self._holds, self.error = None, error
        # What hangs leaves the other family half of the time. A lock is let go of at any moment.
        self.retry_at = self._clock() + max(self._delay, 0.0 if error.locked else seconds)
        # A lock has been waited for already, and what it keeps away is due as soon as it is free.
        self._delay = _RETRY_FIRST if error.locked else min(self._delay * 2, _RETRY_CAP)

    def _succeeded(self, change: Change, seconds: float) -> None:
        if self.error is not None:
            log.info("%s: works again", self._family)
        self.error, self.retry_at, self._delay = None, 0.0, _RETRY_FIRST
        for key in self._refused.taken():
            if self._planner is not None and self._planner.has_rules(key):
                log.info("%s: the kernel takes its %s rules now", key, self._family)
        fresh = self._note_repairs(change.repairs, seconds)
        if change and fresh:
            # Who knows when a Service's change came says that it is done.
            alike = self._written is not None and self._written.frame == self._basis.frame
            log.log(
                logging.DEBUG if alike and not change.repairs else logging.INFO,
                "%s: %s in %.0f ms%s",
                self._family,
                _described(change),
                seconds * 1000,
                _explained(change.repairs),
            )
        if not change:
            self._rest_until = max(
                self._rest_until, self._clock() + min(seconds / _LOOK_SHARE, _REST)
            )
        self._forget_flows(change)
        self._holds, self._written = self._wanted, self._basis
        self._measure(change, seconds)

    def _measure(self, change: Change, seconds: float) -> None:
        now = self._clock()
        self._synced, self._waiting_since = now, math.inf
        if change:
            self._meter.synced(self._family, seconds)
        if self._arrived:
            self._meter.programmed(self._family, [now - time for time in self._arrived.values()])
            self._arrived = {}

    def _note_repairs(self, repairs: tuple[str, ...], seconds: float) -> bool:
        """Counts them; False where the like was undone just before.

        Who fights with us is said to do so once, and is not given more than a share of our time.
        """
        now = self._clock()
        self.repairs.update(repairs)
        fresh = not repairs
        for reason in repairs:
            last = [time for time in self._repaired_at.get(reason, ()) if now - time < _QUIET]
            self._repaired_at[reason] = [*last, now]
            fresh = fresh or not last
            if len(last) >= _PATIENCE:
                self._rest_until = now + max(_REST, seconds / _REPAIR_SHARE)
        return fresh

    def _forget_flows(self, change: Change) -> None:
        """Has UDP flows start anew that the rules are about which changed."""
        if self._conntrack is None:
            return
        flows = [each for each in changed_flows(change) if self._speaks_udp(each.service)]
        if flows:
            self._conntrack.forget(self._family, flows, self._basis.node.addresses)

    def _speaks_udp(self, key: str) -> bool:
        before = self._written.services if self._written is not None else Services()
        return any(
            port.protocol == "udp"
            for service in (self._basis.services.get(key), before.get(key))
            if service is not None
            for port in service.ports
        )


def _described(change: Change) -> str:
    parts: tuple[tuple[int, str, str], ...] = (
        (len(change.written), "chain", ""),
        (sum(map(len, change.written.values())), "rule", ""),
        (len(change.dropped), "chain", " removed"),
        (len(change.hooked), "jump", ""),
    )
    shown = ", ".join(
        f"{count} {what}{'' if count == 1 else 's'}{then}" for count, what, then in parts if count
    )
    shown = shown or "jumps removed"
    return f"{'repaired' if change.repairs else 'wrote'} {shown}"


def _explained(repairs: Iterable[str]) -> str:
    """What had to be repaired, as the end of a sentence; empty where nothing had."""
    shown = " and ".join(DRIFT[reason] for reason in repairs)
    return f": {shown} (the like is not said again within {_QUIET:.0f} s)" if shown else ""
