"""What all processes of a service cost together: memory, processor time, wake-ups."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import descendants

_TICKS = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """Seconds of a core, and how often a thread woke that had waited, since each process began."""

    cpu_seconds: float
    wakeups: int


def used(process: int) -> Used:
    """What the service whose first process this is has used up to now."""
    seconds, wakeups = 0.0, 0
    for one in (process, *descendants(process)):
        # One that ends meanwhile is in what its parent says of its children.
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15] if one == process else fields[11:13])) / _TICKS
            for thread in Path(f"/proc/{one}/task").iterdir():
                status = (thread / "status").read_text()
                wakeups += sum(map(int, re.findall(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)))
    return Used(seconds, wakeups)


def memory(process: int) -> float:
    """MiB of all processes, pages that they share counted once.

    Others that run share pages too, as the bench itself is written in Python. So one process alone
    counts with all that it has in memory, and several by their proportional share.
    """
    texts = []
    for one in (process, *descendants(process)):
        # A command may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            texts.append(Path(f"/proc/{one}/smaps_rollup").read_text())
    field = "Pss" if len(texts) > 1 else "Rss"
    found = [int(re.findall(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[0]) for text in texts]
    return sum(found) / 1024


def idle(services: Mapping[str, int], seconds: float) -> dict[str, dict[str, float]]:
    """Percent of a core and wake-ups a second of services that all rest at the same time.

    They are given by their first processes.
    """
    before = {name: used(process) for name, process in services.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    after = {name: used(process) for name, process in services.items()}
    return {
        name: {
            "percent": (after[name].cpu_seconds - was.cpu_seconds) / took * 100,
            "wakeups": (after[name].wakeups - was.wakeups) / took,
        }
        for name, was in before.items()
    }
