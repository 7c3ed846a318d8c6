"""Keeps one family's nat table as wanted: reads it, computes the difference, writes it as one.

Between drift checks the table is taken to hold what was last written, so that a change costs one
command. Where a write then fails, the belief is dropped, and the table is read before the next try.
"""

from __future__ import annotations

from typing import Callable

from ipvs_node_agent.iptables import Table, TableError
from ipvs_node_agent.ruleset import Change, Found, Ruleset, difference, parse_save, settled


class Programmer:
    """One family's table in one backend. `owns` tells which chains are the agent's."""

    def __init__(self, table: Table, owns: Callable[[str], bool]) -> None:
        self._table, self._owns = table, owns
        self._known: Found | None = None

    def read(self) -> Found:
        """What the table holds of ours, read anew. Raises TableError."""
        self._known = parse_save(self._table.save(), self._owns)
        return self._known

    def apply(self, wanted: Ruleset) -> Change:
        """Makes the table hold `wanted`, and gives what had to be changed. Raises TableError.

        Nothing is applied where it fails.
        """
        believed = self._known
        found = self.read() if believed is None else believed
        change = difference(found, wanted)
        if not change:
            return change
        self._known = None
        try:
            self._table.restore(change.restore_input())
        except TableError:
            if believed is None:
                raise
            return self.apply(wanted)
        self._known = settled(found, wanted)
        return change

    def check(self, wanted: Ruleset) -> Change:
        """Like `apply`, but looks at the table first: whatever changes had drifted."""
        self._known = None
        return self.apply(wanted)
