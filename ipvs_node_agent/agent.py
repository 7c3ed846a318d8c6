"""The agent's mind: events in, wanted state, repairs and retries out. No thread, no socket here.

`take` notes an event; `tick` does what is due and tells when to call it again. The clock is handed
in. What is due, and when:

  a change             at once, but not within 70 ms of the last, so that a burst makes few writes
  splitting chains     a second after the change that made one too long, or with the next burst
  a drift check        each `driftCheckPeriod`, or less often where it would take over 1 % of a core
  a thorough one       every five minutes
  a failed write       after a back-off of its family's own, 0.2 s doubling to 10 s; where only the
                       lock was in the way, 0.2 s each time
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Callable

from ipvs_node_agent.addresses import FAMILIES, Family, show_address
from ipvs_node_agent.config import Config
from ipvs_node_agent.iptables import TableError
from ipvs_node_agent.model import Node, Problem, Service, Snapshot
from ipvs_node_agent.planner import Plan, Planner
from ipvs_node_agent.programmer import Programmer
from ipvs_node_agent.rules import pod_cidrs
from ipvs_node_agent.ruleset import Change, Ruleset
from ipvs_node_agent.watch import Changed, Deleted, Event, Listed, Recovered, Skipped, Trouble

log = logging.getLogger(__name__)

SERVICES, NODES = "services", "nodes"

_SYNC_INTERVAL = 0.07
_SETTLE_AFTER = 1.0
_CHECK_SHARE = 0.01
_DOUBT_PERIOD = 300.0
# So many changes at once are a burst, which need not write as few chains as a single one.
_BURST = 8
_RETRY_FIRST, _RETRY_CAP = 0.2, 10.0
_LINES_AT_ONCE = 20


class Cluster:
    """What the API server has told so far."""

    def __init__(self) -> None:
        self.services: dict[str, Service] | None = None
        self.node: Node | None = None
        self.node_listed = False

    @property
    def listed(self) -> bool:
        """Whether both have been listed whole."""
        return self.services is not None and self.node_listed

    def snapshot(self) -> Snapshot | None:
        """Everything known, or None before the first whole listing of both."""
        if self.services is None or self.node is None:
            return None
        return Snapshot(self.services, self.node)


class FamilyState:
    """How far one family's table is."""

    def __init__(self, programmer: Programmer) -> None:
        self.programmer = programmer
        self.planner: Planner | None = None
        self.plan: Plan | None = None
        self.dirty = True
        self.error: TableError | None = None
        self.retry_at = 0.0
        self.delay = _RETRY_FIRST


