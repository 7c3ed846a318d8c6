"""What a table tells of itself since it was read."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import command, legacytable
from ipvs_node_agent.iptables import table as tables
from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.iptables.table import LEGACY, NFT, KernelTable
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.amended import Amendment
from ipvs_node_agent.nft.monitor import Heard, Touched
from ipvs_node_agent.processes.launcher import Launcher


def made(backend: str) -> KernelTable:
    return KernelTable(Launcher({}), IPV4, backend, IptablesOptions())


def both(table: KernelTable) -> tuple[Since, Since]:
    """What it tells for nothing, and closely."""
    return table.changed(), table.changed(closely=True)


class Block:
    """A legacy table in the kernel: an entry of 152 bytes for each letter of its text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        self.text, self.fetched = text, 0
        monkeypatch.setattr(legacytable, "names", lambda _: ["nat"])
        monkeypatch.setattr(legacytable, "_get", self._get)

    def _get(self, asking: object, level: int, option: int, buffer: bytearray) -> None:
        if option == 64:
            name, *fields = legacytable._INFO.unpack(buffer)
            fields[-2:] = len(self.text), 152 * len(self.text)
            legacytable._INFO.pack_into(buffer, 0, name, *fields)
            return
        self.fetched += 1
        entry = struct.Struct("=90sH4sQQ40s")
        for number, letter in enumerate(self.text.encode()):
            at = 40 + number * entry.size
            # Packets are counted all the time.
            entry.pack_into(buffer, at, b"", 152, b"", self.fetched, number, bytes([letter]))


def test_a_legacy_table_tells_by_its_size_and_closely_by_all_of_it(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, table = Block(monkeypatch, "abc"), made(LEGACY)
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    table.save()
    for _ in range(2):
        assert both(table) == (Since.UNKNOWN, Since.UNCHANGED)
    for text, seen in (
        ("acb", (Since.UNKNOWN, Since.CHANGED)),
        ("ab", (Since.CHANGED, Since.CHANGED)),
        ("", (Since.CHANGED, Since.CHANGED)),
        ("abcd" * 600, (Since.CHANGED, Since.CHANGED)),
    ):
        there.text = text
        assert both(table) == seen
        table.save()
        assert both(table) == (Since.UNKNOWN, Since.UNCHANGED)
    # After a write of our own its size alone is known, and it is not fetched in vain.
    table.restore("*nat\nCOMMIT\n")
    there.fetched = 0
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    there.text = "abc"
    assert both(table) == (Since.CHANGED, Since.CHANGED)
    assert there.fetched == 0


def test_a_legacy_table_that_is_not_there_is_not_made(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacytable, "names", lambda _: ["mangle"])
    monkeypatch.setattr(legacytable, "_get", lambda *_: pytest.fail("asked for"))
    table = made(LEGACY)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)


class Monitor:
    """Tells what it is told to."""

    def __init__(self) -> None:
        self.closed = False
        self.told: Touched = frozenset()
        self.names = frozenset[str]()
        self.marks = 0
        self.by: tuple[str, ...] = ()
        # Whether the kernel left out to tell of something, and whether it was asked.
        self.left_out = self.asked = False

    def getsockname(self) -> tuple[int, int]:
        return 3, 0

    def ask(self) -> None:
        self.asked = True

    def hear(self, own: int | None = None) -> Heard:
        told, self.told = self.told, frozenset()
        if self.asked and self.left_out:
            told, self.left_out = None, False
        self.asked = False
        return Heard(told, committed=False, by=self.by)

    def knows(self, names: Iterable[str], marks: int) -> None:
        self.names, self.marks = frozenset(names), marks

    def resume(self, transactions: int) -> None:
        raise OSError("no memory")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    made = Monitor()
    monkeypatch.setattr(tables, "listen", lambda: made)
    monkeypatch.setattr("ipvs_node_agent.iptables.table.NftMonitor", lambda *_: made)
    return made


def test_an_nft_table_tells_what_was_heard_until_it_is_read(
    printed: list[str], monitor: Monitor
) -> None:
    table = made(NFT)
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)
    table.save()
    assert (monitor.names, monitor.marks) == (frozenset({"OUTPUT"}), 0)
    assert both(table) == (Since.UNCHANGED, Since.UNCHANGED)
    monitor.told = None
    assert both(table) == (Since.CHANGED, Since.CHANGED)
    assert both(table) == (Since.CHANGED, Since.CHANGED)
    table.save()
    assert both(table) == (Since.UNCHANGED, Since.UNCHANGED)
    table.close()
    assert monitor.closed


