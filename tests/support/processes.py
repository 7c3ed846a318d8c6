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
