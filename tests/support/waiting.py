"""Waiting for a condition, bounded in time."""

from __future__ import annotations

import os
import time
from typing import Callable, TypeVar

T = TypeVar("T")
# Where all that is waited for may take so many times as long as on the machines that limits were
# made for: where several tests run at once, and on an emulated processor.
PATIENCE = float(os.environ.get("IPVS_NODE_AGENT_PATIENCE", "1"))


def eventually(
    condition: Callable[[], T],
    what: str | Callable[[], str] = "",
    timeout: float = 15.0,
    pause: float = 0.02,
) -> T:
    """The first true value that `condition` gives; AssertionError after `timeout` seconds,
    which PATIENCE makes more.

    It is asked anew after each `pause`. A `what` that changes meanwhile, such as a log, is to be a
    function: it is asked at the end.
    """
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            said = what() if callable(what) else what
            raise AssertionError(f"{said or condition} did not come true within {timeout:g} s")
        time.sleep(pause)
