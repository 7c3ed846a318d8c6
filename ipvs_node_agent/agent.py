"""The agent's mind: events in, wanted state, repairs and retries out. No thread, no socket here.

`take` notes an event; `tick` does what is due and tells when to call it again. The clock is handed
in. What is due, and when:

  a change             at once, but not within 70 ms of the last, so that a burst makes few writes
  splitting chains     a second after the change that made one too long, or with the next burst
  drift that is told   within half a second, since asking costs next to nothing (nft)
  a drift check        each `driftCheckPeriod`, or up to 4 s where that took over 0.5 % of a core
  a thorough one       every five minutes
  a failed write       after a back-off of its family's own, 0.2 s doubling to 10 s (`familytable`)
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Callable

from ipvs_node_agent import drift
from ipvs_node_agent.addresses import FAMILIES, Address, Family
from ipvs_node_agent.cluster import Cluster, Told
from ipvs_node_agent.config import Config
from ipvs_node_agent.conntrack import Forgetter
from ipvs_node_agent.familytable import FamilyTable
from ipvs_node_agent.figures import AgentFigures, Meter, View
from ipvs_node_agent.model import Problem, Service, Snapshot
from ipvs_node_agent.news import News
from ipvs_node_agent.programmer import Programmer
from ipvs_node_agent.proxymode import to_program, unneeded_in
from ipvs_node_agent.rules import pod_cidrs
from ipvs_node_agent.watch import (
    RESTART_REASONS,
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
# What others did is to be undone within five seconds, however much a look at it costs.
_CHECK_PAUSE = 4.0
_LISTEN_PERIOD = 0.5
_DOUBT_PERIOD = 300.0
# So many changes at once are a burst, which need not write as few chains as a single one.
_BURST = 8


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
        self._cluster, self._news = Cluster(), News()
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
        self._was_in_sync, self._in_sync_since = False, clock()
        self._lacked = ""
        self._refusals: frozenset[Problem] = frozenset()
        self._proxy_mode: str | None = None
        self._restarts: Counter[str] = Counter(dict.fromkeys(RESTART_REASONS, 0))

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds what is wanted, as far as the agent knows."""
        tables = self._tables.values()
        return not self._stale and not any(table.dirty or table.error for table in tables)

    def sentence(self) -> str:
        """How far the agent is, as an operator wants to know it; true at this moment."""
        trouble = self._news.trouble
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
        if unneeded_in(self._proxy_mode):
            return f"Not needed: kube-proxy is in {self._proxy_mode} mode; no Service has rules"
        counts = {str(family): table.services for family, table in self._tables.items()}
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
            refusals=self._refusals,
            restarts=dict(self._restarts),
            waiting_since=min(
                self._stale_since, *(figures.waiting_since for figures in families.values())
            ),
            proxy_mode=self._proxy_mode,
        )

    def view(self) -> View:
        """What is known of each Service, at this moment."""
        node = self._cluster.node
        having: dict[Address, tuple[str, ...]] = {}
        for table in self._tables.values():
            having.update(table.having)
        errors = [self._news.last_trouble, *(table.last_error for table in self._tables.values())]
        return View(
            in_sync=self._was_in_sync,
            since=self._in_sync_since,
            node=node.name if node else "",
            services=dict(self._cluster.services),
            having=having,
            problems=self._news.problems,
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
        before, self._proxy_mode = self._proxy_mode, mode
        if mode == before:
            return
        if unneeded_in(mode):
            log.warning(
                "kube-proxy is in %s mode, where external IPs work without this agent and not with"
                " it: no Service gets rules",
                mode,
            )
        elif unneeded_in(before):
            log.info("kube-proxy is in %s mode: Services get their rules", mode)
        if unneeded_in(mode) != unneeded_in(before):
            self._plan_anew(self._clock())

    def take(self, event: Event) -> None:
        """Notes what `event` says; the kernel is `tick`'s business."""
        if isinstance(event, Trouble):
            self._news.take_trouble(event, self._clock())
        elif isinstance(event, Recovered):
            self._news.take_recovered(event)
        elif isinstance(event, Skipped):
            self._news.take_skipped(event)
        elif isinstance(event, Restarted):
            self._restarts[event.reason] += 1
        elif event.resource != NODES:
            self._take_services(event)
        elif self._cluster.take_node(event):
            self._plan_anew(event.arrived)

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
            pause = min(took / _CHECK_SHARE, _CHECK_PAUSE)
            self._next_check = now + max(self._config.drift_check_period, pause)
        self._say_problems()
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
        if unneeded_in(self._proxy_mode):
            changed = {}
            self._news.forget_changes()
        snapshot = to_program(snapshot, self._proxy_mode)
        since, self._stale_since = self._stale_since, math.inf
        arrived = self._news.arrived(changed)
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

    def _take_services(self, event: Told) -> None:
        if isinstance(event, Listed):
            self._become_stale(event.arrived)
        for change in self._cluster.take_services(event):
            self._become_stale(event.arrived)
            self._changed.setdefault(change.key, change.before)
            self._news.take_change(change, event.arrived)

    def _say_problems(self) -> None:
        self._refusals = frozenset().union(*(table.problems for table in self._tables.values()))
        self._news.take_problems(self._cluster.problems | self._refusals)

    def _say_synced(self) -> None:
        self._news.say_synced(self._clock(), self._config, self._cluster.services.get, self._serves)

    def _serves(self, key: str, address: Address) -> bool:
        return any(table.serves(key, address) for table in self._tables.values())
