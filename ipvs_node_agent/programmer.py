"""Keeps one family's nat table as wanted: reads it, computes the difference, writes it as one.

Between drift checks the table is taken to hold what was last written, so that a change costs one
command. Where a write then fails, the belief is dropped, and the table is read before the next try.
A check reads the table only where the kernel does not say by itself that nobody touched it, and
looks into the text only where it is another one than the last time.
"""

from __future__ import annotations

import re
import time
from typing import Callable

from ipvs_node_agent.iptables import Table, TableError
from ipvs_node_agent.ruleset import Change, Found, Ruleset, difference, parse_save, settled

_NOTHING = Ruleset()
_COUNTS = re.compile(r" \[\d+:\d+\]$", re.MULTILINE)


class Programmer:
    """One family's table in one backend. `owns` tells which chains are the agent's."""

    def __init__(self, table: Table, owns: Callable[[str], bool]) -> None:
        self._table, self._owns = table, owns
        self._known: Found | None = None
        # Of the text that `_known` was read from, where nothing was written since.
        self._digest: tuple[str, int] | None = None
        self._check_seconds = 0.0

    @property
    def check_seconds(self) -> float:
        """How long the last check took that looked at the table for no reason."""
        return self._check_seconds

    def read(self, expected: Ruleset = _NOTHING) -> Found:
        """What the table holds of ours, read anew; `expected` saves memory. Raises TableError."""
        return self._parse(self._table.save(), expected)

    def _parse(self, text: str, expected: Ruleset) -> Found:
        self._known = parse_save(text, self._owns, expected.chains)
        self._digest = _digest(text)
        return self._known

    def apply(self, wanted: Ruleset) -> Change:
        """Makes the table hold `wanted`, and gives what had to be changed. Raises TableError.

        Nothing is applied where it fails.
        """
        believed = self._known
        found = self.read(wanted) if believed is None else believed
        change = difference(found, wanted)
        if not change:
            return change
        self._known = self._digest = None
        try:
            for part in change.parts():
                self._table.restore(part.restore_input())
        except TableError:
            if believed is None:
                raise
            return self.apply(wanted)
        self._known = settled(found, wanted)
        return change

    def check(self, wanted: Ruleset) -> Change:
        """Like `apply`, but sees to drift first: what changes then had drifted."""
        touched = self._table.touched()
        if touched or self._known is None:
            self._known = None
        elif touched is None:
            started = time.monotonic()
            self._look(wanted)
            self._check_seconds = time.monotonic() - started
        return self.apply(wanted)

    def doubt(self) -> None:
        """Has the next `apply` or `check` read the table, whatever the kernel says."""
        self._known = None

    def _look(self, wanted: Ruleset) -> None:
        known, self._known = self._known, None
        text = self._table.save()
        if _digest(text) == self._digest:
            self._known = known
        else:
            self._parse(text, wanted)


def _digest(text: str) -> tuple[str, int]:
    """Stands for all of `text` that does not change by itself, as packet counts and times do."""
    head, _, rules = text.partition("\n-A ")
    lines = (line for line in head.split("\n") if not line.startswith("#"))
    return _COUNTS.sub("", "\n".join(lines)), hash(rules.rpartition("\nCOMMIT")[0])
