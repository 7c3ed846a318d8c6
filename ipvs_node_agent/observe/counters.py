"""Packets and bytes of each Service, out of the counters of its DNAT rules.

The kernel counts from nothing whenever a rule is written. A `Ledger` adds up what it is shown from
one look to the next, so that its sums never go back while the agent runs; what the kernel counted
between the last look and a write is lost. `Writes` tells whether a Service's rules in a chain are
still those of the last look: their counters alone would look the same where they have caught up.

A `Sampler` looks when somebody asks, in a thread and with commands of its own: neither the main
loop nor a change of the rules waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Callable, NamedTuple

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.iptables.command import IDLE, TableError, launch
from ipvs_node_agent.iptables.programmer import Made, Writes
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.saveformat import lines
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.sync.state import Published

log = logging.getLogger(__name__)

POD, HOST = "pod", "host"

# So much at least is remembered of Services that have no rules at the moment.
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
    if NOTHING in (one, other):
        return other if one == NOTHING else one
    return Count(one.packets + other.packets, one.bytes + other.bytes)


# A Service's key, and where its packets come from: POD or HOST.
Series = tuple[str, str]
# A table, and a chain in it.
Place = tuple[str, str]


class Seen(NamedTuple):
    """What the rules of Services in one place have seen, by the Services' keys.

    All packets come from `origin`. `made` tells when their counters began; it is None where that
    may have been during the look.
    """

    origin: str
    counted: Mapping[str, Count]
    made: Made | None = None


def found_in(
    table: str, saved: str, chains: Chains, same: Callable[[str], str] = str
) -> dict[Place, Seen]:
    """What `iptables-save -c` printed of a `table` whose chains of ours are those of `chains`.

    `same` gives one text for all places and looks.
    """
    pods, host = owner(frozenset({chains.prerouting})), owner(frozenset({chains.output}))
    found: dict[Place, Seen] = {}
    sums: dict[str, Count] = {}
    for line in lines(saved):
        rule = ruletext.counted(line) if " -j DNAT " in line else None
        if rule is None:
            continue
        packets, octets, chain, text = rule
        origin = POD if pods(chain) else HOST if host(chain) else ""
        service = ruletext.service(text)
        if origin and service:
            if (table, chain) not in found:
                sums = {}
                found[table, chain] = Seen(origin, sums)
            service = same(service)
            # Most have seen nothing.
            count = Count(packets, octets) if packets or octets else NOTHING
            sums[service] = together(sums.get(service, NOTHING), count)
    return found


class Sums(Mapping[Series, Count]):
    """What each Service has seen. Nobody changes it."""

    def __init__(self, counted: Mapping[str, Mapping[str, Count]] = MappingProxyType({})) -> None:
        self._counted = counted

    def __getitem__(self, series: Series) -> Count:
        key, origin = series
        return self._counted[origin][key]

    def __iter__(self) -> Iterator[Series]:
        return ((key, origin) for origin, found in self._counted.items() for key in found)

    def __len__(self) -> int:
        return sum(map(len, self._counted.values()))


class Ledger:
    """Adds up the counters of rules that come, go and start anew."""

    def __init__(self) -> None:
        self._last: dict[Place, Seen] = {}
        self._sums = Sums()
        # Of Services without rules, the latest to lose them last.
        self._gone: OrderedDict[Series, Count] = OrderedDict()
        # How many are remembered: as many as there ever were, who may all be back.
        self._most = _MAX_GONE

    def take(self, found: Mapping[Place, Seen]) -> Sums:
        """The sums, not changed later, of Services that have rules, which have seen `found`."""
        last: dict[Place, Seen] = {}
        counted: dict[str, dict[str, Count]] = {}
        for place, seen in found.items():
            before, sums = self._last.get(place), counted.setdefault(seen.origin, {})
            for key, count in seen.counted.items():
                known = sums.get(key)
                if known is None:
                    series = key, seen.origin
                    known = self._sums.get(series) or self._gone.pop(series, NOTHING)
                grown = NOTHING if seen.made is None else _growth(key, count, before, seen.made)
                sums[key] = together(known, grown)
            # With tens of thousands, what stays as it was should stay where it is in memory.
            if before is not None and (seen.made is None or seen == before):
                last[place] = before
            elif seen.made is not None:
                last[place] = seen
        # Where nothing is found, as while chains are renamed, the same rules may be back.
        seen_now = {(table, seen.origin) for (table, _), seen in found.items()}
        for (table, chain), seen in self._last.items():
            if (table, seen.origin) not in seen_now:
                last[table, chain] = seen
        now = Sums(counted)
        self._most = max(self._most, len(self._sums))
        self._gone.update((s, count) for s, count in self._sums.items() if s not in now)
        while len(self._gone) > self._most:
            self._gone.popitem(last=False)
        self._last, self._sums = last, now
        return now


def _growth(key: str, now: Count, before: Seen | None, made: Made) -> Count:
    """What a Service has seen in a place since `before`."""
    if before is None or before.made is None or key not in before.counted:
        return now
    if before.made.of(key) != made.of(key):
        return now
    then = before.counted[key]
    grown = Count(now.packets - then.packets, now.bytes - then.bytes)
    # Whoever else reset the counters.
    return now if min(grown) < 0 else grown


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
        self._launcher, self._save = launcher or launch(idle=IDLE), save or _saved
        self._ledger = Ledger()
        self._sums = Sums()
        self._keys: dict[str, str] = {}
        # Where the last look found anything, which may stay there longer than it is wanted.
        self._counting = frozenset[tuple[str, Family]]()
        self._changed = threading.Condition()
        self._looking = self._stopped = False
        self._next = 0.0
        # What the present look has waited for writes, which costs nothing.
        self._waited = 0.0

    def sums(self, patience: float) -> Sums:
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
        # Only those of the last look: what Python interns may stay for ever (3.12).
        known, self._keys = self._keys, {}
        try:
            found: dict[Place, Seen] = {}
            counting = set[tuple[str, Family]]()
            for family, table in published.agent.families.items():
                where = published.backend, family
                if table.services or where in self._counting:
                    seen = self._table(published, family, known)
                    found.update(seen)
                    counting.update({where} if seen else ())
            self._sums, self._counting = self._ledger.take(found), frozenset(counting)
        except TableError as error:
            log.debug("cannot read the packet counters: %s", error)
        now = time.monotonic()
        with self._changed:
            self._looking = False
            self._next = now + max(_PERIOD, (now - started - self._waited) * _REST)
            self._changed.notify_all()
            if self._stopped:
                self._launcher.close()

    def _table(
        self, published: Published, family: Family, known: Mapping[str, str]
    ) -> dict[Place, Seen]:
        def same(key: str) -> str:
            return self._keys.setdefault(key, known.get(key, key))

        writes = self._writes[family]
        before = writes.made()
        saved = self._save(self._launcher, family, published.backend)
        started = time.monotonic()
        done = writes.done(_WRITE_SECONDS)
        self._waited += time.monotonic() - started
        if not done:
            raise TableError(str(family), "a write takes too long")
        after = writes.made()
        found = found_in(f"{published.backend} {family}", saved, published.chains, same)
        return {
            (table, chain): seen._replace(made=_made(chain, before, after))
            for (table, chain), seen in found.items()
        }


def _made(chain: str, before: Mapping[str, Made], after: Mapping[str, Made]) -> Made | None:
    """What made `chain`; the number 0 stands for a write before the agent's start."""
    made = after.get(chain, Made())
    return made if before.get(chain, Made()) == made else None


def _saved(launcher: Launcher, family: Family, backend: str) -> str:
    return saved_table(launcher, f"{family.command}-{backend}-save", "nat", "-c")
