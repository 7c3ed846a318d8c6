"""One family's filter table: the rule that drops INVALID packets, where `dropInvalidInput` is true.

Where it is false the table is read once, as an earlier run may have left the rule, and then not any
more: it may be a large one, and is no business of ours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.invalid import input_rules
from ipvs_node_agent.sync.kept import KeptTable
from ipvs_node_agent.sync.state import Meter

# So often a table is tried to be read in which nothing of ours need be.
_TRIES = 4


class InvalidInput(KeptTable):
    """What the filter table is to hold of ours; nothing before `plan`."""

    def __init__(
        self, family: Family, programmer: Programmer, clock: Callable[[], float], meter: Meter
    ) -> None:
        super().__init__(f"{family} filter", family, programmer, clock, meter)
        self._ruleset = input_rules(dropping=False)
        self._tries = _TRIES

    @property
    def ruleset(self) -> Ruleset:
        """See `KeptTable`."""
        return self._ruleset

    @property
    def resting(self) -> bool:
        """Whether there is nothing of ours, nor to be."""
        return not (self._ruleset.chains or self.dirty)

    @property
    def turn(self) -> int:
        """See `KeptTable`.

        What was read ahead takes no time, and is worth nothing once nat is written: a new look
        takes as long as reading all of nat, since iptables-nft-save reads every table.
        """
        at_hand = self.dirty and not self._ruleset.chains and self.programmer.read_ahead
        return 0 if at_hand else super().turn

    @property
    def due(self) -> float:
        """See `KeptTable`."""
        return math.inf if self.resting else super().due

    @property
    def untold(self) -> bool:
        """See `KeptTable`."""
        return not self.resting and super().untold

    @property
    def check_seconds(self) -> float:
        """See `KeptTable`."""
        return 0.0 if self.resting else super().check_seconds

    def plan(self, dropping: bool, since: float) -> None:
        """Drops INVALID packets from now on, or does not; told at the time `since`."""
        if dropping != bool(self._ruleset.chains):
            self._ruleset = replace(input_rules(dropping), behind=self._ruleset.behind)
            self._progress.queue(since, self._clock())

    def use(self, programmer: Programmer) -> None:
        """See `KeptTable`."""
        is_clean = not (self.dirty or self._ruleset.chains)
        super().use(programmer)
        # Of a table in which nothing of ours was, another one may be out of reach.
        self._held, self._tries = self._held and not is_clean, _TRIES

    def sync(self, looking: bool) -> None:
        """See `KeptTable`."""
        if not self.resting:
            super().sync(looking)
            if self.resting:
                self.programmer.rest()

    def _failed(self, error: TableError, seconds: float) -> None:
        self._tries -= 1
        if self._matters or error.locked or error.hung or self._tries <= 0:
            super()._failed(error, seconds)
        else:
            # Once it is given up nobody looks any more, and an earlier run's rule would stay.
            self._retry(error, seconds)

    def _give_way(self, other: tuple[str, str]) -> None:
        self._ruleset = replace(self._ruleset, behind=self._ruleset.behind | {other})
