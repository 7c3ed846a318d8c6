"""No wait depends on the time of day, which an administrator or NTP may set at any moment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.places import modules


def test_nothing_that_waits_asks_for_the_time_of_day() -> None:
    """Whatever waits goes by the monotonic clock, which nobody can set."""
    asking = re.compile(r"\btime\.time\b|\btime_ns|localtime|gmtime|datetime|CLOCK_REALTIME")
    # What reads or shows dates has to; nothing waits there.
    dated = {
        "check/judge_cluster",
        "commands/check",
        "commands/status",
        "kubeconfig/reader",
        "observe/metrics",
        "observe/nodeevents",
        "observe/pages",
        "observe/status",
    }
    assert dated <= modules().keys()
    paths = [path for name, path in modules().items() if name not in dated]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    assert len(lines) > 1000
    assert not list(filter(asking.search, lines))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons wait by the time of day")
def test_neither_does_python_where_it_waits_for_a_queue() -> None:
    assert b"sem_clockwait" in Path(sys.executable).resolve().read_bytes()
