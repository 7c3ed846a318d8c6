"""One family's nat table, kept as the Services want it: what is wanted, writes, retries, repairs.

A failed write is tried again after a back-off of the family's own, 0.2 s doubling to 10 s; where
only the lock was in the way, 0.2 s each time. Services whose rules the kernel refuses are held back
and tried again on their own, so that all others are programmed. The clock is handed in; there is no
thread here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Callable

from ipvs_node_agent import blame, drift
from ipvs_node_agent.addresses import Address, Family
from ipvs_node_agent.config import Config
from ipvs_node_agent.conntrack import Forgetter, changed_flows
from ipvs_node_agent.figures import FamilyFigures, Meter, Unmetered
from ipvs_node_agent.iptables import TableError
from ipvs_node_agent.model import Node, Problem, Service, Snapshot
from ipvs_node_agent.planner import Plan, Planner
from ipvs_node_agent.programmer import Misfit, Programmer
from ipvs_node_agent.ruleset import Change, Ruleset

log = logging.getLogger(__name__)

_RETRY_FIRST, _RETRY_CAP = 0.2, 10.0
_HELD_FIRST, _HELD_CAP = 10.0, 300.0
# A repair of the same kind within this time is counted, and not said again.
_QUIET = 60.0
# After so many of the same kind: this long between two repairs, and no more than a share of a core.
_PATIENCE, _REST, _REPAIR_SHARE = 5, 2.0, 0.2
# So many Services that the kernel names itself are held back in one go.
_NAMED = 16
# What is wanted changes with what others have; more often in a row nobody changes it for good.
_MISFITS = 5


_NOTHING_KNOWN = Snapshot({}, Node("", (), (), ()))
_NO_RULES = Ruleset()
_NO_TIMES: Mapping[str, float] = MappingProxyType({})


class _Held:
    """A Service whose rules the kernel refuses; `why` is what it said."""

    def __init__(self) -> None:
        self.why = ""
        self.delay = _HELD_FIRST
        self.retry_at = math.inf


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
        self._config, self._snapshot = config, _NOTHING_KNOWN
        self._planner: Planner | None = None
        self._plan: Plan | None = None
        # Whether others' tables lack Kubernetes' chain that marks.
        self._own_mark = False
        self._held: dict[str, _Held] = {}
        # Whether what is wanted changed for another reason than a Service's change.
        self._anew = True
        # Held back until now, and being tried again.
        self._tried: dict[str, _Held] = {}
        # What Services were that changed since the last write.
        self._before: dict[str, Service | None] = {}
        self._delay = _RETRY_FIRST
        self._repaired_at: dict[str, list[float]] = {}
        self._rest_until = 0.0
        self.dirty = True
        self.error: TableError | None = None
        self.retry_at = 0.0
        self.repairs: Counter[str] = Counter()
        self.failures = 0
        self.last_error: tuple[float, str] | None = None
        self._synced = self._queued = -math.inf
        self._waiting_since = math.inf
        # When the API server told of those changed Services that this write is about.
        self._arrived: dict[str, float] = {}
        # The plan that was counted last, and how many rules it has.
        self._counted: tuple[Plan | None, int] = (None, 0)

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
        if self._counted[0] is not self._plan:
            self._counted = (self._plan, sum(map(len, self._wanted.chains.values())))
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
        return self._plan.ruleset if self._plan else _NO_RULES

    @property
    def loose(self) -> bool:
        """Whether planning with `settle` might change something."""
        return self._planner is not None and self._planner.loose

    @property
    def check_seconds(self) -> float:
        """What the last look for drift took."""
        return self._programmer.check_seconds

    @property
    def problems(self) -> frozenset[Problem]:
        """What was asked for and is refused, by us or by the kernel."""
        refused = frozenset(
            Problem(
                key,
                "KernelRefused",
                f"its {self._family} rules are left out, trying again: {held.why}",
            )
            for key, held in self._held.items()
            if held.why
        )
        return refused.union(self._plan.problems if self._plan else ())

    @property
    def due(self) -> float:
        """When `sync` will have something to do besides looking for drift."""
        retries = [held.retry_at for held in self._held.values()]
        return min([self.retry_at if self.dirty else math.inf, *retries])

    def use(self, programmer: Programmer) -> None:
        """Goes on with another table."""
        # The table may still be the same one.
        programmer.writes, self._programmer = self._programmer.writes, programmer
        self.retry_at = 0.0
        self.dirty = True
        self._wait_since(self._clock())

    def doubt(self) -> None:
        """Has the next `sync` read the table, whatever the kernel says."""
        self._programmer.doubt()

    def plan_anew(self) -> None:
        """Has the next `plan` start from nothing."""
        self._planner = None

    def plan(
        self,
        config: Config,
        snapshot: Snapshot,
        changed: Mapping[str, Service | None],
        settle: bool,
        arrived: Mapping[str, float] = _NO_TIMES,
        since: float = math.inf,
    ) -> None:
        """Takes in what changed: `changed` is what those Services were before.

        `arrived` is when it was told of those with external IPs, and `since` when first of any.
        """
        self._config, self._snapshot = config, snapshot
        for key, old in changed.items():
            self._before.setdefault(key, old)
            held = self._held.pop(key, None)
            if self._planner is not None:
                known = _without_rules(old) if held and old else old
                self._planner.replace(known, snapshot.services.get(key))
        self._make(settle, since)
        if self.dirty:
            for key, time in arrived.items():
                if self._concerns(changed.get(key)) or self._concerns(snapshot.services.get(key)):
                    self._arrived.setdefault(key, time)

    def _concerns(self, service: Service | None) -> bool:
        """Whether `service` has external IPs of this family."""
        return service is not None and any(
            address.version == self._family.version
            for address in (*service.load_balancer_ips, *service.external_ips)
        )

    def _wait_since(self, since: float) -> None:
        self._waiting_since = min(self._waiting_since, since)

    def _make(self, settle: bool = False, since: float = math.inf) -> None:
        """Makes the plan that the planner has by now, and the planner where there is none."""
        planner = self._planner
        if planner is None:
            self._anew = True
            planner = Planner(self._config, self._snapshot.node, self._family, self._own_mark)
            planner.fill(
                _without_rules(service) if key in self._held else service
                for key, service in self._snapshot.services.items()
            )
            self._planner = planner
        if settle:
            planner.settle()
        plan = planner.plan()
        if self._plan is None or self._plan.ruleset != plan.ruleset:
            self.dirty = True
            self._queued = max(self._queued, min(since, self._clock()))
            self._wait_since(self._queued if since == math.inf else since)
        self._plan = plan

    def sync(self, looking: bool) -> None:
        """Writes what is due; `looking` also for drift that nobody tells of."""
        if self._plan is None:
            return
        now = self._clock()
        self._try_again(now)
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
                key = blame.service_of(error.blamed)
                if key and key not in self._held:
                    self._hold({key: str(error)})
                elif not error.by_content or not self._search(str(error)):
                    raise
        return self._fitting(looking)

    def _search(self, why: str) -> bool:
        """Finds by trying whose rules the kernel refuses; True where it takes all others."""
        found = self._programmer.read(self._wanted).chains
        suspected = blame.suspects(self._wanted.chains, found)
        before = frozenset(self._held)

        def works(without: frozenset[str]) -> bool:
            self._hold(dict.fromkeys(without, ""))
            self._release(frozenset(self._held) - without - before)
            try:
                if not self._fitting(looking=False):
                    # Nothing was left to write, which proves nothing.
                    self._programmer.prove(self._wanted)
            except TableError:
                return False
            return True

        guilty = blame.culprits(suspected, works)
        self._release(frozenset(self._held) - guilty - before)
        self._hold(dict.fromkeys(guilty, why))
        return bool(guilty)

    def _fitting(self, looking: bool) -> Change:
        """Writes what is wanted beside the chains that others have. Raises TableError."""
        for _ in range(_MISFITS):
            try:
                if looking:
                    return self._programmer.check(self._wanted)
                return self._programmer.apply(self._wanted)
            except Misfit:
                self._own_mark = not self._own_mark
                self._planner = None
                self._make()
        raise TableError(str(self._family), "others keep making and removing the chain that marks")

    def _hold(self, refused: Mapping[str, str]) -> None:
        """Leaves Services without rules: each with what the kernel said, where that is known."""
        for key, why in refused.items():
            service = self._snapshot.services.get(key)
            if service is None:
                continue
            if key not in self._held:
                self._held[key] = self._tried.get(key) or _Held()
                if self._planner is not None:
                    self._planner.replace(service, _without_rules(service))
            held = self._held[key]
            if why:
                held.why, held.retry_at = why, self._clock() + held.delay
                held.delay = min(held.delay * 2, _HELD_CAP)
        self._make()

    def _release(self, keys: Iterable[str]) -> None:
        for key in keys:
            del self._held[key]
            service = self._snapshot.services.get(key)
            if service is not None and self._planner is not None:
                self._planner.replace(_without_rules(service), service)
        self._make()

    def _try_again(self, now: float) -> None:
        """Lets Services have their rules again that were held back for long enough."""
        keys = [key for key, held in self._held.items() if held.retry_at <= now]
        if keys and now >= self.retry_at:
            self._tried = {key: self._held[key] for key in keys}
            self._release(keys)

    def _failed(self, error: TableError, seconds: float) -> None:
        if not self._wanted.chains and self.error is None:
            # Nothing belongs there; a kernel without the family cannot even be asked.
            log.debug("%s: %s", self._family, error)
            self.dirty, self._synced, self._waiting_since = False, self._clock(), math.inf
            return
        self.failures += 1
        self.last_error = (self._clock(), f"{self._family}: {error}")
        self._meter.synced(self._family, seconds)
        self._wait_since(self._clock())
        if self.error is None or str(self.error) != str(error):
            log.error("%s: cannot program the kernel, trying again: %s", self._family, error)
        self.dirty, self.error = True, error
        # What hangs leaves the other family half of the time. A lock is let go of at any moment.
        self.retry_at = self._clock() + max(self._delay, 0.0 if error.locked else seconds)
        # A lock has been waited for already, and what it keeps away is due as soon as it is free.
        self._delay = _RETRY_FIRST if error.locked else min(self._delay * 2, _RETRY_CAP)

    def _succeeded(self, change: Change, seconds: float) -> None:
        if self.error is not None:
            log.info("%s: works again", self._family)
        self.dirty, self.error, self.retry_at, self._delay = False, None, 0.0, _RETRY_FIRST
        for key in self._tried.keys() & self._snapshot.services.keys() - self._held.keys():
            log.info("%s: the kernel takes its %s rules now", key, self._family)
        self._tried = {}
        fresh = self._note_repairs(change.repairs, seconds)
        if change and fresh:
            # Who knows when a Service's change came says that it is done.
            log.log(
                logging.INFO if change.repairs or self._anew else logging.DEBUG,
                "%s: %s in %.0f ms%s",
                self._family,
                _described(change),
                seconds * 1000,
                _explained(change.repairs),
            )
        self._anew = False
        self._forget_flows(change)
        self._before = {}
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
            self._conntrack.forget(self._family, flows, self._snapshot.node.addresses)

    def _speaks_udp(self, key: str) -> bool:
        return any(
            port.protocol == "udp"
            for service in (self._snapshot.services.get(key), self._before.get(key))
            if service is not None
            for port in service.ports
        )


def _without_rules(service: Service) -> Service:
    """`service` as one that the user wants left alone."""
    return service._replace(skipped=True)


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
    shown = " and ".join(drift.MEANINGS[reason] for reason in repairs)
    return f": {shown} (the like is not said again within {_QUIET:.0f} s)" if shown else ""
