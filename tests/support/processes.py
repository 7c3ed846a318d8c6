"""Which processes there are below another one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


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
    threads = list(Path(f"/proc/{process}/task").iterdir())
    return len(threads) == 1 and ") Z " in (threads[0] / "stat").read_text()
