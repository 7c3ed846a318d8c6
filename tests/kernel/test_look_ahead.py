"""A look that begins before it is asked for misses nothing of what happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Config, IptablesOptions
from ipvs_node_agent.host.rundir import own_names
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.iptables.table import AHEAD_LIMIT, BACKENDS, NFT, KernelTable, Since
from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from ipvs_node_agent.model.events import NODES, SERVICES, Listed
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.sync.agent import Agent
from tests.support.agentnode import EXTERNAL_4, web
from tests.support.cluster import POD_CIDRS, node
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq, restore

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12", "debian13")]

RULE = "-d 192.0.2.1/32 -j RETURN"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were started."""
    names: list[str] = []
    real = command.start

    def start(launcher: object, name: str, *rest: object, **options: object) -> object:
        names.append(name)
        return real(launcher, name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "start", start)
    return names


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


def start_for_the_first_time(namespace: Namespace, then: Callable[[], None]) -> None:
    """Looks ahead, calls `then`, and is told of a Service and writes its rules."""
    config = Config(iptables=IptablesOptions(backend=NFT))
    for family in FAMILIES:
        add_mark_masq(namespace, family, NFT)
    with namespace.enter(), closing(launch()) as launcher:
        names = own_names(config.chains)
        kernel = Kernel(launcher, config.iptables, names, config.chains.mark_masquerade)
        with closing(kernel):
            kernel.choose()
            agent = Agent(config, kernel.programmers(), filters=kernel.filters())
            kernel.look_ahead()
            then()
            agent.take(Listed(NODES, (read_node(node(*POD_CIDRS)),), time.monotonic()))
            agent.take(Listed(SERVICES, (read_service(web(EXTERNAL_4)),), time.monotonic()))
            agent.tick()
            assert agent.in_sync


def test_a_first_start_reads_no_filter_table_once_nat_is_written(
    namespace: Namespace, started: list[str]
) -> None:
    """iptables-nft-save reads all tables, whichever of them it prints."""
    start_for_the_first_time(namespace, started.clear)
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
    start_for_the_first_time(namespace, lambda: None)
    looked = [line for line in started if line.endswith("-save -t filter")]
    written = [line for line in started if "-restore" in line]
    assert len(looked) == len(FAMILIES)
    assert started.index(written[-1]) < started.index(looked[0])
