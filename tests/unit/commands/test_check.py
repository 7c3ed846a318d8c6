"""`check`: how findings are shown, and what it looks at with which configuration."""

from __future__ import annotations

import json
import threading
from typing import Any, Callable

import pytest

from ipvs_node_agent.check.facts import ClusterFacts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding
from ipvs_node_agent.commands import check
from ipvs_node_agent.commands.check import shown
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.rules.planner import Plans
from tests.support.commandline import Command, written
from tests.support.nodefacts import cluster, healthy_host

Begun = Callable[[ClusterFacts], None]


def test_levels_have_colours() -> None:
    levels = {OK: "32", WARN: "33", FAIL: "31"}
    for level, colour in levels.items():
        finding = Finding("X", level, "Node", "a\nb", "c")
        assert shown(finding, colours=False) == f"{level:4}  Node: a\\nb => c\n"
        assert shown(finding, colours=True).startswith(f"\x1b[{colour}m{level:4}\x1b[0m  Node")


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have to be changed on a healthy node; the last of it, where it is an error."""
    found: list[Any] = []

    def changes_between(*_: object) -> list[Any]:
        if found and isinstance(found[-1], Exception):
            raise found[-1]
        return found

    monkeypatch.setattr(check, "_PATIENCE", 0.0)
    monkeypatch.setattr(check, "look_at_cluster", seen_at_once)
    monkeypatch.setattr(check, "look_at_host", lambda *_: healthy_host())
    monkeypatch.setattr(check, "looked_around", lambda _, __, seen: seen)
    monkeypatch.setattr(check, "look_at_pods", lambda *_: ())
    monkeypatch.setattr(check, "changes_between", changes_between)
    return found


def test_a_healthy_node_gives_status_0(command: Command, changes: list[Any]) -> None:
    result = command("check")
    assert (result.status, result.err) == (0, "")
    assert {line[:6] for line in result.out.splitlines()} == {"ok    "}
    whole = json.loads(command("check", "-o", "json").out)
    listed = whole["findings"]
    assert (whole["kind"], whole["node"]) == ("Check", "worker-1")
    assert [f"ok    {one['subject']}: {one['text']}" for one in listed] == result.out.splitlines()


def seen_at_once(_: object, __: object, doing: object, begun: Begun) -> ClusterFacts:
    begun(cluster(validity=None))
    return cluster(validity=None)


def test_lines_come_as_they_are_found_and_what_takes_long_is_named_meanwhile(
    changes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer, may_end = threading.Event(), threading.Event()

    def slow(_: object, __: object, doing: Callable[[str], None], begun: Begun) -> ClusterFacts:
        doing("reading the credentials")
        assert may_answer.wait(10)
        doing("listing services")
        begun(cluster(validity=None, services=None))
        assert may_end.wait(10)
        return cluster(validity=None)

    monkeypatch.setattr(check, "look_at_cluster", slow)
    waited: list[str] = []

    def waiting(what: str) -> None:
        # On a busy machine more may take long, and the same may again.
        if what in ("reading the credentials", "listing services") and what not in waited:
            waited.append(what)
        event = may_end if what == "listing services" else may_answer
        event.set()

    found = []
    for finding in check.Checking(None, waiting).findings():
        found.append(finding.id)
        # What has been said by the time that this one comes.
        if finding.id == "ConfigurationOK":
            assert not waited
        elif finding.id in ("CredentialsOK", "KernelOK"):
            assert waited == ["reading the credentials"]
    assert waited == ["reading the credentials", "listing services"]
    assert found[-5:] == ["PermissionOK", "NodeOK", "PodsOK", "ExternalIPsOK", "RulesOK"]


def test_what_keeps_a_look_from_its_end_is_raised(
    changes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(check, "look_at_cluster", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(check.Checking(None).findings())


def test_what_is_known_of_the_node_is_told_while_rules_are_planned(
    changes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = threading.Event()

    def plans(config: Config, seen: Snapshot) -> Plans:
        assert planned.wait(10)
        return Plans(config, seen)

    monkeypatch.setattr(check, "Plans", plans)
    seen = []
    for finding in check.Checking(None).findings():
        seen.append(finding.id)
        if finding.id == "PodsOK":
            planned.set()
    assert seen[-2:] == ["ExternalIPsOK", "RulesOK"]


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
