"""How far a table is behind, as metrics and health have it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ipvs_node_agent.model.addresses import IPV4, Family
from ipvs_node_agent.sync.progress import Progress
from ipvs_node_agent.sync.state import Meter


class Noting(Meter):
    def __init__(self) -> None:
        self.writes: list[float] = []
        self.latencies: list[float] = []

    def synced(self, family: Family, seconds: float) -> None:
        self.writes.append(seconds)

    def programmed(self, family: Family, seconds: Iterable[float]) -> None:
        self.latencies += seconds


def test_a_change_waits_from_when_it_was_told_until_it_is_written() -> None:
    meter = Noting()
    made = Progress(IPV4, meter)
    assert (made.queued, made.waiting_since, made.synced) == (-math.inf, math.inf, -math.inf)
    made.queue(since=7, now=10)
    made.queue(since=math.inf, now=11)
    # What is told twice before it is written has waited since the first time.
    made.arrived("default/web", 7)
    made.arrived("default/web", 9)
    assert (made.queued, made.waiting_since) == (11, 7)
    made.sync(12, seconds=0.5)
    made.sync(13)
    assert (made.synced, made.waiting_since) == (13, math.inf)
    assert (meter.writes, meter.latencies) == ([0.5], [5])


def test_what_fails_is_counted_and_waits_from_then_on() -> None:
    meter = Noting()
    made = Progress(IPV4, meter)
    made.sync(1)
    made.fail(0.25, now=2)
    made.fail(0.25, now=3)
    assert (made.failures, made.waiting_since, made.synced) == (2, 2, 1)
    assert meter.writes == [0.25, 0.25]
