"""Whether the API server is heard of at all: silence is asked about, and told of as a trouble.

An open connection proves nothing: behind a local proxy, as kubespray's, it stays open whatever
becomes of the API server. But a bookmark comes about every minute (KEP-956).
"""

from __future__ import annotations

import math
import threading
import time
from typing import Callable

from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.model.events import CONNECTION, Event, Recovered, Trouble

# After so many seconds of silence a request is to be made, and again after as many; and after so
# many nobody is there.
ASKS, AGAIN, SILENT = 90.0, 20.0, 150.0
_LOOK = 1.0  # How often one looks while it is silent.


class Silence:
    """Tells by `emit` when nothing is heard of the API server for long, and when something is.

    `heard` gives the time of the last byte or good answer; `ask` asks for one.
    """

    def __init__(
        self,
        heard: Callable[[], float],
        ask: Callable[[], None],
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._heard, self._ask, self._emit, self._clock = heard, ask, emit, clock
        self._began = clock()
        self._asked = -math.inf
        # Not known before the first word: who looked before may have left a trouble behind.
        self._silent: bool | None = None

    def run(self, stopped: threading.Event) -> None:
        """Tells until `stopped`."""
        while not stopped.wait(self.turn()):
            pass

    def turn(self) -> float:
        """Does what is due, and gives the seconds until something may be due again."""
        now, heard = self._clock(), max(self._heard(), self._began)
        silent = now - heard >= SILENT
        if silent != self._silent and (silent or heard > self._began):
            self._silent = silent
            error = AgentError("API server", f"has been silent for {SILENT:.0f} s")
            self._emit(Trouble(CONNECTION, error, True) if silent else Recovered(CONNECTION))
        if silent:
            return _LOOK
        due = self._asked + AGAIN if self._asked > heard else heard + ASKS
        if now >= due:
            self._asked, due = now, now + AGAIN
            self._ask()
        return min(due, heard + SILENT) - now
