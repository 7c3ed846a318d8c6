"""Several agents at once ask a real API server for what they need once, and in calm for nothing."""

from __future__ import annotations

from pathlib import Path

from tests.bench import fleet


def test_a_fleet_costs_what_it_is_said_to(binaries: Path) -> None:
    assert binaries.is_dir()
    fleet.quick()
