"""One time limit for a whole conversation: a limit for each read is none for who sends in drops."""

from __future__ import annotations

import time


def seconds_left(end: float) -> float:
    """The time until `end`, on the monotonic clock. Raises TimeoutError where there is none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
