"""`check`: how findings are shown, and what it looks at with which configuration."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding
from ipvs_node_agent.commands import check
from ipvs_node_agent.commands.check import as_lines
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change
from tests.support.commandline import Command, written
from tests.support.nodefacts import cluster, healthy_host


def test_a_line_each_and_whatever_is_hostile_is_made_harmless() -> None:
    findings = [
        Finding(OK, "Node", "a\nb"),
        Finding(WARN, "x", "y"),
        Finding(FAIL, "x", "\x1b[2J", "rm\r"),
    ]
    plain = "ok    Node: a\\nb\nwarn  x: y\nfail  x: \\x1b[2J => rm\\r\n"
    assert as_lines(findings) == plain
    coloured = as_lines(findings, colours=True)
    assert re.findall(r"^(\x1b\[..m)(\w+) *\x1b\[0m  ", coloured, re.MULTILINE) == [
        ("\x1b[32m", OK),
        ("\x1b[33m", WARN),
        ("\x1b[31m", FAIL),
    ]
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have to be changed on a healthy node; the last of it, where it is an error."""
    found: list[Any] = []

    def changes_for(config: object, seen: Snapshot) -> list[Any]:
        if found and isinstance(found[-1], Exception):
            raise found[-1]
        return found

    monkeypatch.setattr(check, "_PATIENCE", 0.0)
    monkeypatch.setattr(check, "look_at_cluster", lambda _: cluster(validity=None))
    monkeypatch.setattr(check, "look_at_host", lambda _: healthy_host())
    monkeypatch.setattr(check, "changes_for", changes_for)
    return found


def test_a_healthy_node_gives_status_0(command: Command, changes: list[Any]) -> None:
    result = command("check")
    assert (result.status, result.err) == (0, "")
    assert {line[:6] for line in result.out.splitlines()} == {"ok    "}
    listed = json.loads(command("check", "-o", "json").out)
    assert [f"ok    {one['what']}: {one['text']}" for one in listed] == result.out.splitlines()


def test_rules_out_of_sync_fail(command: Command, changes: list[Any]) -> None:
    changes.append(("iptables-nft-restore", Change({"A": ()})))
    result = command("check")
    assert result.status == 1
    assert "fail  rules: out of sync (iptables-nft: 1 chains to write)" in result.out


def test_a_table_that_cannot_be_read_is_not_said_twice(
    command: Command, changes: list[Any]
) -> None:
    changes.append(RefusedError("iptables-nft-save", "busy"))
    assert "rules: " not in command("check").out


def test_with_a_bad_configuration_the_rest_is_looked_at(
    command: Command, changes: list[Any]
) -> None:
    result = command("check", "--config", written("config", {"masquerade": "Some"}))
    assert result.status == 1
    (fail,) = [line for line in result.out.splitlines() if not line.startswith("ok")]
    assert fail.startswith("fail  configuration: config line 1: masquerade: wanted All")
