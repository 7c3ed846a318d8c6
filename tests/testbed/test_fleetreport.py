"""What an hour of a fleet costs, from figures that were made up; and where the document has it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.fleetreport import Kind, renewal
from tests.bench.report import replaced, section

# One processor second of idling in 100.
IDLE = 0.01


def phase(cpu: float, units: float = 1, size: int = 0, seconds: float = 10.0) -> dict[str, Any]:
    """Figures of a phase that took so much beyond idling."""
    return {
        "units": units,
        "seconds": seconds,
        "cpu": cpu + seconds * IDLE,
        "sent": size,
        "received": 0,
        "requests": {},
    }


def crowd(count: int, **phases: dict[str, Any]) -> dict[str, Any]:
    return {"count": count, "calm": phase(0.0, 1, count * 60), **phases}


def figures(slices: float) -> dict[str, Any]:
    """Ten of a kind, to which 100 changes of a Service cost 2 s more than to nobody."""
    nobody = crowd(0, services=phase(1.0, 100), slices=phase(1.0, 100), nodes=phase(0.5, 50))
    some = {
        "services": phase(3.0, 100, 100_000),
        "slices": phase(1.0 + slices, 100, 200_000),
        "nodes": phase(0.4, 20, 20_000),
    }
    return {
        "nobody": nobody,
        "kind": [crowd(10, **some)],
        "renewal": phase(0.4, 400, 40_000),
    }


def test_what_nobody_costs_and_what_idling_costs_is_not_theirs() -> None:
    kind = Kind(figures(4.0), "kind", 4, True)
    assert kind.cost("services") == pytest.approx((0.002, 100))
    assert kind.cost("slices") == pytest.approx((0.004, 200))
    assert kind.cost("nodes") == pytest.approx((0.001, 100))
    assert renewal(figures(4.0)) == pytest.approx((0.001, 100))


@pytest.mark.parametrize(
    ("watches", "follows", "ratio", "cpu", "size"),
    [
        # 360 Services, 12 Nodes, a bookmark a minute and 8 renewals in each watch.
        (1, True, 0, 0.72 + 0.24 + 0.12 + 0.008, 36_000 + 24_000 + 3_600 + 800),
        (4, True, 0, 0.72 + 0.24 + 0.48 + 0.032, 36_000 + 24_000 + 3_600 + 3_200),
        (
            4,
            True,
            20,
            0.72 + 28.8 + 0.24 + 0.48 + 0.032,
            36_000 + 1_440_000 + 24_000 + 3_600 + 3_200,
        ),
        (4, False, 20, 0.72 + 0.24 + 0.48 + 0.032, 36_000 + 24_000 + 3_600 + 3_200),
    ],
)
def test_an_hour_is_made_of_its_parts(
    watches: int, follows: bool, ratio: float, cpu: float, size: float
) -> None:
    kind = Kind(figures(4.0), "kind", watches, follows)
    assert kind.hour(ratio) == pytest.approx((cpu, size))


def test_less_than_nothing_is_nothing() -> None:
    assert Kind(figures(-0.5), "kind", 4, True).cost("slices").cpu == 0.0


@pytest.mark.parametrize("after", ["", "\n## Behind it\n\nMore.\n"])
def test_the_section_takes_the_place_of_the_last_one(after: str) -> None:
    head, old, new = (
        "# Title\n\n## First\n\nText.\n\n",
        "## A fleet\n\nOld.\n",
        "## A fleet\n\nNew.\n",
    )
    found = section(head + old + after, "## A fleet\n")
    assert found.rstrip("\n") == old.rstrip("\n")
    assert replaced(head + old + after, new) == head + new + after
    assert replaced(head, new) == head + new
