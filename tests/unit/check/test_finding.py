"""A finding: out of an error, as a line and as JSON."""

from __future__ import annotations

import json

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, as_json, as_line, failed
from ipvs_node_agent.errors import RefusedError


@pytest.mark.parametrize(
    ("error", "text", "remedy"),
    [
        (RefusedError("API server", "gone", "look there"), "gone", "look there"),
        (RefusedError("API server https://x", "gone"), "https://x: gone", "reboot"),
    ],
)
def test_an_error_becomes_one_with_its_own_hint_first(
    error: RefusedError, text: str, remedy: str
) -> None:
    found = failed("Gone", "API server", error, "reboot")
    assert found == ("Gone", FAIL, "API server", text, remedy)


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (Finding("X", OK, "Node", "a\nb"), "Node: a\\nb"),
        (Finding("X", WARN, "x", "y"), "x: y"),
        (Finding("X", FAIL, "x", "\x1b[2J", "rm\r"), "x: \\x1b[2J => rm\\r"),
    ],
)
def test_whatever_is_hostile_is_made_harmless(finding: Finding, line: str) -> None:
    assert as_line(finding) == (finding.level, line)


@pytest.mark.parametrize(("node", "shown"), [("worker-1\n", "worker-1\\n"), ("", None)])
def test_machines_get_json(node: str, shown: str | None) -> None:
    fields = {"id": "X", "level": "fail", "subject": "x", "text": "y\\n", "remedy": "z"}
    assert json.loads(as_json([Finding("X", FAIL, "x", "y\n", "z")], node)) == {
        "apiVersion": "ipvs-node-agent/v1",
        "kind": "Check",
        "version": __version__,
        "node": shown,
        "findings": [fields],
    }
