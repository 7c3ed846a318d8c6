"""Keeps one family's nat table as wanted: reads it, computes the difference, writes it as one.

Between drift checks the table is taken to hold what was last written, so that a change costs one
command. Where a write then fails, the belief is dropped, and the table is read before the next try;
so it is where others changed the table between a look and the write that followed.
A check reads the table only where the kernel does not say that nobody touched it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Callable

from ipvs_node_agent.iptables.table import Table, TableError
from ipvs_node_agent.iptables.writes import Writes
from ipvs_node_agent.nat import drift
from ipvs_node_agent.nat.ruleset import (
    Change,
    Found,
    Ruleset,
    difference,
    differing,
    parse_save,
    settled,
)

log = logging.getLogger(__name__)

# So many differences at most are told, of thousands that there may be.
_SHOWN = 20
_NOTHING = Ruleset()
# Others may change the table between a look and the write that follows; hardly so often in a row.
_OVERTAKEN = 3


class Misfit(Exception):
    """Others' chains that have rules are not those that the wanted rules are made for."""


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
        # What the table held when last written or read, and whether it still has to hold that.
        self._known: Found | None = None
        self._certain = self._wrote = False
        # What others did to it, where it is not undone yet.
        self._drift: tuple[str, ...] = ()
        self._check_seconds = 0.0

    @property
    def check_seconds(self) -> float:
        """How much of a core's time the last check took that looked for no reason, in seconds."""
        return self._check_seconds

    def heard(self) -> bool:
        """Whether somebody told that others changed something of ours, or may have."""
        return self._certain and bool(self._table.touched())

    def read(self, expected: Ruleset = _NOTHING) -> Found:
        """What the table holds of ours, read anew; `expected` saves memory. Raises TableError."""
        left, found = self._known, parse_save(self._table.save(), self._owns, expected.chains)
        if left is not None:
            self._drift = _merged(self._drift, drift.reasons(left, found))
        self._known, self._certain, self._wrote = found, True, False
        return found

    def apply(self, wanted: Ruleset) -> Change:
        """Makes the table hold `wanted`, and gives what had to be changed.

        Nothing is applied where it fails. Raises TableError, and Misfit where it is not `wanted`
        that belongs there.
        """
        if self._certain and self._table.touched():
            self._certain = False
        for _ in range(_OVERTAKEN):
            looked, found = not self._certain, self._found(wanted)
            try:
                return self._make(found, wanted, looked)
            except TableError as error:
                # A lock has been waited for and tells nothing about the table; a look may hang too.
                if error.locked or error.hung or (looked and not self._overtaken(wanted)):
                    raise
                log.debug("%s: looking at the table again: %s", self._name, error)
        return self._make(self._found(wanted), wanted, True)

    def _found(self, wanted: Ruleset = _NOTHING) -> Found:
        """What the table holds, read where that is not certain. Raises TableError."""
        if self._certain and self._known is not None:
            return self._known
        return self.read(wanted)

    def _overtaken(self, wanted: Ruleset = _NOTHING) -> bool:
        """Whether others changed the table since the last look, told or not. Raises TableError."""
        seen = self._known
        changed = self.read(wanted) != seen
        self._certain = False
        return changed

    def _make(self, found: Found, wanted: Ruleset, looked: bool) -> Change:
        """Makes `wanted` of a table that holds `found`. Raises TableError and Misfit."""
        if not wanted.fits(found.filled):
            raise Misfit
        change = difference(found, wanted)
        if (change or looked) and log.isEnabledFor(logging.DEBUG):
            self._tell(found, wanted, change)
        if change:
            self._write(change)
            self._known, self._certain, self._wrote = settled(found, wanted), True, True
        repairs, self._drift = self._drift, ()
        return replace(change, repairs=repairs)

    def check(self, wanted: Ruleset) -> Change:
        """Like `apply`, but looks for drift where nobody would tell."""
        if self._certain and self._table.touched() is None:
            started, ours = time.monotonic(), time.thread_time()
            if self._table.same():
                self._check_seconds = time.thread_time() - ours
            else:
                known, wrote = self._known, self._wrote
                self._certain = False
                if self.read(wanted) == known and not wrote:
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
            log.debug("%s: and %d differences more", self._name, len(differences) - _SHOWN)

    def _write(self, change: Change) -> None:
        """Applies `change`; until all of it is there, nothing is certain."""
        self._certain = False
        for part in change.parts():
            text = part.restore_input()
            try:
                with self._writes.under_way(part):
                    self._table.restore(text)
            except TableError as error:
                if error.line is not None:
                    error.blamed = "".join(text.split("\n")[error.line - 1 : error.line])
                raise
            # Only what is left of several parts could still tell drift from our own doing.
            self._known = None

    def pending(self, wanted: Ruleset) -> Change:
        """What has to be done so that the table holds `wanted`, read anew.

        Raises TableError, and Misfit where it is not `wanted` that belongs there.
        """
        found = self.read(wanted)
        if not wanted.fits(found.filled):
            raise Misfit
        return difference(found, wanted)

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
            self._known = found
            if not error.by_content or self._overtaken():
                raise
            return False
        self._known, self._certain, self._wrote = after, True, True
        return True

    def doubt(self) -> None:
        """Has the next `apply` or `check` read the table, whatever the kernel says."""
        self._certain = False


def _merged(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
