"""What is said once, however often it is told."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.events import Skipped
from ipvs_node_agent.sync import log
from ipvs_node_agent.sync.log import Notices


def test_what_is_passed_over_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = Notices()
    for _ in range(3):
        made.take_skipped(Skipped("services", "wanted a Service, got 'Pod'"))
    assert len(caplog.records) == 1


def test_what_is_remembered_for_that_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_REMEMBERED", 3)
    made = Notices()
    for n in (0, 1, 2, 3, 3, 0):
        made.take_skipped(Skipped("services", f"the {n}th"))
    # The fourth has the first three forgotten.
    said = [record.getMessage()[-3:] for record in caplog.records]
    assert said == ["0th", "1th", "2th", "3th", "0th"]
