"""How long to wait for what, and how often to do or say a thing."""

from __future__ import annotations

import math
import random
import time
from typing import Callable


class Backoff:
    """Growing delays with jitter, as client-go's reflector has them: 0.8 s doubling to 30 s.

    After two minutes without a failure they start over.
    """

    FIRST, FACTOR, CAP, JITTER, RESET_AFTER = 0.8, 2.0, 30.0, 1.0, 120.0

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._chance = clock, chance
        self._delay, self._last = self.FIRST, clock()

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        now = self._clock()
        if now - self._last > self.RESET_AFTER:
            self._delay = self.FIRST
        self._last = now
        delay, self._delay = self._delay, min(self._delay * self.FACTOR, self.CAP)
        return delay * (1 + self.JITTER * self._chance())

    def reset(self) -> None:
        """Starts over: what made the attempts fail is known to be gone."""
        self._delay = self.FIRST


class Seldom:
    """Allows something once in `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._last = -math.inf

    @property
    def due(self) -> bool:
        """Whether it may be done now."""
        return self._clock() - self._last >= self._seconds

    def done(self) -> None:
        """Notes that it was done."""
        self._last = self._clock()


class Once:
    """Has something that lasts, such as a fault, said once."""

    def __init__(self) -> None:
        self._last = ""

    def new(self, text: str) -> bool:
        """Whether `text` is to be said: it is another one than the last, and not empty."""
        last, self._last = self._last, text
        return text not in ("", last)


def between(first: float, last: float, chance: Callable[[], float] = random.random) -> float:
    """A time between the two, so that many who began together do not go on together."""
    return first + (last - first) * chance()


def seconds_left(end: float) -> float:
    """The time until `end`, on the monotonic clock. Raises TimeoutError where there is none.

    For one limit to a whole conversation: a limit for each read is none for who sends in drops.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
