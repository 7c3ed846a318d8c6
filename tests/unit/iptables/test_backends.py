"""Which backend the agent goes to, and when it is sure of it."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import backends, command
from ipvs_node_agent.iptables.backends import Kernel, detect_backend
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.processes.launcher import Launcher
from tests.support.processes import children

HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
CANARY = HINT.replace("IPTABLES-HINT", "KUBELET-CANARY")
EMPTY = "*mangle\nCOMMIT\n"
BROKEN = TableError("iptables", "broken")


def kernel(backend: str = "auto") -> Kernel:
    return Kernel(Launcher({}), IptablesOptions(backend=backend), frozenset(), "KUBE-MARK-MASQ")


def given(answer: Any) -> Any:
    """The answer, or raises it."""
    if isinstance(answer, TableError):
        raise answer
    return answer


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
        return str(given(tables[save.removesuffix("-save")]))

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


# What a look finds, and whether one moves then: to which backend, and whether that is certain.
SURE, UNSURE, MOVED = ("nft", True, False), ("nft", False, False), ("legacy", True, True)


@pytest.mark.parametrize(
    "looks",
    [
        [(None, UNSURE)],
        [(BROKEN, UNSURE)],
        [("legacy", MOVED)],
        [("nft", SURE), ("legacy", UNSURE), ("legacy", MOVED)],
        [("nft", SURE), (None, UNSURE), ("nft", SURE)],
    ],
    ids=["no trace", "cannot be told", "found", "another one twice", "flushed for a moment"],
)
def test_the_backend_changes_only_for_good(
    looks: list[tuple[Any, tuple[str, bool, bool]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([answer for answer, _ in looks])
    monkeypatch.setattr(backends, "detect_backend", lambda _: given(next(answers)))
    choosing = kernel()
    for _, chosen in looks:
        moved = choosing.choose()
        assert (choosing.backend, choosing.certain, moved) == chosen


def test_a_backend_that_is_configured_is_not_looked_for() -> None:
    choosing, before = kernel("legacy"), children()
    assert choosing.choose()
    # What starts commands will be wanted soon, and takes a while to begin.
    assert len(children() - before) == 1
    choosing.launcher.close()
    assert (choosing.backend, choosing.certain) == ("legacy", True)
