"""When others are done with what they do to a table, so that it is looked at once.

A firewall that starts flushes and restores in several writes. In the midst of them there is nothing
to see, and what is put right then is taken away again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# They have been quiet for so long, or have gone on for so long.
_QUIET, _LONGEST = 0.03, 0.9


class Settling(NamedTuple):
    """What others were told to have done since the last look: when, first and last.

    `told` is another number each time that something is told.
    """

    told: int = -1
    first: float = math.inf
    last: float = math.inf

    def seen(self, told: int, now: float) -> Settling:
        """The number is `told` at the time `now`, and there is something to look at."""
        if told == self.told and self.first < math.inf:
            return self
        return Settling(told, min(self.first, now), now)

    @property
    def due(self) -> float:
        """When to look at it."""
        return min(self.last + _QUIET, self.first + _LONGEST)
