"""Keeps one family's table as wanted: reads it, computes the difference, writes it as one.

Between drift checks the table is taken to hold what was last written, so that a change costs one
command. Where a write then fails, the belief is dropped, and the table is read before the next try;
so it is where others changed the table between a look and the write that followed.
A check reads the table only where the kernel does not say that nobody touched it; where it says
which chains others changed, these alone are read.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Callable, NamedTuple

from ipvs_node_agent.iptables.anytable import Since, Table
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.settling import Settling
from ipvs_node_agent.nat.amended import amended
from ipvs_node_agent.nat.chains import NAT
from ipvs_node_agent.nat.edits import counted
from ipvs_node_agent.nat.ruleset import (
    Change,
    Found,
    Ruleset,
    applied,
    difference,
    differing,
    drift,
)
from ipvs_node_agent.nat.saveformat import parse_save, restore_input

log = logging.getLogger(__name__)

# So many differences at most are told, of thousands that there may be.
_SHOWN = 20
_NOTHING = Ruleset()
# Others may change the table between a look and the write that follows; hardly so often in a row.
_OVERTAKEN = 3


class Misfit(Exception):
    """Others' chains that have rules are not those that the wanted rules are made for."""


class Made(NamedTuple):
    """The number of the write that made a chain; and, of Services in it, of a later one."""

    number: int = 0
    later: Mapping[str, int] = MappingProxyType({})

    def of(self, service: str) -> int:
        """The number of the write that made a Service's rules in it."""
        return self.later.get(service, self.number)


class Writes:
    """The writes of one table, numbered. One thread notes them; others may ask at any time."""

    def __init__(self) -> None:
        self._made: dict[str, Made] = {}
        self._number = 0
        self._idle = threading.Event()
        self._idle.set()

    @contextmanager
    def under_way(self, change: Change) -> Iterator[None]:
        """`change` is being written meanwhile; where that raises, it was not."""
        edited = dict(self._edited(change))
        self._idle.clear()
        try:
            yield
            self._number += 1
            for name in change.dropped:
                self._made.pop(name, None)
            self._made.update(dict.fromkeys(change.written, Made(self._number)))
            self._made.update(edited)
        finally:
            self._idle.set()

    def _edited(self, change: Change) -> Iterator[tuple[str, Made]]:
        """What `change` makes of the chains of which some rules stay."""
        for name, edit in change.edits.items():
            before, here = self._made.get(name, Made()), counted(change.written[name])
            later = {service: before.of(service) for service in before.later if service in here}
            later.update(dict.fromkeys(counted(edit.written), self._number + 1))
            yield name, before._replace(later=later)

    def made(self) -> Mapping[str, Made]:
        """Which writes made each chain."""
        return self._made.copy()

    def done(self, patience: float) -> bool:
        """Waits for the end of the write that is under way; False where that takes too long."""
        return self._idle.wait(patience)


class How(enum.Enum):
    """How we know what a table holds."""

    READ = enum.auto()
    WRITTEN = enum.auto()
    # Somebody may have changed it since.
    UNCERTAIN = enum.auto()


class Knowledge(NamedTuple):
    """What is known of a table; whatever happens to the table makes another one.

    `left` is what it held when last read or written, None where nobody can tell; `drift` is what
    others did to it that is not undone yet (see `nat.ruleset`), and `by` who they are.
    """

    left: Found | None = None
    how: How = How.UNCERTAIN
    drift: tuple[str, ...] = ()
    by: tuple[str, ...] = ()

    @property
    def certain(self) -> Found | None:
        """What the table holds; None where that is not certain."""
        return None if self.how is How.UNCERTAIN else self.left

    def read(self, found: Found, wanted: Ruleset, by: tuple[str, ...]) -> Knowledge:
        """The table was read, and holds `found`; others who changed it are `by`."""
        seen = () if self.left is None else drift(self.left, found, wanted)
        who = tuple(dict.fromkeys((*self.by, *(by if seen else ()))))
        return Knowledge(found, How.READ, tuple(dict.fromkeys((*self.drift, *seen))), who)

    def written(self, found: Found) -> Knowledge:
        """A write made the table hold `found`."""
        return self._replace(left=found, how=How.WRITTEN)

    def uncertain(self) -> Knowledge:
        """The table may have become another one."""
        return self._replace(how=How.UNCERTAIN)


