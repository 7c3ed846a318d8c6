"""What the main thread waits for: work from other threads and from signals, and what else may come.

A queue of the standard library's can be waited for by itself alone. Here a pipe says that there is
work, so that one call of poll(2) waits for it, for sockets, and for a time.
"""

from __future__ import annotations

import math
import os
import select
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Callable

Work = Callable[[], object]

# Whoever may wait does so while this much is there, and goes on when half of it was taken.
_MOST = 200
# How often it is looked at whether all is over, in seconds.
_OVER_PERIOD = 1.0


class Inbox:
    """Work, in the order in which it was put; one thread takes it."""

    def __init__(self) -> None:
        self._work: deque[Work] = deque()
        self._said, self._say = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._room = threading.Event()
        # Whether somebody has waited to put more, of which there is mostly much more.
        self._is_pressed = False

    def __len__(self) -> int:
        return len(self._work)

    def put(self, work: Work) -> None:
        """Adds `work`; from any thread, and from a signal's handler."""
        self._work.append(work)
        # Full, it says so already.
        with suppress(BlockingIOError):
            os.write(self._say, b"\0")

    def put_in_turn(self, work: Work, over: threading.Event) -> None:
        """Adds `work` once there is little of it, unless it is `over` by then.

        A server that tells more than the main thread can do would else fill the memory. It waits
        on its own side, as nobody reads what it sends.
        """
        while len(self._work) >= _MOST and not over.is_set():
            self._room.clear()
            # What was taken in between says so no more.
            if len(self._work) >= _MOST:
                self._is_pressed = True
                self._room.wait(_OVER_PERIOD)
        if not over.is_set():
            self.put(work)

    def take(self) -> Work | None:
        """What comes next; None where there is nothing."""
        if len(self._work) == _MOST // 2:
            self._room.set()
        return self._work.popleft() if self._work else None

    def goes_on(self, seconds: float) -> bool:
        """Whether more comes at once from those who had to wait, where `take` gives nothing.

        What is made of all that comes in a row takes long, and not much longer for more of it.
        """
        self._is_pressed = self._is_pressed and self.wait([], seconds)
        return self._is_pressed

    def wait(self, others: Iterable[int], seconds: float) -> bool:
        """Waits for work, or for one of these file descriptors to be readable, at most so long.

        Whether that came.
        """
        came = bool(self._work)
        if not came:
            waiting = select.poll()
            for each in (self._said, *others):
                waiting.register(each, select.POLLIN)
            limit = None if seconds == math.inf else math.ceil(max(seconds, 0.0) * 1000)
            came = bool(waiting.poll(limit))
        # Before the work is taken: what is put from now on is said anew.
        with suppress(BlockingIOError):
            while os.read(self._said, 1 << 16):
                pass
        return came
