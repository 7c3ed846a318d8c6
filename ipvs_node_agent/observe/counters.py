"""Packets and bytes of each Service, out of the counters of its DNAT rules.

The kernel counts from nothing whenever a chain is rewritten. A `Ledger` adds up what it is shown
from one look to the next, so that its sums never go back while the agent runs; what the kernel
counted between the last look and a rewrite is lost. `Writes` tells whether a chain is still the one
of the last look: its counters alone would look the same where they have caught up.

A `Sampler` looks when somebody asks, in a thread and with commands of its own: neither the main
loop nor a change of the rules waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Callable, NamedTuple

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.programmer import Writes
from ipvs_node_agent.iptables.table import saved_table
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.saveformat import lines
from ipvs_node_agent.sync.state import Published

log = logging.getLogger(__name__)

POD, HOST = "pod", "host"

# What is remembered of Services that have no rules at the moment.
_MAX_GONE = 16384
# So long a look waits for the end of a write that may have been in the midst of it.
_WRITE_SECONDS = 5.0
# Between two looks at least so long, and so many times what the look itself takes.
_PERIOD, _REST = 1.0, 9.0


class Count(NamedTuple):
    """What a rule, or a Service, has seen. Of a connection only its first packet walks nat."""

    packets: int
    bytes: int


NOTHING = Count(0, 0)


def together(one: Count, other: Count) -> Count:
    """What both have seen."""
    return Count(one.packets + other.packets, one.bytes + other.bytes)


# A Service's key, and where its packets come from: POD or HOST.
Series = tuple[str, str]
# Where one has rules: the table, the chain and a `Series`. Chains are rewritten as a whole, so
# all rules in one place start anew together.
Place = tuple[str, str, str, str]


def found_in(table: str, saved: str, chains: Chains) -> dict[Place, Count]:
    """What `iptables-save -c` printed of a `table` whose chains of ours are those of `chains`."""
    pods, host = owner(frozenset({chains.prerouting})), owner(frozenset({chains.output}))
    found: dict[Place, Count] = {}
    for line in lines(saved):
        seen = ruletext.counted(line) if " -j DNAT " in line else None
        if seen is None:
            continue
        packets, octets, chain, rule = seen
        origin = POD if pods(chain) else HOST if host(chain) else ""
        service = ruletext.service(rule)
        if origin and service:
            place = (table, chain, service, origin)
            found[place] = together(found.get(place, NOTHING), Count(packets, octets))
    return found


class Seen(NamedTuple):
    """What a look found in one place; `write` made it, and is None where it was during the look."""

    counted: Count
    write: int | None


class Ledger:
    """Adds up the counters of rules that come, go and start anew."""

    def __init__(self) -> None:
        self._last: dict[Place, Seen] = {}
        self._sums: dict[Series, Count] = {}
        # Of Services without rules, the latest to lose them last.
        self._gone: OrderedDict[Series, Count] = OrderedDict()

    def take(self, found: Mapping[Place, Seen]) -> Mapping[Series, Count]:
        """The sums, not changed later, of Services that have rules, which have seen `found`."""
        last: dict[Place, Seen] = {}
        sums: dict[Series, Count] = {}
        for place, seen in found.items():
            series, before = place[2:], self._last.get(place)
            known = sums.get(series)
            if known is None:
                known = self._sums.get(series) or self._gone.pop(series, NOTHING)
            if seen.write is not None:
                last[place] = seen
                known = together(known, _growth(before, seen))
            elif before is not None:
                last[place] = before
            sums[series] = known
        self._gone.update({key: count for key, count in self._sums.items() if key not in sums})
        while len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)
        self._last, self._sums = last, sums
        return sums


def _growth(before: Seen | None, now: Seen) -> Count:
    """What was counted since `before`."""
    if before is None or before.write != now.write:
        return now.counted
    grown = (now.counted.packets - before.counted.packets, now.counted.bytes - before.counted.bytes)
    # Whoever else reset the counters.
    return now.counted if min(grown) < 0 else Count(*grown)


class Sampler:
    """Looks at the tables of what is `published`, when asked to; `writes` are those of each."""

    def __init__(
        self,
        published: Callable[[], Published],
        writes: Mapping[Family, Writes],
        launcher: Launcher | None = None,
        save: Callable[[Launcher, Family, str], str] | None = None,
    ) -> None:
        self._published, self._writes = published, writes
        self._launcher, self._save = launcher or launch(), save or _saved
        self._ledger = Ledger()
        self._sums: Mapping[Series, Count] = {}
        self._changed = threading.Condition()
        self._looking = self._stopped = False
        self._next = 0.0
        # What the present look has waited for writes, which costs nothing.
        self._waited = 0.0

    def sums(self, patience: float) -> Mapping[Series, Count]:
        """The latest sums: those of a new look, where it takes no longer than `patience`."""
        with self._changed:
            if not (self._looking or self._stopped) and time.monotonic() >= self._next:
                # Without room for a thread, the last sums are better than no page at all.
                with suppress(RuntimeError):
                    threading.Thread(target=self._look, daemon=True).start()
                    self._looking = True
            self._changed.wait_for(lambda: not self._looking or self._stopped, patience)
            return self._sums

    def stop(self) -> None:
        """Looks no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if not self._looking:
                self._launcher.close()

    def _look(self) -> None:
        started, self._waited = time.monotonic(), 0.0
        published = self._published()
        found: dict[Place, Seen] = {}
        try:
            for family, table in published.agent.families.items():
                if table.services:
                    found.update(self._table(published, family))
            self._sums = self._ledger.take(found)
        except TableError as error:
            log.debug("cannot read the packet counters: %s", error)
        now = time.monotonic()
        with self._changed:
            self._looking = False
            self._next = now + max(_PERIOD, (now - started - self._waited) * _REST)
            self._changed.notify_all()
            if self._stopped:
                self._launcher.close()

    def _table(self, published: Published, family: Family) -> dict[Place, Seen]:
        writes = self._writes[family]
        before = writes.numbers()
        saved = self._save(self._launcher, family, published.backend)
        started = time.monotonic()
        done = writes.done(_WRITE_SECONDS)
        self._waited += time.monotonic() - started
        if not done:
            raise TableError(str(family), "a write takes too long")
        after = writes.numbers()
        found = found_in(f"{published.backend} {family}", saved, published.chains)
        return {
            place: Seen(count, _write(place[1], before, after)) for place, count in found.items()
        }


def _write(chain: str, before: Mapping[str, int], after: Mapping[str, int]) -> int | None:
    """The write that made `chain`; 0 stands for one before the agent's start."""
    number = after.get(chain, 0)
    return number if before.get(chain, 0) == number else None


def _saved(launcher: Launcher, family: Family, backend: str) -> str:
    return saved_table(launcher, f"{family.command}-{backend}-save", "nat", "-c")
