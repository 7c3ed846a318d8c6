"""The whole mind of the agent in a world that a seed decides: `agent.Agent` on tables in memory.

The API server's truth, what the agent was told of it, the kernel's tables and time are this
module's. At every write and after every tick `oracle` judges:

  - what is written is what `plan` makes of a state between the last one written and the last one
    told, without Services that the kernel refuses, and nothing of others' changes;
  - while the agent says that it is in sync, the table that it saw or left holds what it was told;
  - nothing is raised;

and once the world is quiet: the table is exactly the one that `plan` makes from nothing, and the
agent says just that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model import events
from ipvs_node_agent.model.addresses import FAMILIES, Family
from ipvs_node_agent.model.events import NODES, SERVICES
from ipvs_node_agent.model.objects import Node, Problem, Service
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.sync.agent import Agent
from tests.simulation import history as story
from tests.simulation import oracle
from tests.simulation.objects import CONFIGS, KEY, MEDDLING, node, service
from tests.simulation.oracle import Judge, State
from tests.simulation.search import Violation
from tests.simulation.table import SimTable, Wrote
from tests.support.agentnode import NAMES

# A world is quiet after this long, whatever went wrong: what nobody told of is found within five
# minutes, and a Service that the kernel refused is tried again as late as that.
QUIET = 700.0
# So long after the last thing that went wrong everything has to be right that was told of.
CALM = 15.0
# What a command that hung may hold up: the next try comes as late as it took, a repair five times.
SLOW = 400.0


class World:
    """An API server's truth, a kernel's tables, a clock, and an agent between them."""

    def __init__(self, tells: bool) -> None:
        self.now = 1000.0
        self.config, self.mode = CONFIGS["plain"], None
        # The API server's truth, and what of it the agent has not heard yet.
        self.services: dict[str, Service] = {}
        self.node: Node | None = node("plain")
        self.pending: list[events.Event] = []
        self.listed: set[str] = set()
        self.judge = Judge()
        self.told = State(self.config)
        # For each family the states that a write may be made of, the oldest first.
        self.states: dict[Family, list[State]] = {family: [self.told] for family in FAMILIES}
        self.ever_refused: set[str] = set()
        self.disturbed = self.slow = self.unsaid = -math.inf
        self.tables = {
            family: SimTable(family, tells, self.advance, self._wrote) for family in FAMILIES
        }
        self.agent = Agent(self.config, self.programmers(), lambda: self.now)

    def programmers(self) -> dict[Family, Programmer]:
        names = NAMES - {self.config.chains.mark_masquerade}
        return {f: Programmer(table, owner(names), str(f)) for f, table in self.tables.items()}

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.slow = self.now

    # What happens

    def do(self, step: story.Step) -> None:
        """Lets `step` happen."""
        getattr(self, f"_{type(step).__name__.lower()}")(step)

    def _backend(self, step: story.Backend) -> None:
        pass  # It is told at the beginning.

    def _put(self, step: story.Put) -> None:
        self._changed(service(step), step.told)

    def _changed(self, item: Service, told: bool) -> None:
        self.services[item.key] = item
        self._tell(events.Changed(SERVICES, item, self.now), told)

    def _delete(self, step: story.Delete) -> None:
        key = KEY.format(step.name)
        self.services.pop(key, None)
        self._tell(events.Deleted(SERVICES, key, self.now), step.told)

    def _swap(self, step: story.Swap) -> None:
        one, other = (self.services.get(KEY.format(name)) for name in (step.one, step.other))
        if one is None or other is None:
            return
        if step.what == "ips":
            ips = one.load_balancer_ips
            one = one._replace(load_balancer_ips=other.load_balancer_ips)
            other = other._replace(load_balancer_ips=ips)
        else:
            ips = one.cluster_ips
            one = one._replace(cluster_ips=other.cluster_ips)
            other = other._replace(cluster_ips=ips)
        self._changed(one, False)
        self._changed(other, step.told)

    def _nodebecomes(self, step: story.NodeBecomes) -> None:
        before, self.node = self.node, node(step.what)
        if self.node is not None:
            self._tell(events.Changed(NODES, self.node, self.now), step.told)
        elif before is not None:
            self._tell(events.Deleted(NODES, before.name, self.now), step.told)

    def _deliver(self, step: story.Deliver) -> None:
        due, self.pending = self.pending[: step.events], self.pending[step.events :]
        for event in due:
            self._take(event)

    def _list(self, step: story.List) -> None:
        # What was on its way is in the list.
        self.pending = [e for e in self.pending if e.resource != step.resource]
        items: tuple[Any, ...] = tuple(self.services.values())
        if step.resource == NODES:
            items = (self.node,) if self.node is not None else ()
        self._take(events.Listed(step.resource, items, self.now))

    def _tell(self, event: events.Event, at_once: bool) -> None:
        self.pending.append(event)
        if at_once:
            self._deliver(story.Deliver(len(self.pending)))

    def _take(self, event: events.Event) -> None:
        if event.resource not in self.listed and not isinstance(event, events.Listed):
            # Nobody hears of a change before the first list, which has it.
            self._list(story.List(event.resource))
            return
        self.listed.add(event.resource)
        self.agent.take(event)
        services, own = self.told.services, self.told.node
        if event.resource == NODES:
            found: Node | None = None
            if isinstance(event, events.Listed):
                found = event.items[0] if event.items else None
            elif isinstance(event, events.Changed):
                found = event.item
            own = found if own is None else own if found is None else oracle.kept(found, own)
        elif isinstance(event, events.Listed):
            services = {item.key: item for item in event.items}
        elif isinstance(event, events.Changed):
            services = {**(services or {}), event.item.key: event.item}
        elif isinstance(event, events.Deleted):
            services = {key: item for key, item in (services or {}).items() if key != event.key}
        self._told(replace(self.told, services=services, node=own))

    def _told(self, state: State) -> None:
        self.told = state
        for states in self.states.values():
            states.append(state)

    def _others(self, step: story.Others) -> None:
        table = self.tables[FAMILIES[0] if step.family == 4 else FAMILIES[1]]
        if step.moment:
            table.meanwhile.append((step.moment, lambda: self._meddle(table, step)))
        else:
            self._meddle(table, step)

    def _meddle(self, table: SimTable, step: story.Others) -> None:
        """Somebody else does something to `table`."""
        if not step.told or not table.tells:
            self.unsaid = self.now
        self.disturbed = self.now
        there = sorted(oracle.own(table.copy()))
        chain = step.chain
        if chain.startswith("#"):
            chain = there[int(chain[1:]) % len(there)] if there else "IPVS_OUTPUT"
        built_in = "PREROUTING" if "PREROUTING" in chain else "OUTPUT"
        told = step.told
        if step.what == "flush table":
            table.flush(told)
        elif step.what == "rename":
            table.rename(chain, "GONE", told)
        elif step.what.startswith("native"):
            table.native = step.what == "native on" and table.tells
            table.note(told)
        else:
            table.change(MEDDLING[step.what].format(chain=chain, built_in=built_in), told)

    def _refuse(self, step: story.Refuse) -> None:
        self.disturbed = self.now
        self.ever_refused.add(step.ip)
        for table in self.tables.values():
            table.refused[step.ip] = step.names_it

    def _accept(self, step: story.Accept) -> None:
        self.disturbed = self.unsaid = self.now
        for table in self.tables.values():
            table.refused.clear()

    def _fail(self, step: story.Fail) -> None:
        self.disturbed = self.now
        self.tables[FAMILIES[0] if step.family == 4 else FAMILIES[1]].faults += step.faults

    def _reload(self, step: story.Reload) -> None:
        self.config = CONFIGS[step.config]
        self.agent.reconfigure(self.config, self.programmers())
        self._told(replace(self.told, config=self.config))

    def _mode(self, step: story.Mode) -> None:
        self.agent.take_proxy_mode(step.mode)
        self._told(replace(self.told, mode=step.mode))

    def _trouble(self, step: story.Trouble) -> None:
        if step.over:
            self.agent.take(events.Recovered(step.resource))
        else:
            self.agent.take(events.Trouble(step.resource, AgentError("API server", "is away")))

    # Time

    def _pass(self, step: story.Pass) -> None:
        end = self.now + step.seconds
        if step.ticks == "due":
            self._tick_until(end)
        self.now = max(self.now, end)
        if step.ticks == "one":
            self._tick()

    def _tick_until(self, end: float) -> None:
        ticks, most = 0, 200 + 30 * (end - self.now)
        while self.now <= end:
            began, due = self.now, self._tick()
            ticks += 1
            if due <= began or ticks > most:
                raise Violation(f"asks for a tick at {due}, after the one at {began}")
            self.now = max(due, self.now)

    def _tick(self) -> float:
        due = self.agent.tick()
        self._look()
        return due

    def _calm(self, step: story.Calm) -> None:
        """Where nothing is wrong any more, a few seconds are enough for everything."""
        self._deliver(story.Deliver(len(self.pending)))
        began = self.now
        self._tick_until(began + CALM)
        tables = self.tables.values()
        slow = began - self.slow < SLOW or began - self.unsaid < QUIET
        if slow or any(table.faults or table.meanwhile or table.refused for table in tables):
            return
        if any(table.native for table in tables):
            if self.agent.in_sync:
                raise Violation("in sync with a table that cannot be read")
            return
        self._expect_everything()

    def end(self) -> None:
        """Everything is told, all faults end, and a long time passes."""
        for resource in (SERVICES, NODES):
            if resource not in self.listed:
                self._list(story.List(resource))
        self._deliver(story.Deliver(len(self.pending)))
        for table in self.tables.values():
            table.faults.clear()
            table.meanwhile.clear()
            if table.native:
                table.native = False
                table.note()
        end = self.now + QUIET
        self._tick_until(self.now + 3)
        while self.now < end:
            self.now += 10.0
            self._tick()
        self._tick_until(self.now + 5)
        self._expect_everything()

    # What has to hold

    def _wrote(self, table: SimTable, wrote: Wrote) -> None:
        """After each write: what was others' is untouched, and what is ours is as planned."""
        if oracle.foreign(wrote.there) != oracle.foreign(wrote.now):
            raise Violation(f"{table.family}: foreign rules were changed by\n{wrote.text}")
        if self.told.lacking:
            raise Violation(f"{table.family}: written while something is lacking:\n{wrote.text}")
        family, got = table.family, oracle.meaning(wrote.left)
        if "-probe" in wrote.text and oracle.keeps(oracle.meaning(wrote.seen), got):
            return
        for place, state in enumerate(self.states[family]):
            if not state.lacking and got in self._meant(state, table, wrote.left):
                del self.states[family][:place]
                return
        raise Violation(
            f"{table.family}: this is the plan of no state since the last write:\n{wrote.text}"
            f"it left {oracle.own(wrote.left)}\n"
            f"and wanted is {next(self._meant(self.told, table, wrote.left))}"
        )

    def _meant(
        self, state: State, table: SimTable, there: Mapping[str, list[str]]
    ) -> Iterator[oracle.Meaning]:
        """What `state` may mean in `table`: with or without what the kernel may have refused."""
        own_mark = not there.get(state.config.chains.mark_masquerade)
        served = oracle.with_rules(oracle.own(dict(there)).values())
        refused = [
            key
            for key, item in (state.services or {}).items()
            if key not in served and self.ever_refused & {*map(str, oracle.external_ips(item))}
        ]
        for count in range(len(refused) + 1):
            for some in itertools.combinations(refused, count):
                yield self.judge.meaning(state, table.family, own_mark, frozenset(some))

    def _look(self) -> None:
        """After each tick: what the agent says of itself is so."""
        sentence, in_sync = self.agent.sentence(), self.agent.in_sync
        if self.told.lacking:
            if in_sync or not sentence.startswith("Waiting"):
                raise Violation(f"something is lacking, and it says: {in_sync}, {sentence}")
            return
        if in_sync != sentence.startswith(("In sync", "Not needed")):
            raise Violation(f"in_sync is {in_sync}, and it says: {sentence}")
        if not in_sync:
            return
        for family, table in self.tables.items():
            got = oracle.meaning(table.seen)
            if got not in self._meant(self.told, table, table.seen):
                raise Violation(
                    f"{family}: in sync, and the table as last seen or left has {got},\n"
                    f"while what was told means {next(self._meant(self.told, table, table.seen))}"
                )

    def _expect_everything(self) -> None:
        """All is as if the agent had been started this moment, and it says so."""
        if self.told.lacking:
            self._look()
            return
        if not self.agent.in_sync:
            raise Violation(f"not in sync in a quiet world: {self.agent.sentence()}")
        problems = set(oracle.told_problems(self.told))
        counts = {}
        for family, table in self.tables.items():
            plan, refused = self._expected(family, table)
            self._expect_table(family, table.copy(), plan)
            counts[family] = len(oracle.with_rules(plan.ruleset.chains.values()))
            self._expect_state(family, plan, counts[family])
            problems |= set(plan.problems)
            problems |= {Problem(key, "KernelRefused", "") for key in refused}
        found = {
            p._replace(text="") if p.reason == "KernelRefused" else p
            for p in self.agent.view().problems
        }
        if found != problems:
            raise Violation(f"problems are {found}, wanted {problems}")
        self._expect_words(counts)

    def _expected(self, family: Family, table: SimTable) -> tuple[Any, frozenset[str]]:
        """The plan of what was told without what the kernel refuses, and who that is."""
        there = table.copy()
        own_mark = not there.get(self.config.chains.mark_masquerade)
        # What the kernel took before it began to refuse the like is there and stays.
        served = oracle.with_rules(oracle.own(there).values())
        refused: frozenset[str] = frozenset()
        while True:
            plan = self.judge.plan(self.told, family, own_mark, refused)
            rules = (rule for chain in plan.ruleset.chains.values() for rule in chain)
            bad = [r for r in rules if any(f"-d {ip}/" in r for ip in table.refused)]
            more = oracle.with_rules([bad]) - served
            if not more:
                return plan, refused
            refused |= more

    def _expect_table(self, family: Family, there: dict[str, list[str]], plan: Any) -> None:
        wanted = {name: list(rules) for name, rules in plan.ruleset.chains.items()}
        jumps = {built_in: [(1, chain)] for built_in, chain in plan.ruleset.jumps.items()}
        referred = {rule.rpartition("-j ")[2] for rules in there.values() for rule in rules}
        found = {
            name: rules
            for name, rules in oracle.own(there).items()
            # What others' rules jump to cannot go.
            if name in wanted or rules or name not in referred
        }
        if found != wanted or oracle.own_jumps(there) != jumps:
            raise Violation(
                f"{family}: the table has {found} and {oracle.own_jumps(there)},\n"
                f"wanted {wanted} and {jumps}"
            )

    def _expect_state(self, family: Family, plan: Any, services: int) -> None:
        state = self.agent.state()
        of = state.families[family]
        chains = plan.ruleset.chains
        wanted = (services, sum(map(len, chains.values())), len(chains), math.inf)
        got = (of.services, of.rules, of.chains, of.waiting_since)
        if got != wanted or state.waiting_since != math.inf:
            raise Violation(f"{family}: the state is {got}, wanted {wanted}")

    def _expect_words(self, counts: Mapping[Family, int]) -> None:
        shown = ", ".join(f"{count} in {family}" for family, count in counts.items() if count)
        wanted = f"In sync; Services with rules: {shown or 'none'}"
        if self.told.mode in ("iptables", "nftables"):
            wanted = f"Not needed: kube-proxy is in {self.told.mode} mode; no Service has rules"
        got = self.agent.sentence().partition("; not following")[0]
        if got != wanted:
            raise Violation(f"it says {got!r}, wanted {wanted!r}")
