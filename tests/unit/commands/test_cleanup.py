"""`cleanup`: what it takes away, and that it does so beside no agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.commands import cleanup
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.host.rundir import only_one, remember_names
from tests.support.commandline import Command, written


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was to be cleaned: the names of chains, each time."""
    calls: list[Any] = []

    def clean(launcher: object, names: frozenset[str], options: object) -> Sequence[str]:
        calls.append(names)
        return ["one", "two"]

    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "ipvs-node-agent"))
    monkeypatch.setattr(cleanup, "clean", clean)
    return calls


def test_chains_under_all_names_that_there_ever_were_are_removed_and_that_is_told(
    command: Command, cleaned: list[Any]
) -> None:
    with only_one("test"):
        remember_names(frozenset({"OLD_OUTPUT"}))
    file = written("config", {"chains": {"output": "NEW_OUTPUT"}})
    assert command("cleanup", "--config", file) == (0, "one\ntwo\n", "")
    (names,) = cleaned
    assert {"OLD_OUTPUT", "NEW_OUTPUT", "IPVS_PREROUTING"} <= names


def test_beside_an_agent_nothing_is_removed(command: Command, cleaned: list[Any]) -> None:
    with only_one("run"):
        result = command("cleanup")
    assert (result.status, result.out, cleaned) == (3, "", [])
    assert result.complaint == (
        "cleanup: an agent is already running on this node (systemctl stop ipvs-node-agent)"
    )


def test_what_cannot_be_removed_is_an_error(
    command: Command, cleaned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Sequence[str]:
        raise RefusedError("iptables-nft-restore", "busy")

    monkeypatch.setattr(cleanup, "clean", fail)
    assert command("cleanup") == (3, "", "ipvs-node-agent: iptables-nft-restore: busy\n")
