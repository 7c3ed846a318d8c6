"""The agent's mind: events in, wanted state, repairs and retries out. No thread, no socket here.

`take` notes an event; `tick` does what is due and tells when to call it again. The clock is handed
in. What is due, and when:

  a change             at once, but not within 70 ms of the last, so that a burst makes few writes
  splitting chains     a second after the change that made one too long, or with the next burst
  drift that is told   within half a second, since asking costs next to nothing (nft)
  a drift check        each `driftCheckPeriod`, or less often where that took over 0.5 % of a core
  a thorough one       every five minutes
  a failed write       after a back-off of its family's own, 0.2 s doubling to 10 s (`familytable`)
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Callable, NamedTuple

from ipvs_node_agent import drift
from ipvs_node_agent.addresses import FAMILIES, Address, Family, show_address
from ipvs_node_agent.config import Config
from ipvs_node_agent.conntrack import Forgetter
from ipvs_node_agent.familytable import FamilyTable
from ipvs_node_agent.figures import AgentFigures, Meter, View
from ipvs_node_agent.model import Node, Problem, Service, Snapshot
from ipvs_node_agent.programmer import Programmer
from ipvs_node_agent.proxymode import unneeded_in
from ipvs_node_agent.rules import pod_cidrs
from ipvs_node_agent.watch import (
    RESTART_REASONS,
    Changed,
    Deleted,
    Event,
    Listed,
    Recovered,
    Restarted,
    Skipped,
    Trouble,
)

log = logging.getLogger(__name__)

SERVICES, NODES = "services", "nodes"

_SYNC_INTERVAL = 0.07
_SETTLE_AFTER = 1.0
_CHECK_SHARE = 0.005
_LISTEN_PERIOD = 0.5
_DOUBT_PERIOD = 300.0
# So many changes at once are a burst, which need not write as few chains as a single one.
_BURST = 8
_LINES_AT_ONCE = 20
# What the API server sends again and again is said once, as long as it is not more than this.
_REMEMBERED = 100


class _Unsynced(NamedTuple):
    """A change of a Service that the kernel does not know: since when, and what it was `before`."""

    since: float
    before: Service | None


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


class Agent:
    """Turns events into a programmed kernel."""

    def __init__(
        self,
        config: Config,
        programmers: Mapping[Family, Programmer],
        clock: Callable[[], float] = time.monotonic,
        conntrack: Forgetter | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._config, self._clock = config, clock
        self._cluster = Cluster()
        self._tables = {
            family: FamilyTable(family, config, programmers[family], conntrack, clock, meter)
            for family in FAMILIES
        }
        # Since when the plans are behind what is known; `math.inf` where they are not.
        self._stale_since = math.inf
        self._stale = True
        self._next_sync = self._next_check = self._next_doubt = 0.0
        self._settle_at = math.inf
        # What the Services were, as the planners know them, that changed since.
        self._changed: dict[str, Service | None] = {}
        self._service_problems: dict[str, tuple[Problem, ...]] = {}
        self._unsynced: dict[str, _Unsynced] = {}
        self._troubles: dict[str, str] = {}
        self._last_trouble: tuple[float, str] | None = None
        self._was_in_sync, self._in_sync_since = False, clock()
        self._lacked = self._node_note = ""
        self._skipped: set[Skipped] = set()
        self._said: frozenset[Problem] = frozenset()
        self._refusals: frozenset[Problem] = frozenset()
        self._refused: Mapping[str, int] = {}
        # Empty where Services are programmed.
        self._unneeded_mode = ""
        self._restarts: Counter[str] = Counter(dict.fromkeys(RESTART_REASONS, 0))

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds what is wanted, as far as the agent knows."""
        tables = self._tables.values()
        return not self._stale and not any(table.dirty or table.error for table in tables)

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
        for family, table in self._tables.items():
            if table.error is not None:
                return f"Cannot program the kernel, trying again: {family}: {table.error}"
        if not self.in_sync:
            return "Writing changes to the kernel"
        counts = {str(family): table.services for family, table in self._tables.items()}
        if self._unneeded_mode:
            return f"Not needed: kube-proxy is in {self._unneeded_mode} mode; no Service has rules"
        shown = ", ".join(f"{count} in {family}" for family, count in counts.items() if count)
        return f"In sync; Services with rules: {shown or 'none'}"

    def figures(self) -> AgentFigures:
        """The agent in figures, at this moment."""
        families = {family: table.figures for family, table in self._tables.items()}
        repairs = Counter(dict.fromkeys(drift.MEANINGS, 0))
        for table in self._tables.values():
            repairs.update(table.repairs)
        return AgentFigures(
            families=families,
            repairs=repairs,
            refused=self._refused,
            refusals=self._refusals,
            restarts=dict(self._restarts),
            waiting_since=min(
                self._stale_since, *(figures.waiting_since for figures in families.values())
            ),
            unneeded_mode=self._unneeded_mode,
        )

    def view(self) -> View:
        """What is known of each Service, at this moment."""
        node = self._cluster.node
        having: dict[Address, tuple[str, ...]] = {}
        for table in self._tables.values():
            having.update(table.having)
        errors = [self._last_trouble, *(table.last_error for table in self._tables.values())]
        return View(
            in_sync=self._was_in_sync,
            since=self._in_sync_since,
            node=node.name if node else "",
            services=dict(self._cluster.services or {}),
            having=having,
            problems=self._said,
            last_error=max((error for error in errors if error is not None), default=None),
        )

    def reconfigure(self, config: Config, programmers: Mapping[Family, Programmer]) -> None:
        """Goes on with another configuration; nothing that was learnt is lost."""
        self._config = config
        for family, programmer in programmers.items():
            self._tables[family].use(programmer)
        self._plan_anew(self._clock())
        self._next_check = 0.0

    def take_proxy_mode(self, mode: str | None) -> None:
        """Takes all rules of Services away where kube-proxy's mode needs none; see `proxymode`."""
        before, self._unneeded_mode = self._unneeded_mode, (mode or "") if unneeded_in(mode) else ""
        if self._unneeded_mode == before:
            return
        if self._unneeded_mode:
            log.warning(
                "kube-proxy is in %s mode, where external IPs work without this agent and not with"
                " it: no Service gets rules",
                mode,
            )
        else:
            log.info("kube-proxy is in %s mode: Services get their rules", mode)
        self._plan_anew(self._clock())

    def take(self, event: Event) -> None:
        """Notes what `event` says; the kernel is `tick`'s business."""
        if isinstance(event, Trouble):
            self._take_trouble(event)
        elif isinstance(event, Recovered):
            self._take_recovered(event)
        elif isinstance(event, Skipped):
            self._take_skipped(event)
        elif isinstance(event, Restarted):
            self._restarts[event.reason] += 1
        elif event.resource == NODES:
            self._take_node(event)
        elif isinstance(event, Listed):
            self._take_service_list(event)
        else:
            self._take_service(event)

    def tick(self) -> float:
        """Does what is due, and gives the time at which something will be due again."""
        self._note_sync()
        due = self._do_what_is_due()
        self._note_sync()
        return due

    def _note_sync(self) -> None:
        if self.in_sync != self._was_in_sync:
            self._was_in_sync, self._in_sync_since = self.in_sync, self._clock()

    def _do_what_is_due(self) -> float:
        now = self._clock()
        snapshot = self._ready()
        if snapshot is None:
            return now + self._config.drift_check_period
        if now >= (self._next_sync if self._stale else self._settle_at):
            self._plan(snapshot, settle=now >= self._settle_at)
            self._next_sync = now + _SYNC_INTERVAL
        looking = now >= self._next_check
        if now >= self._next_doubt:
            self._next_doubt = now + _DOUBT_PERIOD
            for table in self._tables.values():
                table.doubt()
        # One that fails may hang until its time limit.
        for table in sorted(self._tables.values(), key=lambda table: table.error is not None):
            table.sync(looking)
        if looking:
            took = sum(table.check_seconds for table in self._tables.values())
            self._next_check = now + max(self._config.drift_check_period, took / _CHECK_SHARE)
        self._say_problems(snapshot)
        if not self._stale and all(t.error or not t.dirty for t in self._tables.values()):
            self._say_synced()
        return self._next_due(now)

    def _next_due(self, now: float) -> float:
        due = [self._next_check, self._settle_at, now + _LISTEN_PERIOD]
        due += [self._next_sync] if self._stale else []
        due += [table.due for table in self._tables.values()]
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
        if self._unneeded_mode:
            snapshot, changed, self._unsynced = Snapshot({}, snapshot.node), {}, {}
        since, self._stale_since = self._stale_since, math.inf
        arrived = {key: self._unsynced[key].since for key in changed if key in self._unsynced}
        settle = settle or len(changed) >= _BURST
        for table in self._tables.values():
            table.plan(self._config, snapshot, changed, settle, arrived, since)
        if not any(table.loose for table in self._tables.values()):
            self._settle_at = math.inf
        elif self._settle_at == math.inf:
            self._settle_at = self._clock() + _SETTLE_AFTER

    def _become_stale(self, since: float) -> None:
        self._stale, self._stale_since = True, min(self._stale_since, since)

    def _plan_anew(self, since: float) -> None:
        """Has everything planned from the start, as what all rules depend on has changed."""
        for table in self._tables.values():
            table.plan_anew()
        self._become_stale(since)

    def _take_trouble(self, event: Trouble) -> None:
        text = str(event.error)
        # Both resources fail alike when the server is away; once is enough.
        if text not in self._troubles.values():
            log.warning("%s (trying again; the rules stay as they are)", text)
        self._troubles[event.resource] = text
        self._last_trouble = (self._clock(), text)

    def _take_skipped(self, event: Skipped) -> None:
        # Each list has it again.
        if event not in self._skipped:
            log.warning("passed over in the %s of the API server: %s", event.resource, event.text)
            if len(self._skipped) >= _REMEMBERED:
                self._skipped.clear()
            self._skipped.add(event)

    def _take_recovered(self, event: Recovered) -> None:
        if self._troubles.pop(event.resource, None) and not self._troubles:
            log.info("the API server answers again")

    def _take_node(self, event: Listed | Changed | Deleted) -> None:
        old, node = self._cluster.node, _node_in(event)
        self._cluster.node_listed = True
        note = ""
        if old is not None and node is None:
            note = "gone"
        elif old is not None and old.pod_cidrs and node is not None and not node.pod_cidrs:
            note = "without pod CIDRs"
            node = node._replace(pod_cidrs=old.pod_cidrs)
        if old is not None and note != self._node_note:
            if note == "gone":
                log.warning("Node %s is gone from the API server; keeping its rules", old.name)
            elif note:
                log.warning("Node %s lost its pod CIDRs; keeping the last ones", old.name)
        self._node_note = note
        if node is not None and node != old:
            self._cluster.node = node
            self._plan_anew(event.arrived)

    def _take_service_list(self, event: Listed) -> None:
        known = self._cluster.services
        listed = {service.key: service for service in event.items}
        self._cluster.services = listed
        self._become_stale(event.arrived)
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
        self._become_stale(arrived)
        self._changed.setdefault(key, old)
        self._service_problems.pop(key, None)
        if new is not None and new.problems:
            self._service_problems[key] = new.problems
        if any(s.load_balancer_ips or s.external_ips for s in (old, new) if s is not None):
            self._unsynced.setdefault(key, _Unsynced(arrived, old))

    def _say_problems(self, snapshot: Snapshot) -> None:
        read = (problem for found in self._service_problems.values() for problem in found)
        refused = [table.problems for table in self._tables.values()]
        problems = frozenset(snapshot.node.problems).union(read, *refused)
        if problems == self._said:
            return
        self._refusals = frozenset().union(*refused)
        self._refused = Counter(problem.reason for found in refused for problem in found)
        new = sorted(problems - self._said)
        for problem in new[:_LINES_AT_ONCE]:
            log.warning("%s (%s)", problem, problem.reason)
        if len(new) > _LINES_AT_ONCE:
            log.warning("and %d problems more", len(new) - _LINES_AT_ONCE)
        self._said = problems

    def _say_synced(self) -> None:
        now, self._unsynced, unsynced = self._clock(), {}, self._unsynced
        changed = {
            key: change
            for key, change in unsynced.items()
            if self._external(change.before) or self._external(self._service(key))
        }
        for key, change in list(changed.items())[:_LINES_AT_ONCE]:
            latency = (now - change.since) * 1000
            log.info("%s: %s (%.0f ms)", key, self._shown(key, change.before), latency)
        if len(changed) > _LINES_AT_ONCE:
            log.info("and %d Services more", len(changed) - _LINES_AT_ONCE)

    def _service(self, key: str) -> Service | None:
        return (self._cluster.services or {}).get(key)

    def _external(self, service: Service | None) -> tuple[Address, ...]:
        """The external IPs of `service` that the configuration asks for."""
        if service is None:
            return ()
        more = service.external_ips if self._config.services.external_ips else ()
        return tuple(dict.fromkeys((*service.load_balancer_ips, *more)))

    def _shown(self, key: str, before: Service | None) -> str:
        """What the kernel holds of a Service, in a few words."""
        service = self._service(key)
        asked = self._external(service)
        if service is None or not asked:
            what = "deleted" if service is None else "no external IP"
            return f"{what}, was {_leading(self._external(before), before)}"
        served = [
            address
            for address in asked
            if any(table.serves(key, address) for table in self._tables.values())
        ]
        if served:
            return _leading(served, service)
        return f"{' '.join(map(show_address, asked))} without rules"


def _leading(external: Iterable[Address], service: Service | None) -> str:
    internal = service.cluster_ips if service is not None else ()
    to = " ".join(map(show_address, internal)) or "no ClusterIP"
    return f"{' '.join(map(show_address, external))} to {to}"


def _node_in(event: Listed | Changed | Deleted) -> Node | None:
    """The Node as `event` leaves it; None where there is none any more."""
    if isinstance(event, Listed):
        return event.items[0] if event.items else None
    return event.item if isinstance(event, Changed) else None
