"""Which backend the agent goes to, and when it is sure of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import backends, command
from ipvs_node_agent.iptables.backends import Kernel, detect_backend
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.launcher import Launcher

HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
CANARY = HINT.replace("IPTABLES-HINT", "KUBELET-CANARY")
EMPTY = "*mangle\nCOMMIT\n"
BROKEN = TableError("iptables", "broken")


def kernel(backend: str = "auto") -> Kernel:
    return Kernel(Launcher({}), IptablesOptions(backend=backend), frozenset(), "KUBE-MARK-MASQ")


@pytest.mark.parametrize(
    ("tables", "found"),
    [
        ({}, None),
        ({"iptables-nft": EMPTY, "iptables-legacy": EMPTY}, None),
        ({"iptables-nft": HINT, "iptables-legacy": CANARY}, "nft"),
        ({"ip6tables-nft": CANARY}, "nft"),
        ({"iptables-nft": EMPTY, "ip6tables-nft": BROKEN, "iptables-legacy": HINT}, "legacy"),
        ({"iptables-nft": BROKEN}, BROKEN),
    ],
)
def test_the_kubelets_chains_tell_the_backend(
    tables: dict[str, Any], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(_: Launcher, save: str, table: str) -> str:
        assert table == "mangle"
        content = tables[save.removesuffix("-save")]
        if isinstance(content, TableError):
            raise content
        return str(content)

    monkeypatch.setattr(backends, "saved_table", saved)
    monkeypatch.setattr(backends, "may_read", lambda *_: True)
    monkeypatch.setattr(
        command, "find", lambda name: name if name.removesuffix("-save") in tables else None
    )
    if isinstance(found, TableError):
        with pytest.raises(TableError):
            detect_backend(Launcher({}))
    else:
        assert detect_backend(Launcher({})) == found


@pytest.mark.parametrize(
    ("looks", "chosen"),
    [
        pytest.param([None], [("nft", False, False)], id="no trace"),
        pytest.param([BROKEN], [("nft", False, False)], id="cannot be told"),
        pytest.param(["legacy"], [("legacy", True, True)], id="found"),
        pytest.param(
            ["nft", "legacy", "legacy"],
            [("nft", True, False), ("nft", False, False), ("legacy", True, True)],
            id="another one is looked at twice",
        ),
        pytest.param(
            ["nft", None, "nft"],
            [("nft", True, False), ("nft", False, False), ("nft", True, False)],
            id="flushed for a moment",
        ),
    ],
)
def test_the_backend_changes_only_for_good(
    looks: list[Any], chosen: list[tuple[str, bool, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[Any] = iter(looks)

    def detect(_: Launcher) -> str | None:
        answer = next(answers)
        if isinstance(answer, TableError):
            raise answer
        return None if answer is None else str(answer)

    monkeypatch.setattr(backends, "detect_backend", detect)
    choosing = kernel()
    seen = []
    for _ in looks:
        moved = choosing.choose()
        seen.append((choosing.backend, choosing.certain, moved))
    assert seen == chosen


def test_a_backend_that_is_configured_is_not_looked_for() -> None:
    choosing = kernel("legacy")
    assert choosing.choose()
    assert (choosing.backend, choosing.certain) == ("legacy", True)
