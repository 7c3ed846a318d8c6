"""Which chains were written, and when: noted by who writes, asked by who counts their packets."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ipvs_node_agent.nat.ruleset import Change


class Writes:
    """The writes of one table, numbered. One thread notes them; others may ask at any time."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._number = 0
        self._idle = threading.Event()
        self._idle.set()

    @contextmanager
    def under_way(self, change: Change) -> Iterator[None]:
        """`change` is being written meanwhile; where that raises, it was not."""
        self._idle.clear()
        try:
            yield
            self._number += 1
            for name in change.dropped:
                self._numbers.pop(name, None)
            self._numbers.update(dict.fromkeys(change.written, self._number))
        finally:
            self._idle.set()

    def numbers(self) -> Mapping[str, int]:
        """The number of each chain's last write."""
        return self._numbers.copy()

    def done(self, patience: float) -> bool:
        """Waits for the end of the write that is under way; False where that takes too long."""
        return self._idle.wait(patience)
