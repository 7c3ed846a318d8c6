"""How the time that something takes grows with its size."""

from __future__ import annotations

import gc
import time
from typing import Callable

_FACTOR = 8


def grows_no_faster_than_linear(work: Callable[[int], object], size: int) -> None:
    """Demands that eight times of `size` takes less than twenty times as long; 64 were its square.

    The best of a few tries on either side, in time of the processor, so that others do not count.
    """

    def seconds(size: int) -> float:
        # The collector goes through all that other tests have left as well.
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            work(size)
            return time.process_time() - start
        finally:
            gc.enable()

    for _ in range(3):
        small = min(seconds(size) for _ in range(3))
        large = min(seconds(size * _FACTOR) for _ in range(2))
        if large < small * _FACTOR * 2.5:
            return
    raise AssertionError(f"{small:.4f} s for {size}, {large:.4f} s for {size * _FACTOR}")
