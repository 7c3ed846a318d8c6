"""Which processes there are below another one, and what they take."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


def children(process: int | str = "self") -> set[int]:
    """The processes that this one, or another one, started and that have not ended."""
    found: set[int] = set()
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
    except FileNotFoundError:  # ended meanwhile
        return found
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def descendants(process: int | str = "self") -> set[int]:
    """The processes that this one, or another one, started, and those that they did."""
    found = children(process)
    return found.union(*map(descendants, found))


def runs(process: int) -> bool:
    """Whether there is such a process that has not ended, whoever has to wait for it."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_ended(process: int) -> bool:
    """Whether a child has ended that nobody has waited for yet, with all its threads.

    The first of them is a zombie before the last one has closed the files that they share.
    """
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return len(threads) == 1 and ") Z " in (threads[0] / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


class Usage(NamedTuple):
    """What processes take together; memory in MiB, where each has its share of what is shared."""

    processes: int
    memory: float
    threads: int
    files: int


def usage(process: int) -> Usage:
    """What a process and all below it take."""
    found = [_usage(Path(f"/proc/{each}")) for each in (process, *descendants(process))]
    there = [each for each in found if each is not None]
    return Usage(len(there), *map(sum, zip(*(each[1:] for each in there))))


def _usage(directory: Path) -> Usage | None:
    try:
        (shares,) = re.findall(r"^Pss: +(\d+) kB", (directory / "smaps_rollup").read_text(), re.M)
        threads, files = (len(os.listdir(directory / each)) for each in ("task", "fd"))
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return None
    return Usage(1, int(shares) / 1024, threads, files)
