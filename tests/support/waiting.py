"""Waiting for a condition, bounded in time."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[[], T],
    what: str | Callable[[], str] = "",
    timeout: float = 15.0,
    pause: float = 0.02,
) -> T:
    """The first true value that `condition` gives; AssertionError after `timeout` seconds.

    It is asked anew after each `pause`. A `what` that changes meanwhile, such as a log, is to be a
    function: it is asked at the end.
    """
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            said = what() if callable(what) else what
            raise AssertionError(f"{said or condition} did not come true within {timeout:g} s")
        time.sleep(pause)
