"""A finding: out of an error, and as JSON."""

from __future__ import annotations

import json

import pytest

from ipvs_node_agent.check.finding import FAIL, Finding, as_json, failed
from ipvs_node_agent.errors import RefusedError


@pytest.mark.parametrize(
    ("error", "text", "mend"),
    [
        (RefusedError("API server", "gone", "look there"), "gone", "look there"),
        (RefusedError("API server https://x", "gone"), "https://x: gone", "reboot"),
    ],
)
def test_an_error_becomes_one_with_its_own_hint_first(
    error: RefusedError, text: str, mend: str
) -> None:
    assert failed("API server", error, "reboot") == (FAIL, "API server", text, mend)


def test_machines_get_json() -> None:
    assert json.loads(as_json([Finding(FAIL, "x", "y\n", "z")])) == [
        {"level": "fail", "what": "x", "text": "y\\n", "mend": "z"}
    ]
