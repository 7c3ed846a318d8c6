"""The process' own memory, which the C library keeps for later unless told otherwise."""

from __future__ import annotations

import ctypes
import gc

_libc = ctypes.CDLL(None)
# mallopt(3)
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8


def collect_seldom() -> None:
    """Has Python look for garbage in cycles seldom, as next to nothing here is any.

    By default it does so each time that 700 objects were made, and makes hundreds of thousands of a
    list: a third of the time that reading it and planning take.
    """
    gc.set_threshold(20_000, 20, 20)


def return_freed_memory() -> None:
    """Has glibc give freed memory back at once, not keep it for a list that comes once a day.

    With 10,000 Services that is a fifth of the process. Other C libraries do so by themselves.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 64 << 10)
        mallopt(_M_ARENA_MAX, 1)


def return_pages() -> None:
    """Has glibc give back what is free below something that is not, in half a millisecond.

    It does not do so by itself. A burst of changes leaves a tenth of the process like that.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
