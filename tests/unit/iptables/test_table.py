"""What a saved table is taken for, and what a table tells of itself since it was read."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import command, legacytable
from ipvs_node_agent.iptables import table as tables
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.table import LEGACY, NFT, KernelTable, Since, saved_table
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nft.monitor import Heard

EMPTY = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the commands print, one after the other; the last one again and again."""
    texts = [EMPTY]

    class Ended:
        def result(self) -> str:
            return texts.pop(0) if len(texts) > 1 else texts[0]

    monkeypatch.setattr(command, "start", lambda *_: Ended())
    return texts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# Table `nat' is incompatible, use 'nft' tool.\n", "made with nft"),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n", "no whole table"),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN\n-A OUT", "no whole table"),
        ("*filter\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "no whole table"),
        ("no such command\n", "no whole table"),
    ],
)
def test_what_is_no_whole_table_is_none_whatever_the_exit_status(
    text: str, why: str, printed: list[str]
) -> None:
    printed[:] = [text]
    with pytest.raises(TableError, match=why):
        saved_table(Launcher({}), "iptables-nft-save", "nat")


@pytest.mark.parametrize("text", ["", "# Warning: iptables-legacy tables present\n"])
def test_a_table_that_is_not_there_is_empty(text: str, printed: list[str]) -> None:
    printed[:] = [text]
    assert saved_table(Launcher({}), "iptables-nft-save", "nat") == ""


# What it tells since it was read.


def made(backend: str) -> KernelTable:
    return KernelTable(Launcher({}), IPV4, backend, IptablesOptions())


def both(table: KernelTable) -> tuple[Since, Since]:
    """What it tells for nothing, and closely."""
    return table.changed(), table.changed(closely=True)


def test_a_legacy_table_tells_closely_by_its_digest(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [b"first"]
    monkeypatch.setattr(legacytable, "names", lambda _: ["nat"])
    monkeypatch.setattr(legacytable, "digest", lambda *_: digests[-1])
    table = made(LEGACY)
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNCHANGED)
    digests.append(b"second")
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNCHANGED)
    # Of our own write there is no digest.
    table.restore("*nat\nCOMMIT\n")
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)


def test_a_legacy_table_that_is_not_there_is_not_made(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacytable, "names", lambda _: ["mangle"])
    monkeypatch.setattr(legacytable, "digest", lambda *_: pytest.fail("asked for"))
    table = made(LEGACY)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)


class Monitor:
    """Tells what it is told to."""

    def __init__(self) -> None:
        self.told = self.closed = False
        self.names: set[str] = set()
        self.by: tuple[str, ...] = ()

    def hear(self, own: int | None = None) -> Heard:
        told, self.told = self.told, False
        return Heard(told, committed=False, by=self.by)

    def knows(self, names: Iterable[str]) -> None:
        self.names = set(names)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    made = Monitor()
    monkeypatch.setattr(tables, "listen", lambda: None)
    monkeypatch.setattr("ipvs_node_agent.iptables.table.NftMonitor", lambda *_: made)
    return made


def test_an_nft_table_tells_what_was_heard_until_it_is_read(
    printed: list[str], monitor: Monitor
) -> None:
    table = made(NFT)
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    table.save()
    assert monitor.names == {"OUTPUT"}
    assert both(table) == (Since.UNCHANGED, Since.UNCHANGED)
    monitor.told = True
    assert both(table) == (Since.CHANGED, Since.CHANGED)
    assert both(table) == (Since.CHANGED, Since.CHANGED)
    table.save()
    assert both(table) == (Since.UNCHANGED, Since.UNCHANGED)
    table.close()
    assert monitor.closed


def test_a_write_too_large_to_listen_to_is_looked_at(printed: list[str], monitor: Monitor) -> None:
    table = made(NFT)
    table.save()
    table.restore("#" * (1 << 20) + "#")
    assert both(table) == (Since.CHANGED, Since.CHANGED)


def test_where_nobody_can_listen_nothing_is_known(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen() -> None:
        raise OSError("no netlink")

    monkeypatch.setattr(tables, "listen", listen)
    table = made(NFT)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)


def test_who_changed_it_is_told_between_two_looks(printed: list[str], monitor: Monitor) -> None:
    table, told = made(NFT), list[tuple[str, ...]]()
    for count in (0, 5, 0):
        for number in range(count):
            monitor.by = (f"x (pid {number})",)
            table.changed()
        monitor.by = ()
        table.save()
        told.append(table.changed_by)
    assert told == [(), ("x (pid 2)", "x (pid 3)", "x (pid 4)"), ()]
