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
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model import events
from ipvs_node_agent.model.addresses import FAMILIES, Address, Family, parse_address
from ipvs_node_agent.model.events import NODES, SERVICES
from ipvs_node_agent.model.objects import Node, Problem, Service
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.rules.here import ADDRESSES, API_SERVERS, Here
from ipvs_node_agent.sync.agent import GLANCE_PERIOD, Agent
from tests.simulation import filters, objects, oracle
from tests.simulation.history import history
from tests.simulation.objects import CONFIGS, KEY, MEDDLING, Put
from tests.simulation.oracle import State
from tests.simulation.search import Simulation, Step, Violation
from tests.simulation.table import SimTable, Telling, Transactions, Wrote
from tests.support.agentnode import NAMES

# A world is quiet after this long, whatever went wrong: what nobody told of is found within five
# minutes, and a Service that the kernel refused is tried again as late as that. What not even the
# number of changes shows is found within an hour.
QUIET, UNSEEN = 700.0, 4300.0
# So long after the last thing that went wrong everything has to be right that was told of.
CALM = 15.0
# A little longer than others have to be quiet before the agent looks at what they did.
MOMENT = 0.05
# What a command that hung may hold up: the next try comes as late as it took, a repair five times.
SLOW = 400.0
# So long an address of the node's counts after it is gone.
_LINGER = 60.0


