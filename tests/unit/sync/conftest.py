"""What all tests of the mind go by."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
