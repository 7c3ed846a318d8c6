"""How far one family's table is behind what is wanted, in times; all are monotonic."""

from __future__ import annotations

import math

from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.sync.state import Meter


class Progress:
    """When what was wanted, and since when the table waits for it; see `state.FamilyState`."""

    def __init__(self, family: Family, meter: Meter) -> None:
        self._family, self._meter = family, meter
        self.synced = self.queued = -math.inf
        self.waiting_since = math.inf
        self.failures = 0
        # When the API server told of those changed Services that the next write is about.
        self._arrived: dict[str, float] = {}

    def queue(self, since: float, now: float) -> None:
        """Something else is wanted since it was told of; `since` is infinite where nobody told."""
        self.queued = max(self.queued, min(since, now))
        self.wait(self.queued if since == math.inf else since)

    def wait(self, since: float) -> None:
        """The table may not hold what is wanted."""
        self.waiting_since = min(self.waiting_since, since)

    def arrived(self, key: str, time: float) -> None:
        """The next write is about the Service `key`, whose change was told then."""
        self._arrived.setdefault(key, time)

    def fail(self, seconds: float, now: float) -> None:
        """A look or a write failed after so many seconds."""
        self.failures += 1
        self._meter.synced(self._family, seconds)
        self.wait(now)

    def sync(self, now: float, seconds: float | None = None) -> None:
        """The table holds what is wanted; `seconds` is what the write took, if there was one."""
        self.synced, self.waiting_since = now, math.inf
        if seconds is not None:
            self._meter.synced(self._family, seconds)
        if self._arrived:
            self._meter.programmed(self._family, [now - time for time in self._arrived.values()])
            self._arrived = {}
