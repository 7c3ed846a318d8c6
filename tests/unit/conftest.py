"""Fixtures that unit tests of several packages share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commandline import Command


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Command lines on a machine without the default configuration file."""
    monkeypatch.setattr("ipvs_node_agent.config.file.DEFAULT_PATH", tmp_path / "absent.yaml")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Command(capsys)
    root.handlers[:], root.level = before