class Agent:
    """Turns events into a programmed kernel."""

    def __init__(
        self,
        config: Config,
        programmers: Mapping[Family, Programmer],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._clock = config, clock
        self._cluster = Cluster()
        self._families = {family: FamilyState(programmers[family]) for family in FAMILIES}
        self._stale = True
        self._next_sync = self._next_check = self._next_doubt = 0.0
        self._settle_at = math.inf
        # What the Services were, as the planners know them, that changed since.
        self._changed: dict[str, Service | None] = {}
        self._service_problems: dict[str, tuple[Problem, ...]] = {}
        self._unsynced: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._lacked = self._node_note = ""
        self._said: frozenset[Problem] = frozenset()

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds what is wanted, as far as the agent knows."""
        states = self._families.values()
        return not self._stale and not any(s.dirty or s.error for s in states)

    def sentence(self) -> str:
        """How far the agent is, as an operator wants to know it; true at this moment."""
        trouble = next(iter(self._troubles.values()), "")
        if not self._cluster.listed:
            return f"Waiting: {trouble or 'the API server has not told everything yet'}"
        lacking = self._lacking()
        if lacking:
            return f"Waiting, and leaving all rules as they are: {lacking}"
        sentence = self._programmed()
        return f"{sentence}; not following changes: {trouble}" if trouble else sentence

    def _programmed(self) -> str:
        for family, state in self._families.items():
            if state.error is not None:
                return f"Cannot program the kernel, trying again: {family}: {state.error}"
        if not self.in_sync:
            return "Writing changes to the kernel"
        counts = {str(f): s.planner.services for f, s in self._families.items() if s.planner}
        shown = ", ".join(f"{count} in {family}" for family, count in counts.items() if count)
        return f"In sync; Services with rules: {shown or 'none'}"

    def reconfigure(self, config: Config, programmers: Mapping[Family, Programmer]) -> None:
        """Goes on with another configuration; nothing that was learnt is lost."""
        self._config = config
        for family, programmer in programmers.items():
            self._families[family].programmer = programmer
            self._families[family].retry_at = 0.0
            # The table may be another one.
            self._families[family].dirty = True
        self._plan_anew()
        self._next_check = 0.0

    def take(self, event: Event) -> None:
        """Notes what `event` says; the kernel is `tick`'s business."""
        if isinstance(event, Trouble):
            self._take_trouble(event)
        elif isinstance(event, Recovered):
            self._take_recovered(event)
        elif isinstance(event, Skipped):
            log.warning("passed over in the %s of the API server: %s", event.resource, event.text)
        elif event.resource == NODES:
            self._take_node(event)
        elif isinstance(event, Listed):
            self._take_service_list(event)
        else:
            self._take_service(event)

    def tick(self) -> float:
        """Does what is due, and gives the time at which something will be due again."""
        now = self._clock()
        snapshot = self._ready()
        if snapshot is None:
            return now + self._config.drift_check_period
        if now >= (self._next_sync if self._stale else self._settle_at):
            self._plan(snapshot, settle=now >= self._settle_at)
            self._next_sync = now + _SYNC_INTERVAL
        checking = now >= self._next_check
        if now >= self._next_doubt:
            self._next_doubt = now + _DOUBT_PERIOD
            for state in self._families.values():
                state.programmer.doubt()
        for family, state in self._families.items():
            if state.plan is not None and now >= state.retry_at and (checking or state.dirty):
                self._sync(family, state, state.plan.ruleset, checking)
        if checking:
            took = sum(state.programmer.check_seconds for state in self._families.values())
            self._next_check = now + max(self._config.drift_check_period, took / _CHECK_SHARE)
        if not self._stale and all(s.error or not s.dirty for s in self._families.values()):
            self._say_synced()
        return self._next_due()

    def _next_due(self) -> float:
        due = [self._next_check, self._settle_at] + ([self._next_sync] if self._stale else [])
        due += [s.retry_at for s in self._families.values() if s.dirty]
        return min(due)

    def _ready(self) -> Snapshot | None:
        """The snapshot to work from, or None while something is missing; said once."""
        lacking = self._lacking() if self._cluster.listed else ""
        if lacking and lacking != self._lacked:
            log.warning("waiting, and leaving all rules as they are: %s", lacking)
        self._lacked = lacking
        return self._cluster.snapshot() if self._cluster.listed and not lacking else None

    def _lacking(self) -> str:
        """What the Node lacks before its rules can be known."""
        node = self._cluster.node
        if node is None:
            return "this Node is not known to the API server yet (see nodeName)"
        if pod_cidrs(self._config, node) is None:
            return (
                f"Node {node.name} has no pod CIDR yet (if it never gets one, since the network"
                " plugin keeps its own, set podCIDRs)"
            )
        return ""

    def _plan(self, snapshot: Snapshot, settle: bool) -> None:
        self._stale = False
        changed, self._changed = self._changed, {}
        problems = {p for found in self._service_problems.values() for p in found}
        problems.update(snapshot.node.problems)
        for family, state in self._families.items():
            if state.planner is None:
                state.planner = Planner(self._config, snapshot.node, family)
                state.planner.fill(snapshot.services.values())
            else:
                for key, old in changed.items():
                    state.planner.replace(old, snapshot.services.get(key))
            if settle or len(changed) >= _BURST:
                state.planner.settle()
            wanted = state.planner.plan()
            if state.plan is None or state.plan.ruleset != wanted.ruleset:
                state.dirty = True
            state.plan = wanted
            problems.update(wanted.problems)
        self._say_problems(frozenset(problems))
        loose = any(s.planner is not None and s.planner.loose for s in self._families.values())
        if not loose:
            self._settle_at = math.inf
        elif self._settle_at == math.inf:
            self._settle_at = self._clock() + _SETTLE_AFTER

    def _plan_anew(self) -> None:
        """Has everything planned from the start, as what all rules depend on has changed."""
        for state in self._families.values():
            state.planner = None
        self._stale = True

    def _sync(self, family: Family, state: FamilyState, wanted: Ruleset, checking: bool) -> None:
        started = self._clock()
        drifted = checking and not state.dirty
        try:
            change = state.programmer.check(wanted) if checking else state.programmer.apply(wanted)
        except TableError as error:
            if not wanted.chains and state.error is None:
                # Nothing belongs there; a kernel without the family cannot even be asked.
                log.debug("%s: %s", family, error)
                state.dirty = False
            else:
                self._failed(family, state, error)
            return
        if state.error is not None:
            log.info("%s: works again", family)
        state.dirty, state.error, state.retry_at, state.delay = False, None, 0.0, _RETRY_FIRST
        if change:
            log.info(
                "%s: %s %s in %.0f ms",
                family,
                "repaired" if drifted else "wrote",
                _described(change),
                (self._clock() - started) * 1000,
            )

    def _failed(self, family: Family, state: FamilyState, error: TableError) -> None:
        if state.error is None or str(state.error) != str(error):
            log.error("%s: cannot program the kernel, trying again: %s", family, error)
        state.dirty, state.error = True, error
        state.retry_at = self._clock() + state.delay
        # A lock has been waited for already, and what it keeps away is due as soon as it is free.
        state.delay = _RETRY_FIRST if error.locked else min(state.delay * 2, _RETRY_CAP)

    def _take_trouble(self, event: Trouble) -> None:
        text = str(event.error)
        # Both resources fail alike when the server is away; once is enough.
        if text not in self._troubles.values():
            log.warning("%s (trying again; the rules stay as they are)", text)
        self._troubles[event.resource] = text

    def _take_recovered(self, event: Recovered) -> None:
        if self._troubles.pop(event.resource, None) and not self._troubles:
            log.info("the API server answers again")

    def _take_node(self, event: Listed | Changed | Deleted) -> None:
        old, node = self._cluster.node, _node_in(event)
        self._cluster.node_listed = True
        note = ""
        if old is not None and node is None:
            note = f"Node {old.name} is gone from the API server; keeping its rules"
        elif old is not None and old.pod_cidrs and node is not None and not node.pod_cidrs:
            note = f"Node {node.name} lost its pod CIDRs; keeping the last ones"
            node = node._replace(pod_cidrs=old.pod_cidrs)
        if note and note != self._node_note:
            log.warning("%s", note)
        self._node_note = note
        if node is not None and node != old:
            self._cluster.node = node
            self._plan_anew()

    def _take_service_list(self, event: Listed) -> None:
        known = self._cluster.services
        listed = {service.key: service for service in event.items}
        self._cluster.services = listed
        self._stale = True
        # The first list is no change to anybody; a later one may hold some.
        if known is None:
            self._service_problems = {s.key: s.problems for s in event.items if s.problems}
            return
        for key in known.keys() | listed.keys():
            self._note(key, known.get(key), listed.get(key), event.arrived)

    def _take_service(self, event: Changed | Deleted) -> None:
        known = self._cluster.services
        if known is None:
            raise RuntimeError("a Service changed before the first list")
        if isinstance(event, Deleted):
            self._note(event.key, known.pop(event.key, None), None, event.arrived)
        else:
            key = event.item.key
            self._note(key, known.get(key), event.item, event.arrived)
            known[key] = event.item

    def _note(self, key: str, old: Service | None, new: Service | None, arrived: float) -> None:
        """Remembers that a Service changed, and since when the kernel does not know."""
        if old == new:
            return
        self._stale = True
        self._changed.setdefault(key, old)
        self._service_problems.pop(key, None)
        if new is not None and new.problems:
            self._service_problems[key] = new.problems
        if any(s.load_balancer_ips or s.external_ips for s in (old, new) if s is not None):
            self._unsynced.setdefault(key, arrived)

    def _say_problems(self, problems: frozenset[Problem]) -> None:
        new = sorted(problems - self._said)
        for problem in new[:_LINES_AT_ONCE]:
            log.warning("%s", problem)
        if len(new) > _LINES_AT_ONCE:
            log.warning("and %d problems more", len(new) - _LINES_AT_ONCE)
        self._said = problems

    def _say_synced(self) -> None:
        now, self._unsynced, changed = self._clock(), {}, self._unsynced
        for key, arrived in list(changed.items())[:_LINES_AT_ONCE]:
            latency = (now - arrived) * 1000
            log.info("%s: %s (%.0f ms)", key, self._shown(key), latency)
        if len(changed) > _LINES_AT_ONCE:
            log.info("and %d Services more", len(changed) - _LINES_AT_ONCE)

    def _shown(self, key: str) -> str:
        service = (self._cluster.services or {}).get(key)
        if service is None:
            return "deleted"
        external = " ".join(map(show_address, service.load_balancer_ips)) or "no external IP"
        return f"{external} to {' '.join(map(show_address, service.cluster_ips)) or 'no ClusterIP'}"


def _described(change: Change) -> str:
    parts: tuple[tuple[int, str], ...] = (
        (len(change.written), "chains"),
        (sum(map(len, change.written.values())), "rules"),
        (len(change.dropped), "chains removed"),
        (len(change.hooked), "jumps"),
    )
    return ", ".join(f"{count} {what}" for count, what in parts if count) or "jumps removed"


def _node_in(event: Listed | Changed | Deleted) -> Node | None:
    """The Node as `event` leaves it; None where there is none any more."""
    if isinstance(event, Listed):
        return event.items[0] if event.items else None
    return event.item if isinstance(event, Changed) else None
