"""A look that begins before it is asked for misses nothing of what happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.iptables.table import AHEAD_LIMIT, BACKENDS, NFT, KernelTable
from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from ipvs_node_agent.processes.launcher import Launcher
from tests.support.kernelagent import commands_started, kernel_agent
from tests.support.netns import Namespace
from tests.support.tables import restore

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12", "debian13")]

RULE = "-d 192.0.2.1/32 -j RETURN"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were started."""
    return commands_started(monkeypatch)


@pytest.fixture(params=BACKENDS)
def table(
    request: pytest.FixtureRequest, namespace: Namespace, started: list[str]
) -> Iterator[KernelTable]:
    backend = request.param
    restore(namespace, IPV4, backend, "*nat\n:OURS - [0:0]\n-A OURS -j RETURN\nCOMMIT\n")
    with namespace.enter(), closing(launch()) as launcher:
        made = KernelTable(launcher, IPV4, backend, IptablesOptions())
        with closing(made):
            yield made


def test_what_was_read_ahead_is_not_read_again(table: KernelTable, started: list[str]) -> None:
    table.look_ahead()
    assert "-A OURS -j RETURN" in table.save()
    assert len(started) == 1
    assert table.changed() is not Since.CHANGED
    table.save()
    assert len(started) == 2


@pytest.mark.parametrize(
    "change", [f"-A OURS {RULE}", f"-A OUTPUT {RULE}", "-F OURS", "-F OURS\n-X OURS"]
)
def test_what_others_change_meanwhile_is_read(
    change: str, table: KernelTable, namespace: Namespace, request: pytest.FixtureRequest
) -> None:
    backend = request.node.callspec.params["table"]
    before = table.save()
    table.look_ahead()
    restore(namespace, IPV4, backend, f"*nat\n{change}\nCOMMIT\n")
    assert table.save() != before
    assert table.changed() is not Since.CHANGED


def test_what_is_read_too_early_is_given_up_and_nobody_is_listened_to(
    table: KernelTable, started: list[str]
) -> None:
    table.look_ahead()
    table.forget_ahead()
    before = len(started)
    assert table.told_by is None
    assert "-A OURS -j RETURN" in table.save()
    assert len(started) == before + 1


def test_one_that_is_not_asked_for_is_given_up(table: KernelTable, started: list[str]) -> None:
    table.look_ahead()
    table.close()
    before = len(started)
    assert "-A OURS -j RETURN" in table.save()
    assert len(started) == before + 1


def test_one_that_fails_is_asked_for_again(
    table: KernelTable, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as missing:
        missing.setattr(command, "find", lambda _: "/bin/false")
        table.look_ahead()
    assert "-A OURS -j RETURN" in table.save()
    assert started.count("iptables-nft-save") in (0, 2), NFT


def test_a_first_start_reads_no_filter_table_once_nat_is_written(
    namespace: Namespace, started: list[str]
) -> None:
    """iptables-nft-save reads all tables, whichever of them it prints."""
    with kernel_agent(namespace, NFT, meanwhile=started.clear):
        assert started == ["iptables-nft-restore", "ip6tables-nft-save", "ip6tables-nft-restore"]


def test_nat_waits_for_no_second_look_at_filter_where_the_one_ahead_failed(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed may hang for a while as well."""
    real, started = command.start, list[str]()

    def start(
        launcher: Launcher, name: str, arguments: Sequence[str], *rest: Any, **more: Any
    ) -> Any:
        ahead = AHEAD_LIMIT in rest
        if not ahead:
            started.append(" ".join((name, *arguments)))
        failing = ahead and "filter" in arguments
        return real(launcher, "false" if failing else name, arguments, *rest, **more)

    monkeypatch.setattr(command, "start", start)
    with kernel_agent(namespace, NFT):
        pass
    looked = [line for line in started if line.endswith("-save -t filter")]
    written = [line for line in started if "-restore" in line]
    assert len(looked) == len(FAMILIES)
    assert started.index(written[-1]) < started.index(looked[0])