class Programmer:
    """One family's table in one backend. `owns` tells which chains are the agent's.

    `name` is what the log calls the table, and `writes` are noted for who counts packets, which
    start from nothing in what is written.
    """

    def __init__(
        self,
        table: Table,
        owns: Callable[[str], bool],
        name: str = "nat",
        writes: Writes | None = None,
    ) -> None:
        self._table, self._owns, self._name = table, owns, name
        self._writes = writes or Writes()
        self._known = Knowledge()
        self._settling = Settling()
        self._check_seconds = 0.0

    @property
    def check_seconds(self) -> float:
        """How much of a core's time the last check took that looked for no reason, in seconds."""
        return self._check_seconds

    @property
    def knows(self) -> bool:
        """Whether it is certain what the table holds, but for what is told from now on."""
        return self._known.certain is not None

    @property
    def read_ahead(self) -> bool:
        """Whether the table was read before it was needed, and nobody has changed it since."""
        return self._table.read_ahead

    def heard(self) -> bool:
        """Whether somebody told that others changed something of ours, or may have."""
        return self.knows and self._table.changed() is Since.CHANGED

    def drift_due(self, now: float) -> float:
        """When to look at what others are told to have done by the time `now`."""
        if not self.heard():
            return math.inf
        self._settling = self._settling.seen(self._table.told, now)
        return self._settling.due

    @property
    def told_by(self) -> int | None:
        """What poll(2) finds readable when others change the table; None where nobody tells.

        What is not known has to be read anyway, and nobody takes what is told of it.
        """
        return self._table.told_by if self.knows else None

    def read(self, expected: Ruleset = _NOTHING) -> Found:
        """What the table holds of ours, read anew; `expected` saves memory. Raises TableError."""
        self.resync()
        found = parse_save(self._table.save(), self._owns, expected.chains)
        # What those do who stand before us may be another thing tomorrow; in filter we give way to
        # them whatever they do.
        if expected.table == NAT:
            others = (one.chains for ahead in found.ahead.values() for one in ahead)
            self._table.watch(frozenset().union(*others))
        self._known = self._known.read(found, expected, self._table.changed_by)
        return found

    def apply(self, wanted: Ruleset) -> Change:
        """Makes the table hold `wanted`, and gives what had to be changed.

        Nothing is applied where it fails. Raises TableError, and Misfit where it is not `wanted`
        that belongs there.
        """
        if self.heard():
            self._look_again(wanted)
        for _ in range(_OVERTAKEN):
            looked, found = self._known.certain is None, self._found(wanted)
            try:
                return self._make(found, wanted, looked)
            except TableError as error:
                # A lock has been waited for and tells nothing about the table; a look may hang too.
                if error.locked or error.hung or (looked and not self._overtaken(wanted)):
                    raise
                log.debug("%s: looking at the table again: %s", self._name, error)
        return self._make(self._found(wanted), wanted, True)

    def _look_again(self, wanted: Ruleset) -> None:
        """Reads the chains that others changed, where that is enough to know the table again."""
        before = self._known.certain
        self.resync()
        why, found = "the table may be another one", None
        try:
            there = self._table.reread()
        except TableError as error:
            if error.locked or error.hung:
                raise
            why, there = str(error), None
        if before is not None and there is not None:
            found = amended(before, there, self._owns, wanted.chains)
        if found is None:
            log.debug("%s: reading the whole table: %s", self._name, why)
            return
        self._table.looked()
        self._known = self._known.read(found, wanted, self._table.changed_by)

    def _found(self, wanted: Ruleset = _NOTHING) -> Found:
        """What the table holds, read where that is not certain. Raises TableError."""
        return self._known.certain or self.read(wanted)

    def _overtaken(self, wanted: Ruleset = _NOTHING) -> bool:
        """Whether others changed the table since the last look, told or not. Raises TableError."""
        seen = self._known.left
        changed = self.read(wanted) != seen
        self.resync()
        return changed

    def _make(self, found: Found, wanted: Ruleset, looked: bool) -> Change:
        """Makes `wanted` of a table that holds `found`. Raises TableError and Misfit."""
        change = _fitting(found, wanted)
        if not (looked or self._known.drift) and self._table.told_by is not None:
            change = change.edited()
        if (change or looked) and log.isEnabledFor(logging.DEBUG):
            self._tell(found, wanted, change)
        if change:
            self._write(change)
            self._known = self._known.written(applied(found, wanted))
        done, self._known = self._known, self._known._replace(drift=(), by=())
        return replace(change, repairs=done.drift, by=done.by)

    def check(self, wanted: Ruleset) -> Change:
        """Like `apply`, but looks for drift where nobody would tell."""
        before = self._known
        if before.certain is not None and self._table.changed() is Since.UNKNOWN:
            started, ours = time.monotonic(), time.thread_time()
            if self._table.changed(closely=True) is Since.UNCHANGED:
                self._check_seconds = time.thread_time() - ours
            elif self.read(wanted) == before.left and before.how is How.READ:
                # It cannot tell whether it is the same, and was.
                self._check_seconds = time.monotonic() - started
        return self.apply(wanted)

    def _tell(self, found: Found, wanted: Ruleset, change: Change) -> None:
        sizes = [
            f"{len(chains)} chains with {sum(map(len, chains.values()))} rules"
            for chains in (found.chains, wanted.chains)
        ]
        differences = list(differing(change))
        log.debug(
            "%s: compared the table, %s, with %s as wanted: %s",
            self._name,
            *sizes,
            f"{len(differences)} differences" if differences else "no difference",
        )
        for line in differences[:_SHOWN]:
            log.debug("%s: %s", self._name, line)
        if len(differences) > _SHOWN:
            log.debug("%s: and %d more differences", self._name, len(differences) - _SHOWN)

    def _write(self, change: Change) -> None:
        """Applies `change`; until all of it is there, nothing is certain."""
        self.resync()
        for part in change.parts():
            text = restore_input(part)
            try:
                with self._writes.under_way(part):
                    self._table.restore(text)
            except TableError as error:
                if error.line is not None:
                    error.blamed = "".join(text.split("\n")[error.line - 1 : error.line])
                raise
            # Only what is left of several parts could still tell drift from our own doing.
            self._known = self._known._replace(left=None)

    def pending(self, wanted: Ruleset) -> Change:
        """What `apply` would do to the table, read anew. Raises TableError and Misfit."""
        return _fitting(self.read(wanted), wanted)

    def takes(self, trial: Callable[[Found], tuple[Change, Found]]) -> bool:
        """Whether the kernel takes a change that `trial` makes of what the table holds.

        It gives the change, and what the table holds after it. Raises TableError where the kernel
        does not say.
        """
        found = self._found()
        change, after = trial(found)
        try:
            self._write(change)
        except TableError as error:
            # Written to a table that had become another one, it proves nothing.
            self._known = self._known._replace(left=found)
            if not error.by_content or self._overtaken():
                raise
            return False
        self._known = self._known.written(after)
        return True

    def prepare(self) -> None:
        """Gets ready for the next write, where one was made."""
        self._table.prepare()

    def rest(self) -> None:
        """Neither looks at the table nor hears of it, until the next `apply` or `check`."""
        self.resync()
        self._table.close()

    def prove(self) -> None:
        """Has the next `apply` or `check` read the table if the kernel did not tell of all."""
        if self.told_by is not None:
            self._table.changed(closely=True)

    def resync(self) -> None:
        """Has the next `apply` or `check` read the table, whatever the kernel says."""
        self._known, self._settling = self._known.uncertain(), Settling()


def _fitting(found: Found, wanted: Ruleset) -> Change:
    """The difference between the two. Raises Misfit."""
    if not wanted.fits(found.filled):
        raise Misfit
    return difference(found, wanted)
