"""The agent's mind: events in, wanted state, repairs and retries out. No thread, no socket here.

All that the rules depend on is one `Inputs`, which never changes: whatever is told makes another,
and `_become` alone goes from one to the next.

`take` notes an event; `tick` does what is due and tells when to call it again, which may become
sooner where nobody tells of drift (`due`). The clock is handed in. What is due, and when:

  a change             at once, but not within 70 ms of the last, so that a burst makes few writes
  splitting chains     a second after the change that made one too long, or with the next burst
  drift that is told   once others are quiet for 30 ms, or a second after they began (nft); a legacy
                       table is asked for its size every half second
  a drift check        each `driftCheckPeriod` where nobody tells, or less often where it costs much
  a proof              every five minutes: whether all was heard that the kernel did
  a thorough check     every hour, whatever the kernel says
  a failed write       after a back-off of its table's own, 0.2 s doubling to 10 s (`kept`)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Callable

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.conntrack import Forgetter
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import FAMILIES, Address, Family
from ipvs_node_agent.model.events import (
    NODES,
    RESTART_REASONS,
    Event,
    Recovered,
    Restarted,
    Skipped,
    Trouble,
)
from ipvs_node_agent.model.objects import Problem, UncoveredPod
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat.ruleset import DRIFT
from ipvs_node_agent.rules.coverage import coverage, still_uncovered
from ipvs_node_agent.rules.here import Here
from ipvs_node_agent.rules.policy import unneeded_in
from ipvs_node_agent.sync.cluster import Pending
from ipvs_node_agent.sync.family import FamilyTable
from ipvs_node_agent.sync.inputs import Inputs
from ipvs_node_agent.sync.invalid import InvalidInput
from ipvs_node_agent.sync.kept import KeptTable
from ipvs_node_agent.sync.log import Notices
from ipvs_node_agent.sync.state import AgentState, FamilyState, Meter, View, in_sync_sentence

_SYNC_INTERVAL = 0.07
# A look at a table of which nobody tells may have so much of a core. It is no rarer than the first
# pause, or a millisecond for each Service, but the second at most.
_CHECK_SHARE, _CHECK_PAUSES = 0.0045, (10.0, 30.0)
# How often to ask for `due` where there is such a table.
GLANCE_PERIOD = 0.5
_PROOF_PERIOD, _RESYNC_PERIOD = 300.0, 3600.0


class Agent:
    """Turns events into a programmed kernel."""

    def __init__(
        self,
        config: Config,
        programmers: Mapping[Family, Programmer],
        clock: Callable[[], float] = time.monotonic,
        conntrack: Forgetter | None = None,
        meter: Meter | None = None,
        here: Here | None = None,
        filters: Mapping[Family, Programmer] | None = None,
    ) -> None:
        self._clock, self._notices = clock, Notices()
        self._inputs = Inputs(config, here=here or Here())
        # What was planned from last, and since when there is something else.
        self._planned: Inputs | None = None
        self._behind_since = math.inf
        # By the keys of the Services.
        self._pending: dict[str, Pending] = {}
        self._tables = {
            family: FamilyTable(family, programmers[family], conntrack, clock, meter or Meter())
            for family in FAMILIES
        }
        self._filters = {
            family: InvalidInput(family, programmer, clock, meter or Meter())
            for family, programmer in (filters or {}).items()
        }
        self._next_sync = self._next_check = self._next_proof = self._next_resync = -math.inf
        self._was_in_sync, self._in_sync_since = False, clock()
        self._refusals: frozenset[Problem] = frozenset()
        self._restarts: Counter[str] = Counter(dict.fromkeys(RESTART_REASONS, 0))
        # As they were told; some may be covered meanwhile.
        self._uncovered: tuple[UncoveredPod, ...] = ()

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds what is wanted, as far as the agent knows."""
        return self.serves and not any(t.dirty or t.error for t in self._filters.values())

    @property
    def serves(self) -> bool:
        """Whether it holds all that Services depend on, which the filter tables are not."""
        is_planned = self._planned is self._inputs and not self._inputs.lacking
        return is_planned and not any(t.dirty or t.error for t in self._tables.values())

    @property
    def _all(self) -> Sequence[KeptTable]:
        """The tables of both kinds, those that Services depend on first."""
        return (*self._tables.values(), *self._filters.values())

    def sentence(self) -> str:
        """How far the agent is, as an operator wants to know it; true at this moment."""
        trouble = self._notices.trouble
        if not self._inputs.told:
            awaited = ", ".join(sorted(self._inputs.here.awaited))
            silent = "the API server has not answered everything yet"
            if self._inputs.cluster.listed:
                silent = f"not known yet: {awaited}"
            return f"Waiting: {trouble or silent}"
        if self._inputs.lacking:
            return f"Waiting, and leaving all rules as they are: {self._inputs.lacking}"
        sentence = self._programmed()
        if self._notices.proxy_doubt:
            sentence += f"; in doubt: {self._notices.proxy_doubt}"
        return f"{sentence}; not following changes: {trouble}" if trouble else sentence

    def _programmed(self) -> str:
        for table in self._all:
            if table.error is not None:
                return f"Cannot program the kernel, trying again: {table.name}: {table.error}"
        if not self.in_sync:
            return "Writing changes to the kernel"
        if unneeded_in(self._inputs.proxy_mode):
            mode = self._inputs.proxy_mode
            return f"Not needed: kube-proxy is in {mode} mode; no Service has rules"
        services = {str(f): table.wanted.planner.services for f, table in self._tables.items()}
        return in_sync_sentence(services, bool(self._notices.trouble))

    def state(self) -> AgentState:
        """What others may know of the agent, at this moment."""
        families = {family: table.state for family, table in self._tables.items()}
        for family, other in self._filters.items():
            state = other.state
            if other.resting:
                # What it counted once is not to be counted back.
                state = FamilyState(failures=state.failures, synced=math.inf)
            families[family] = families[family].joined(state)
        repairs = Counter(dict.fromkeys(DRIFT, 0))
        for table in self._all:
            repairs.update(table.repairs.counts)
        node, known = self._inputs.cluster.node, self._inputs.coverage
        return AgentState(
            families=families,
            repairs=repairs,
            refusals=self._refusals,
            restarts=dict(self._restarts),
            waiting_since=min(
                self._behind_since, *(family.waiting_since for family in families.values())
            ),
            proxy_mode=self._inputs.proxy_mode,
            coverage=known,
            node_addresses=node.addresses if node is not None else (),
            uncovered=still_uncovered(self._uncovered, known) if known is not None else (),
            troubled_since=self._notices.troubled_since,
            lingering=frozenset(self._inputs.here.gone),
        )

    def view(self) -> View:
        """What is known of each Service, at this moment."""
        cluster = self._inputs.cluster
        served = {a: k for t in self._tables.values() for a, k in t.wanted.planner.served.items()}
        repairs = [
            (last[0], f"{table.name}: {last[1]}")
            for table in self._all
            if (last := table.repairs.last) is not None
        ]
        errors = [*(table.last_error for table in self._all), self._notices.last_trouble]
        return View(
            in_sync=self._was_in_sync,
            since=self._in_sync_since,
            node=cluster.node.name if cluster.node else "",
            services=cluster.services or Services(),
            served=served,
            problems=self._notices.problems,
            last_error=max((error for error in errors if error is not None), default=None),
            last_repair=max(repairs, default=None),
        )

    def reconfigure(
        self,
        config: Config,
        programmers: Mapping[Family, Programmer],
        filters: Mapping[Family, Programmer] | None = None,
    ) -> None:
        """Goes on with another configuration; nothing that was learnt is lost."""
        for family, programmer in programmers.items():
            self._tables[family].use(programmer)
        for family, programmer in (filters or {}).items():
            self._filters[family].use(programmer)
        self._become(replace(self._inputs, config=config), self._clock())
        self._next_check = -math.inf

    def take_proxy_mode(self, mode: str | None, doubt: str = "") -> None:
        """Takes all rules of Services away where kube-proxy's mode needs none.

        `doubt` is what speaks against that mode, and changes nothing.
        """
        self._notices.take_proxy_doubt(doubt)
        before = self._inputs.proxy_mode
        if mode != before:
            self._notices.take_proxy_mode(before, mode)
            self._become(replace(self._inputs, proxy_mode=mode), self._clock())

    def take_here(self, change: Callable[[Here, float], Here]) -> None:
        """Goes by what `change` makes of what is known of this node at a time."""
        now, before = self._clock(), self._inputs
        here = change(before.here, now)
        if here is before.here:
            return
        inputs = replace(before, here=here)
        if inputs.of_node != before.of_node:
            self._become(inputs, now)
            return
        # A VIP that moves away, or a route to a pod, is nothing that anybody has to wait for.
        self._inputs = inputs
        if self._planned is before:
            self._planned = inputs

    def take_uncovered(self, pods: tuple[UncoveredPod, ...]) -> None:
        """These are all pods of this node whose packets no rule takes for a pod's."""
        self._uncovered = pods
        self._notices.take_uncovered(pods, self._inputs.coverage)

    def take(self, event: Event) -> None:
        """Notes what `event` says; the kernel is `tick`'s business."""
        cluster = self._inputs.cluster
        if isinstance(event, Trouble):
            self._notices.take_trouble(event, self._clock())
        elif isinstance(event, Recovered):
            self._notices.take_recovered(event)
        elif isinstance(event, Skipped):
            self._notices.take_skipped(event)
        elif isinstance(event, Restarted):
            self._restarts[event.reason] += 1
        else:
            told = cluster.with_node if event.resource == NODES else cluster.with_services
            self._become(replace(self._inputs, cluster=told(event)), event.arrived)

    def _become(self, inputs: Inputs, since: float) -> None:
        """Goes by `inputs` from now on, since something was told at the time `since`."""
        before = self._inputs
        if inputs == before:
            return
        self._inputs = inputs
        # Before everything is told, nobody waits for a change.
        if inputs.told:
            self._behind_since = min(self._behind_since, since)
        self._notices.take_node(before.cluster, inputs.cluster)
        for key, old in inputs.cluster.changes(before.cluster):
            self._pending.setdefault(key, Pending(since, old))

    def tick(self) -> float:
        """Does what is due, and gives the time at which something will be due again; see `due`."""
        self._note_sync()
        self.take_here(Here.at)
        if self._ready():
            self._do_what_is_due()
        self._note_sync()
        return self.due

    @property
    def due(self) -> float:
        """When `tick` will have something to do, as far as is known.

        What others do to a table shows at once where the kernel tells of it (`told_by`). Where it
        does not (`untold`), most of it shows here: this looks at the tables, and notes when they
        were first seen changed. So it has to be asked for repeatedly.
        """
        if not self._inputs.suffice:
            return self._inputs.here.due
        planned = self._planned is self._inputs
        return min(
            math.inf if planned else self._next_sync,
            self._next_check if self.untold else math.inf,
            self._next_proof,
            self._next_resync,
            self._inputs.here.due,
            *(table.due for table in self._all),
        )

    @property
    def untold(self) -> bool:
        """Whether the kernel does not tell of what others do to a table."""
        return any(table.untold for table in self._all)

    def _note_sync(self) -> None:
        if self.in_sync != self._was_in_sync:
            self._was_in_sync, self._in_sync_since = self.in_sync, self._clock()

    def _do_what_is_due(self) -> None:
        now = self._clock()
        if self._planned is not self._inputs and now >= self._next_sync:
            self._plan()
            self._next_sync = now + _SYNC_INTERVAL
        looking = now >= self._next_check
        if now >= self._next_proof:
            looking, self._next_proof = True, now + _PROOF_PERIOD
            for table in self._all:
                table.programmer.prove()
        if now >= self._next_resync:
            looking, self._next_resync = True, now + _RESYNC_PERIOD
            for table in self._all:
                table.programmer.resync()
        for table in sorted(self._all, key=lambda table: table.turn):
            table.sync(looking)
        if looking:
            took = sum(table.check_seconds for table in self._all)
            _, longest, _ = sorted((len(self._inputs.to_program) / 1000, *_CHECK_PAUSES))
            pause = min(took / _CHECK_SHARE, longest)
            self._next_check = now + max(self._inputs.config.drift_check_period, pause)
        self._say_problems()
        planned = self._planned is self._inputs
        if planned and all(t.error or not t.dirty for t in self._tables.values()):
            self._say_synced()
        for table in self._all:
            table.programmer.prepare()

    @property
    def told_by(self) -> Sequence[int]:
        """What poll(2) finds readable as soon as `tick` has to see to what others did."""
        # While something is lacking nobody sees to it, and it would be there for ever.
        tables = self._all if self._inputs.suffice else ()
        return [each for table in tables if (each := table.told_by) is not None]

    def _ready(self) -> bool:
        """Whether everything is known that rules depend on; what is missing is said once."""
        self._notices.take_lacking(self._inputs.lacking if self._inputs.told else "")
        return self._inputs.suffice

    def _plan(self) -> None:
        inputs, since = self._inputs, self._behind_since
        node = inputs.cluster.node
        if node is None:
            raise RuntimeError("a plan without a Node")
        self._notices.take_pods(str(coverage(inputs.config, node, inputs.pod_interfaces)))
        if unneeded_in(inputs.proxy_mode):
            # The kernel is not to know them.
            self._pending = {}
        for table in self._tables.values():
            table.plan(
                inputs.config,
                node,
                inputs.to_program,
                inputs.here.network(inputs.pod_interfaces),
                inputs.pod_interfaces,
                self._pending,
                since,
            )
        for family, other in self._filters.items():
            # Where the node has no address of a family, there is nothing to protect.
            here = bool(self._tables[family].ruleset.chains)
            other.plan(inputs.config.drop_invalid_input and here, since)
        self._planned, self._behind_since = inputs, math.inf

    def _say_problems(self) -> None:
        self._refusals = frozenset().union(
            *(table.wanted.problems for table in self._tables.values())
        )
        self._notices.take_problems(self._inputs.cluster.problems | self._refusals)

    def _say_synced(self) -> None:
        pending, services = self._pending, self._inputs.cluster.services or Services()
        # Those of a table that could not be written are said when it could.
        behind, self._pending = [table for table in self._tables.values() if table.dirty], {}
        for key in [*pending] if behind else ():
            either = pending[key].before, services.get(key)
            if any(table.concerns(each) for table in behind for each in either):
                self._pending[key] = pending.pop(key)
        self._notices.say_synced(
            pending, self._clock(), self._inputs.config, services.get, self._serves
        )

    def _serves(self, key: str, address: Address) -> bool:
        return any(key in table.wanted.planner.holders(address) for table in self._tables.values())
