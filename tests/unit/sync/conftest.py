"""What all tests of the mind go by."""

from __future__ import annotations

import pytest

from tests.support.agentnode import Log


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)