class World:
    """An API server's truth, a kernel's tables, a clock, and an agent between them."""

    def __init__(self) -> None:
        self.now = 1000.0
        # The API server's truth, and what of it the agent has not heard yet.
        self.services: dict[str, Service] = {}
        self.node: Node | None = objects.NODES["plain"]
        self.pending: list[events.Event] = []
        self.listed: set[str] = set()
        # What was counted so far.
        self.counted: dict[str, int] = {}
        self.told = State(objects.PLAIN)
        # For each family the states that a write may be made of, the oldest first.
        self.states: dict[Family, list[State]] = {family: [self.told] for family in FAMILIES}
        self.ever_refused: set[str] = set()
        # What cannot be followed.
        self.troubles: set[str] = set()
        self.slow = self.unsaid = self.unseen = -math.inf
        # Whether work waits for the main loop, and when it has something to do without any.
        self.woken, self.due = True, -math.inf
        # When it asks next what nobody tells of.
        self.glance = -math.inf
        all_tables = Transactions()
        self.tables = {f: SimTable(f, self.advance, self._wrote, all_tables) for f in FAMILIES}
        self.filters = {
            f: SimTable(f, self.advance, filters.judge, all_tables, "filter") for f in FAMILIES
        }
        # Addresses that the kernel has no more, and since when.
        self.gone: dict[Address, float] = {}
        self.addresses: frozenset[Address] = frozenset()
        here = Here(awaited=frozenset({ADDRESSES, API_SERVERS}))
        self.places = frozenset[tuple[Address, int]]()
        self.agent = Agent(
            self.told.config,
            self._programmers(),
            lambda: self.now,
            here=here,
            filters=self._of_filters(),
        )

    def _programmers(self) -> dict[Family, Programmer]:
        names = NAMES - {self.told.config.chains.mark_masquerade}
        return {f: Programmer(table, owner(names), str(f)) for f, table in self.tables.items()}

    def _of_filters(self) -> dict[Family, Programmer]:
        owns = owner(frozenset({filters.CHAIN}))
        return {f: Programmer(table, owns, f"{f} filter") for f, table in self.filters.items()}

    @property
    def _all(self) -> list[SimTable]:
        return [*self.tables.values(), *self.filters.values()]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.slow = self.now

    # What happens: the steps of a history

    def backend(self, tells: bool) -> None:
        """First of all: whether the kernel tells of others' changes, as nft's does."""
        for table in self._all:
            table.tells = tells

    def put(self, put: Put, told: bool) -> None:
        """A Service comes or changes at the API server; `told`: the agent hears at once."""
        self._changed(objects.service(put), told)

    def _changed(self, item: Service, told: bool) -> None:
        self.services[item.key] = item
        self._tell(events.Changed(SERVICES, item, self.now), told)

    def delete(self, name: str, told: bool) -> None:
        """A Service goes."""
        key = KEY.format(name)
        self.services.pop(key, None)
        self._tell(events.Deleted(SERVICES, key, self.now), told)

    def swap(self, name: str, other_name: str, field: str, told: bool) -> None:
        """Two Services swap their external IPs, or their ClusterIPs."""
        one, other = (self.services.get(KEY.format(each)) for each in (name, other_name))
        if one is not None and other is not None:
            self._changed(one._replace(**{field: getattr(other, field)}), False)
            self._changed(other._replace(**{field: getattr(one, field)}), told)

    def node_becomes(self, what: str, told: bool) -> None:
        """The Node is another one, or gone."""
        before, self.node = self.node, objects.NODES[what]
        if self.node is not None:
            self._tell(events.Changed(NODES, self.node, self.now), told)
        elif before is not None:
            self._tell(events.Deleted(NODES, before.name, self.now), told)

    def deliver(self, count: int | None = None) -> None:
        """The agent hears of so many changes that it had not heard of, or of all."""
        count = len(self.pending) if count is None else count
        due, self.pending = self.pending[:count], self.pending[count:]
        for event in due:
            self._take(event)

    def list_anew(self, resource: str) -> None:
        """The agent is told everything anew."""
        # What was on its way is in the list.
        self.pending = [e for e in self.pending if e.resource != resource]
        items: tuple[Any, ...] = tuple(self.services.values())
        if resource == NODES:
            items = (self.node,) if self.node is not None else ()
        self._take(events.Listed(resource, items, self.now))

    def _tell(self, event: events.Event, at_once: bool) -> None:
        self.pending.append(event)
        if at_once:
            self.deliver()

    def _take(self, event: events.Event) -> None:
        if event.resource not in self.listed and not isinstance(event, events.Listed):
            # Nobody hears of a change before the first list, which has it.
            self.list_anew(event.resource)
            return
        self.listed.add(event.resource)
        self.agent.take(event)
        if event.resource == NODES:
            self._become(node=self._node_after(event))
        else:
            self._become(services=self._services_after(event))

    def _node_after(self, event: events.Event) -> Node | None:
        """What a Node lost, it keeps; another one never had it."""
        found: Node | None = None
        if isinstance(event, events.Listed):
            found = event.items[0] if event.items else None
        elif isinstance(event, events.Changed):
            found = event.item
        last = self.told.node
        if found is None or last is None or found.name != last.name:
            return found or last
        return found._replace(
            pod_cidrs=found.pod_cidrs or last.pod_cidrs,
            addresses=found.addresses or last.addresses,
        )

    def _services_after(self, event: events.Event) -> Mapping[str, Service]:
        if isinstance(event, events.Listed):
            return {item.key: item for item in event.items}
        services = dict(self.told.services or {})
        if isinstance(event, events.Changed):
            services[event.item.key] = event.item
        elif isinstance(event, events.Deleted):
            services.pop(event.key, None)
        return services

    def _become(self, **told: Any) -> None:
        self.woken = True
        self.told = replace(self.told, **told)
        for states in self.states.values():
            states.append(self.told)

    def others(self, what: str, family: Family, chain: str, told: Telling, moment: str) -> None:
        """Somebody else changes a table, in the midst of the agent's next call if at a moment."""
        table = self.tables[family]

        def meddle() -> None:
            self._meddle(table, what, chain, told)

        if moment:
            table.meanwhile.append((moment, meddle))
        else:
            meddle()

    def _meddle(self, table: SimTable, what: str, chain: str, told: Telling) -> None:
        self._note_silence(table, told)
        there = sorted(oracle.own(table.copy()))
        if chain.startswith("#"):
            chain = there[int(chain[1:]) % len(there)] if there else "IPVS_OUTPUT"
        built_in = "PREROUTING" if "PREROUTING" in chain else "OUTPUT"
        if what == "flush table":
            table.flush(told)
        elif what == "rename":
            table.rename(chain, "GONE", told)
        elif what.startswith("native"):
            table.native = what == "native on" and table.tells
            table.note(told)
        else:
            table.change(MEDDLING[what].format(chain=chain, built_in=built_in), told)

    def others_alone(
        self, what: str, family: Family, chain: str, times: int, put: Put, moment: str
    ) -> None:
        """Somebody else changes a table, once or in a fight, and then nothing happens for long.

        With no `times`, it is at a moment of the write that `put` makes.
        """
        self._sleep_until(self.now + CALM)
        if times == 0:
            self.others(what, family, chain, "told", moment)
            self.put(put, True)
        for _ in range(times):
            self.others(what, family, chain, "told", "")
            self._sleep_until(self.now + 0.3)
        self._sleep_until(self.now + CALM)

    def _note_silence(self, table: SimTable, told: Telling) -> None:
        if told != "told" or not table.tells:
            self.unsaid = self.now
        if told == "unseen" and table.tells:
            self.unseen = self.now

    def others_in_filter(self, what: str, family: Family, told: Telling, moment: str) -> None:
        """See `others`; in a filter table."""
        table = self.filters[family]

        def meddle() -> None:
            self._note_silence(table, told)
            filters.meddle(table, what, told)

        if moment:
            table.meanwhile.append((moment, meddle))
        else:
            meddle()

    def lose(self, family: Family, in_filter: bool) -> None:
        """The kernel tells that it could not tell of everything."""
        (self.filters if in_filter else self.tables)[family].note()

    def refuse(self, ip: str, names_it: bool) -> None:
        """The kernel refuses all rules for `ip` from now on, and says or does not say which."""
        self.ever_refused.add(ip)
        for table in self.tables.values():
            table.refused[ip] = names_it

    def accept(self) -> None:
        """The kernel refuses nothing any more."""
        self.unsaid = self.now
        for table in self.tables.values():
            table.refused.clear()

    def fail(self, family: Family, faults: Sequence[str], in_filter: bool = False) -> None:
        """The next commands fail."""
        (self.filters if in_filter else self.tables)[family].faults += faults

    def reload(self, config: str) -> None:
        """The configuration becomes another one."""
        self._become(config=CONFIGS[config])
        self.agent.reconfigure(self.told.config, self._programmers(), self._of_filters())

    def kernel_has(self, ips: Sequence[str]) -> None:
        """The kernel has these addresses, and no others."""
        addresses = frozenset(map(parse_address, ips))
        for each in self.addresses - addresses:
            self.gone[each] = self.now
        for each in addresses & self.gone.keys():
            del self.gone[each]
        self.addresses = addresses
        self.agent.take_here(lambda here, now: here.with_addresses(addresses, now))
        self._become(addresses=addresses.union(self.gone))

    def api_is_at(self, ips: Sequence[str], port: int, complete: bool) -> None:
        """The API server is reached at these addresses, or at these too."""
        places = frozenset((parse_address(ip), port) for ip in ips)
        self.agent.take_here(lambda here, _: here.with_api_servers(places, complete))
        self.places = places if complete else self.places | places
        # In part it is not known yet, where nobody has told all of it.
        if complete or self.told.api_servers is not None:
            self._become(api_servers=self.places)

    def pods_are(self, what: str) -> None:
        """Network plugins tell of pods, and the kernel has routes to them."""
        networks, routed = objects.PODS[what]
        self.agent.take_here(
            lambda here, _: here.with_pod_networks(networks).with_routes(routed, frozenset())
        )
        self._become(pod_networks=self.told.pod_networks | networks, routed=routed)

    def kernel_lacks(self, *versions: int) -> None:
        """The kernel has no IPv6, or has it again."""
        absent = frozenset(versions)
        self.agent.take_here(lambda here, _: replace(here, absent=absent))
        self._become(absent=absent)

    def proxy_becomes(self, mode: str | None) -> None:
        """kube-proxy tells its mode."""
        self.agent.take_proxy_mode(mode)
        self._become(mode=mode)

    def trouble(self, resource: str, over: bool) -> None:
        """A resource cannot be followed, or can again."""
        self.woken = True
        if over:
            self.troubles.discard(resource)
            self.agent.take(events.Recovered(resource))
        else:
            self.troubles.add(resource)
            self.agent.take(events.Trouble(resource, AgentError("API server", "is away")))

    # Time

    def let_pass(self, seconds: float, ticks: str) -> None:
        """Time passes, with all ticks that are due, or with one at its end, or without."""
        end = self.now + seconds
        if ticks == "due":
            self._sleep_until(end)
        self.now = max(self.now, end)
        if ticks == "one":
            self._tick()

    def _sleep_until(self, end: float) -> None:
        """Ticks as the main loop: when it was told of something, and when it asked for it."""
        start, ticks, most = self.now, 0, 200 + 30 * (end - self.now)
        while True:
            due = self.now if self._is_woken() else self.due
            if self.agent.untold and self.glance < due and self.glance <= end:
                self.now = max(self.now, self.glance)
                self.glance = self.now + GLANCE_PERIOD
                self.due = min(self.due, self.agent.due)
                continue
            if due > end:
                break
            began = self.now = max(due, self.now)
            self._tick()
            ticks += 1
            if self.due < began or ticks > most:
                raise Violation(f"asks for a tick at {self.due}, after the one at {began}")
        self.now = max(self.now, end)
        # While something is lacking, all rules stay as they are.
        if end - start >= CALM and start - self.slow > SLOW and not self.told.lacking:
            deaf = [t for t in self._all if t.is_unread and not (t.faults or t.native)]
            # What they do in the very last tick is looked at a moment later.
            if deaf and self.due > self.now + MOMENT:
                raise Violation(f"{deaf[0].family} told of a change, and nobody looks")

    def _is_woken(self) -> bool:
        """Whether something waits in the inbox, or a table tells that is listened to."""
        listening = self.agent.told_by
        return self.woken or any(t.is_telling and t.told_by in listening for t in self._all)

    def _tick(self) -> None:
        left = [each for each, since in self.gone.items() if self.now >= since + _LINGER]
        if left:
            for each in left:
                del self.gone[each]
            self._become(addresses=self.addresses.union(self.gone))
        self.woken = False
        self.due = self.agent.tick()
        self.glance = self.now + GLANCE_PERIOD
        self._look()

    def calm(self) -> None:
        """Where nothing is wrong any more, a few seconds are enough for everything."""
        self.deliver()
        began = self.now
        self._sleep_until(began + CALM)
        tables = self._all
        slow = began - self.slow < SLOW or began - self.unsaid < QUIET
        if (
            slow
            or began - self.unseen < UNSEEN
            or any(table.faults or table.meanwhile or table.refused for table in tables)
        ):
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
                self.list_anew(resource)
        self.deliver()
        if self.told.addresses is None:
            self.kernel_has(["192.168.7.11"])
        if self.told.api_servers is None:
            self.api_is_at([], 6443, True)
        for table in self._all:
            table.faults.clear()
            table.meanwhile.clear()
            if table.native:
                table.native = False
                table.note()
        end, step = self.now + QUIET, 10.0
        if self.now - self.unseen < UNSEEN:
            end, step = self.now + UNSEEN, 50.0
        self._sleep_until(self.now + 3)
        while self.now < end:
            self.now += step
            self._tick()
        self._sleep_until(self.now + 5)
        self._expect_everything()

    # What has to hold

    def _wrote(self, table: SimTable, wrote: Wrote) -> None:
        """After each write: what was others' is untouched, and what is ours is as planned."""
        if oracle.foreign(wrote.there) != oracle.foreign(wrote.now):
            raise Violation(f"{table.family}: foreign rules were changed by\n{wrote.text}")
        for name in oracle.written(wrote.text):
            if not table.tells and wrote.now.get(name) != wrote.left.get(name):
                raise Violation(f"{table.family}: {name} is not as written by\n{wrote.text}")
        if self.told.lacking:
            raise Violation(f"{table.family}: written while something is lacking:\n{wrote.text}")
        # What others did is not undone with a trial yet, and may mean anything until it is.
        if "-probe" in wrote.text and oracle.keeps(wrote.seen, wrote.left):
            return
        family, got = table.family, oracle.meaning(wrote.left, self._insisting(table.family))
        for place, state in enumerate(self.states[family]):
            if not state.lacking and got in self._meant(state, table, wrote.left):
                del self.states[family][:place]
                return
        raise Violation(
            f"{table.family}: this is the plan of no state since the last write:\n{wrote.text}"
            f"it left {oracle.own(wrote.left)}\n"
            f"and wanted is {next(self._meant(self.told, table, wrote.left))}"
        )

    def _insisting(self, family: Family) -> frozenset[tuple[str, str]]:
        """Those whom the agent says that it leaves the first place to."""
        return self.agent.state().families[family].behind

    def _meant(
        self, state: State, table: SimTable, there: Mapping[str, list[str]]
    ) -> Iterator[oracle.Meaning]:
        """What `state` may mean in `table`: with or without what the kernel may have refused."""
        own_mark = not there.get(state.config.chains.mark_masquerade)
        served = oracle.with_rules(oracle.own(dict(there)).values())
        refused = [
            key
            for key, item in (state.services or {}).items()
            if key not in served
            and self.ever_refused & {*map(str, (*item.load_balancer_ips, *item.external_ips))}
        ]
        for count in range(len(refused) + 1):
            for some in itertools.combinations(refused, count):
                yield oracle.meant(state, table.family, own_mark, frozenset(some))

    def _look(self) -> None:
        """After each tick: what the agent says of itself is so."""
        sentence, in_sync = self.agent.sentence(), self.agent.in_sync
        state = self.agent.state()
        if self.told.untold and state.waiting_since < math.inf:
            raise Violation("not all was told yet, and a change is said to wait")
        counted = {f"{family}": of.failures for family, of in state.families.items()}
        counted.update(state.repairs)
        back = [each for each, count in self.counted.items() if counted[each] < count]
        if back:
            raise Violation(f"counted back: {back}")
        self.counted = counted
        if self.told.lacking:
            if in_sync or not sentence.startswith("Waiting"):
                raise Violation(f"something is lacking, and it says: {in_sync}, {sentence}")
            return
        if in_sync != sentence.startswith(("In sync", "Not needed")):
            raise Violation(f"in_sync is {in_sync}, and it says: {sentence}")
        if not in_sync:
            return
        for family, table in self.tables.items():
            got = oracle.meaning(table.seen, self._insisting(family))
            if got not in self._meant(self.told, table, table.seen):
                raise Violation(
                    f"{family}: in sync, and the table as last seen or left has {got},\n"
                    f"while what was told means {next(self._meant(self.told, table, table.seen))}"
                )
            self._expect_filter(family, self.filters[family].seen, bool(oracle.own(table.seen)))

    def _expect_filter(self, family: Family, there: dict[str, list[str]], serves: bool) -> None:
        filters.expect(self.filters[family], there, self.told, serves)

    def _expect_everything(self) -> None:
        """All is as if the agent had been started this moment, and it says so."""
        if self.told.lacking:
            self._look()
            return
        if not self.agent.in_sync:
            raise Violation(f"not in sync in a quiet world: {self.agent.sentence()}")
        problems = set(self.told.problems)
        counts = {}
        for family, table in self.tables.items():
            plan, refused = self._expected(family, table)
            self._expect_table(family, table.copy(), plan)
            self._expect_filter(family, self.filters[family].copy(), bool(plan.ruleset.chains))
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
        own_mark = not there.get(self.told.config.chains.mark_masquerade)
        # What the kernel took before it began to refuse the like is there and stays.
        served = oracle.with_rules(oracle.own(there).values())
        refused: frozenset[str] = frozenset()
        while True:
            plan = oracle.planned(self.told, family, own_mark, refused)
            rules = (rule for chain in plan.ruleset.chains.values() for rule in chain)
            bad = [r for r in rules if any(f"-d {ip}/" in r for ip in table.refused)]
            more = oracle.with_rules([bad]) - served
            if not more:
                return plan, refused
            refused |= more

    def _expect_table(self, family: Family, there: dict[str, list[str]], plan: Any) -> None:
        wanted = {name: list(rules) for name, rules in plan.ruleset.chains.items()}
        jumps = {
            built_in: [(oracle.place(there, built_in, self._insisting(family)), chain)]
            for built_in, chain in plan.ruleset.jumps.items()
        }
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
        more = int(self.told.config.drop_invalid_input and bool(chains))
        rules = sum(map(len, chains.values()))
        wanted = (services, rules + more, len(chains) + more, math.inf)
        got = (of.services, of.rules, of.chains, of.waiting_since)
        if got != wanted or state.waiting_since != math.inf:
            raise Violation(f"{family}: the state is {got}, wanted {wanted}")

    def _expect_words(self, counts: Mapping[Family, int]) -> None:
        shown = ", ".join(f"{count} in {family}" for family, count in counts.items() if count)
        known = " with what was last known" if self.troubles else ""
        wanted = f"In sync{known}; Services with rules: {shown or 'none'}"
        if self.told.mode in ("iptables", "nftables"):
            wanted = f"Not needed: kube-proxy is in {self.told.mode} mode; no Service has rules"
        got = self.agent.sentence().partition("; not following")[0]
        if got != wanted:
            raise Violation(f"it says {got!r}, wanted {wanted!r}")


def play(steps: Sequence[Step]) -> None:
    """Lets all of it happen, and then waits until the world has been quiet for long."""
    logging.disable(logging.CRITICAL)
    try:
        world = World()
        for each in steps:
            each.happen(world)
        world.end()
    finally:
        logging.disable(logging.NOTSET)


SIMULATION = Simulation("mind", history, play)
