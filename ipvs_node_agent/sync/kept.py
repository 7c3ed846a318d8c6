"""One table of the kernel's, kept as it is wanted: when to look and write, and when to try again.

A failed write is tried again after a back-off of the table's own, 0.2 s doubling to 10 s; where
only the lock was in the way, 0.2 s each time. What is wanted is known to whoever inherits: `family`
for nat, `invalid` for filter. The clock is handed in; there is no thread here.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Callable

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from ipvs_node_agent.sync.progress import Progress
from ipvs_node_agent.sync.repairs import QUIET, Repairs, done_by_others, size
from ipvs_node_agent.sync.state import FamilyState, Meter

log = logging.getLogger(__name__)

_RETRY_FIRST, _RETRY_CAP = 0.2, 10.0


class KeptTable(ABC):
    """What one table holds, as far as is known; `name` is what the log calls it."""

    def __init__(
        self,
        name: str,
        family: Family,
        programmer: Programmer,
        clock: Callable[[], float],
        meter: Meter,
    ) -> None:
        self.name, self.programmer, self._clock = name, programmer, clock
        self.repairs = Repairs()
        # What the table holds, None where that is not known, and whether it was ever known.
        self._holds: Ruleset | None = None
        self._held = False
        self._delay, self._retry_at = _RETRY_FIRST, 0.0
        self.error: TableError | None = None
        self.last_error: tuple[float, str] | None = None
        self._progress = Progress(family, meter)

    @property
    @abstractmethod
    def ruleset(self) -> Ruleset:
        """What is wanted; the very same object as long as that is the same."""

    @abstractmethod
    def _give_way(self, other: tuple[str, str]) -> None:
        """Leaves the first place to another's jump, as a built-in chain and target."""

    @property
    def _rules(self) -> int:
        """How many rules are wanted."""
        return sum(map(len, self.ruleset.chains.values()))

    @property
    def dirty(self) -> bool:
        """Whether the table may hold something else than what is wanted."""
        return self._holds is not self.ruleset

    @property
    def state(self) -> FamilyState:
        """What others may know of it."""
        return FamilyState(
            rules=self._rules,
            chains=len(self.ruleset.chains),
            failures=self._progress.failures,
            synced=self._progress.synced,
            queued=self._progress.queued,
            waiting_since=self._progress.waiting_since,
            behind=self.ruleset.behind,
        )

    @property
    def turn(self) -> int:
        """Whose number is lower comes first; one that fails may hang until its time limit."""
        return 1 if self.error is None else 2

    @property
    def due(self) -> float:
        """When `sync` will have something to do, if nobody tells of anything before."""
        if self.dirty:
            return self._retry_at
        if self._resting:
            return self.repairs.rest_until
        return self._look_due(self._clock())

    @property
    def told_by(self) -> int | None:
        """What poll(2) finds readable as soon as somebody tells; None where nobody is heard now."""
        return None if self.dirty or self._resting else self.programmer.told_by

    @property
    def untold(self) -> bool:
        """Whether nobody tells what others do, and it has to be looked for."""
        return self.programmer.told_by is None and self._matters

    def _look_due(self, now: float) -> float:
        if self.programmer.knows:
            return self.programmer.drift_due(now)
        # As after a rest that a look at everything fell into.
        return now if self._matters else math.inf

    @property
    def _matters(self) -> bool:
        """Whether anything of ours is in the table, or belongs there."""
        return bool(self.ruleset.chains or self._held)

    @property
    def _resting(self) -> bool:
        return self._clock() < self.repairs.rest_until

    @property
    def check_seconds(self) -> float:
        """What the last look took that nothing had asked for."""
        return self.programmer.check_seconds

    def use(self, programmer: Programmer) -> None:
        """Goes on with another table, which may still be the same one."""
        if not self.dirty:
            self._progress.wait(self._clock())
        self.programmer, self._holds, self._retry_at = programmer, None, 0.0

    def sync(self, looking: bool) -> None:
        """Writes what is due; `looking` also for drift that nobody tells of."""
        now = self._clock()
        if now < self._retry_at:
            return
        looking = not self._resting and (looking or self._look_due(now) <= now)
        if not (self.dirty or looking):
            return
        outcome = self._write(looking)
        if isinstance(outcome, TableError):
            self._failed(outcome, self._clock() - now)
        else:
            self._succeeded(outcome, self._clock() - now)

    def _write(self, looking: bool) -> Change | TableError:
        """Has the table hold what is wanted, in one attempt."""
        write = self.programmer.check if looking else self.programmer.apply
        try:
            return write(self.ruleset)
        except TableError as error:
            return error

    def _failed(self, error: TableError, seconds: float) -> None:
        now = self._clock()
        if not (self._matters or error.locked or error.hung):
            # Nothing belongs there, or ever did; a kernel without the family cannot even be asked.
            log.debug("%s: %s", self.name, error)
            self._holds, self.error = self.ruleset, None
            self._progress.sync(now)
            return
        self._progress.fail(seconds, now)
        self.last_error = (now, f"{self.name}: {error}")
        if self.error is None or str(self.error) != str(error):
            log.error("%s: cannot program the kernel, trying again: %s", self.name, error)
        self.error = error
        self._retry(error, seconds)

    def _retry(self, error: TableError, seconds: float) -> None:
        """Tries again later what took so long and failed."""
        now, self._holds = self._clock(), None
        # What hangs leaves the other tables half of the time. A lock is let go of at any moment.
        self._retry_at = now + max(self._delay, 0.0 if error.locked else seconds)
        # A lock has been waited for already, and what it keeps away is due as soon as it is free.
        self._delay = _RETRY_FIRST if error.locked else min(self._delay * 2, _RETRY_CAP)

    def _hurry(self) -> None:
        """The next try need not wait as long as the last one."""
        self._delay = _RETRY_FIRST

    def _succeeded(self, change: Change, seconds: float) -> None:
        now, ruleset = self._clock(), self.ruleset
        if self.error is not None:
            log.info("%s: works again", self.name)
        self.error, self._retry_at = None, 0.0
        self._hurry()
        said = self.repairs.note(change, seconds, now) and change
        what = self.name, size(change), seconds * 1000
        if said and change.repairs:
            log.warning(
                "%s: repaired %s in %.0f ms: %s (similar repairs are not logged for %.0f s)",
                *(*what, done_by_others(change), QUIET),
            )
        elif said:
            log.log(self._level(change), "%s: wrote %s in %.0f ms", *what)
        for built_in, target in self.repairs.insisting(change, now):
            log.warning(
                "%s: %s keeps returning to the front of %s; it may stay there as long as it is"
                " harmless",
                self.name,
                target,
                built_in,
            )
            self._give_way((built_in, target))
        self._holds, self._held = ruleset, True
        self._progress.sync(now, seconds if change else None)

    def _level(self, change: Change) -> int:
        """How loud it is said that `change`, which is no repair, was made."""
        return logging.INFO