def test_a_change_that_was_left_out_is_one_of_any_chain(
    printed: list[str], monitor: Monitor
) -> None:
    table = made(NFT)
    table.save()
    monitor.left_out = True
    assert table.changed() is Since.UNCHANGED
    told = table.told
    assert both(table) == (Since.UNCHANGED, Since.CHANGED)
    assert table.changed() is Since.CHANGED
    assert table.told != told
    assert table.reread() is None
    # What was left out before a look is in it.
    monitor.left_out = True
    table.save()
    assert both(table) == (Since.UNCHANGED, Since.UNCHANGED)


def test_what_is_left_out_during_a_look_is_not_in_it(
    printed: list[str], monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*what: object) -> str:
        monitor.left_out = True
        return saved_table(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "saved_table", reading)
    table = made(NFT)
    table.save()
    assert both(table) == (Since.UNCHANGED, Since.CHANGED)


def test_a_write_too_large_to_listen_to_is_looked_at(printed: list[str], monitor: Monitor) -> None:
    table = made(NFT)
    table.save()
    table.restore("#" * (1 << 20) + "#")
    assert both(table) == (Since.CHANGED, Since.CHANGED)


def test_who_cannot_listen_again_looks_and_then_knows_that_nobody_tells(
    printed: list[str], monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = made(NFT)
    table.save()
    table.resume(1)
    assert monitor.closed
    assert both(table) == (Since.CHANGED, Since.CHANGED)

    def listen() -> None:
        raise OSError("no netlink")

    monkeypatch.setattr(tables, "listen", listen)
    table.save()
    assert both(table) == (Since.UNKNOWN, Since.UNKNOWN)


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


CHAINS = (
    '-P OUTPUT ACCEPT\n-A OUTPUT -j A\n-A OUTPUT -m comment --comment "1\n-N B\n2" -j A\n'
    "-N IPVS_A\n-A IPVS_A -j RETURN\n-N IPVS_EMPTY\n"
)
THERE = {
    "OUTPUT": ("-j A", '-m comment --comment "1\n-N B\n2" -j A'),
    "IPVS_A": ("-j RETURN",),
    "IPVS_EMPTY": (),
}


@pytest.mark.parametrize(
    ("told", "prints", "there"),
    [
        (frozenset({*THERE, "GONE"}), CHAINS, {**THERE, "GONE": None}),
        (frozenset({"GONE"}), "", {"GONE": None}),
        (None, CHAINS, None),
        # It is a command's word, and one who is told to print more or less is not believed.
        (frozenset({"OUTPUT", "IPVS_A"}), CHAINS, None),
        (frozenset({"OUTPUT", "IPVS_A"}), "-P OUTPUT ACCEPT\n", None),
    ],
)
def test_chains_that_were_told_to_be_others_are_read_alone(
    told: Touched,
    prints: str,
    there: Amendment | None,
    printed: list[str],
    monitor: Monitor,
) -> None:
    table = made(NFT)
    table.save()
    monitor.knows(THERE, 0)
    monitor.told = told
    assert table.changed() is Since.CHANGED
    printed[:] = [prints]
    assert table.reread() == there
    # Until that is gone by it is news.
    assert table.changed() is Since.CHANGED
    table.looked()
    assert table.changed() is Since.UNCHANGED


@pytest.mark.parametrize("name", ["IPVS_A- x", "IPVS_A-\n-F", 'IPVS_A-"', "IPVS_A-#", ""])
def test_a_chain_whose_name_is_more_than_a_word_is_put_into_no_input(
    name: str, printed: list[str], monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = made(NFT)
    table.save()
    monitor.knows([*THERE, name], 0)
    monitor.told = frozenset({"OUTPUT", name})
    table.changed()
    monkeypatch.setattr(command, "start", lambda *_: pytest.fail("asked for"))
    assert table.reread() is None


def test_what_is_told_in_several_words_is_read_together(
    printed: list[str], monitor: Monitor
) -> None:
    table, numbers = made(NFT), list[int]()
    table.save()
    monitor.knows(THERE, 0)
    for told in (["OUTPUT"], ["IPVS_A"], [], ["IPVS_EMPTY"]):
        monitor.told = frozenset(told)
        table.changed()
        numbers.append(table.told)
    assert len({*numbers}) == 3
    printed[:] = [CHAINS]
    assert table.reread() == THERE
    monitor.told = None
    table.changed()
    assert table.reread() is None


def test_the_rules_of_the_chain_that_marks_are_counted(
    printed: list[str], monitor: Monitor
) -> None:
    printed[:] = ["*nat\n:M - [0:0]\n:M-2 - [0:0]\n-A M -j A\n-A M-2 -j A\n-A M -j B\nCOMMIT\n"]
    KernelTable(Launcher({}), IPV4, NFT, IptablesOptions(), mark="M").save()
    assert monitor.marks == 2
