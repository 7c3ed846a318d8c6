"""When a table is read, and when it is believed to be what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import pytest

from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import How, Knowledge, Made, Programmer, Writes
from ipvs_node_agent.nat.amended import Amendment
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Change, Found, Ruleset, difference
from ipvs_node_agent.nat.ruletext import Rules
from tests.support.faketable import FakeTable

WANTED = Ruleset({"IPVS_OUTPUT": ("-j RETURN",)}, {"OUTPUT": "IPVS_OUTPUT"})
OTHER = Ruleset({"IPVS_OUTPUT": ("-j ACCEPT",)}, {"OUTPUT": "IPVS_OUTPUT"})


class Table(FakeTable):
    """A table that says what it is told to, has counters that run, and counts its readers."""

    def __init__(self) -> None:
        super().__init__()
        self.says = self.says_closely = Since.UNKNOWN
        self.saves = self.failed = 0
        # What each restore ends with, and what is said after it.
        self.failure: TableError | None = None
        self.then_says = Since.UNCHANGED
        self.listens: int | None = None

    @property
    def told_by(self) -> int | None:
        return self.listens

    def save(self) -> str:
        self.saves += 1
        text = super().save().replace("ACCEPT [0:0]", f"ACCEPT [{self.saves}:{60 * self.saves}]")
        return text.replace("FakeTable", f"FakeTable for the {self.saves}. time")

    def changed(self, closely: bool = False) -> Since:
        return self.says_closely if closely else self.says

    def restore(self, text: str) -> None:
        if self.failure is not None:
            self.failed += 1
            self.says = self.then_says
            raise self.failure
        super().restore(text)


@pytest.fixture
def table() -> Table:
    return Table()


def programming(table: FakeTable, writes: Writes | None = None) -> Programmer:
    return Programmer(table, owner(frozenset({"IPVS_OUTPUT"})), writes=writes)


@pytest.fixture
def programmer(table: Table) -> Programmer:
    made = programming(table)
    made.apply(WANTED)
    made.check(WANTED)
    table.saves = 0
    return made


def meddle(table: Table) -> None:
    table.restore("*nat\n-F IPVS_OUTPUT\nCOMMIT\n")


@pytest.mark.parametrize(
    ("says", "closely", "reads"),
    [
        (Since.UNCHANGED, Since.UNKNOWN, 0),
        (Since.CHANGED, Since.UNKNOWN, 1),
        (Since.UNKNOWN, Since.UNKNOWN, 1),
        (Since.UNKNOWN, Since.UNCHANGED, 0),
    ],
)
def test_a_table_is_read_where_somebody_may_have_touched_it(
    programmer: Programmer, table: Table, says: Since, closely: Since, reads: int
) -> None:
    table.says, table.says_closely = says, closely
    assert not programmer.check(WANTED)
    assert table.saves == reads
    # Who is told costs nothing.
    assert (programmer.check_seconds > 0) == (says is Since.UNKNOWN)


@pytest.mark.parametrize("says", [Since.CHANGED, Since.UNKNOWN])
def test_what_others_did_is_mended(programmer: Programmer, table: Table, says: Since) -> None:
    table.says = says
    meddle(table)
    assert programmer.check(WANTED).written == WANTED.chains


def test_a_text_from_before_our_own_write_is_not_gone_by(
    programmer: Programmer, table: Table
) -> None:
    before = table.save()
    programmer.apply(OTHER)
    table.restore("*nat\n:IPVS_OUTPUT - [0:0]\n-A IPVS_OUTPUT -j RETURN\nCOMMIT\n")
    assert table.save().partition("-A")[2] == before.partition("-A")[2]
    assert programmer.check(OTHER).written == OTHER.chains


def test_a_resync_reads_the_table_whatever_it_says(programmer: Programmer, table: Table) -> None:
    table.says = Since.UNCHANGED
    meddle(table)
    assert not programmer.check(WANTED)
    programmer.resync()
    assert programmer.check(WANTED).written == WANTED.chains


def test_a_proof_that_fails_has_the_table_read(programmer: Programmer, table: Table) -> None:
    asked: list[bool] = []

    def changed(closely: bool = False) -> Since:
        asked.append(closely)
        table.says = table.says_closely if closely else table.says
        return table.says

    table.says = table.says_closely = Since.UNCHANGED
    table.changed = changed  # type: ignore[method-assign]
    # Who is not told looks closely anyway.
    programmer.prove()
    assert not asked
    table.listens = 7
    programmer.prove()
    assert asked == [True]
    meddle(table)
    assert not programmer.check(WANTED)
    table.says_closely = Since.CHANGED
    programmer.prove()
    assert programmer.check(WANTED).written == WANTED.chains


@pytest.mark.parametrize(("locked", "restores"), [(True, 1), (False, 2)])
def test_a_lock_is_waited_for_once_and_what_else_fails_is_looked_at(
    programmer: Programmer, table: Table, locked: bool, restores: int
) -> None:
    table.says = Since.UNCHANGED
    table.failure = TableError("iptables-restore", "failed", locked=locked)
    with pytest.raises(TableError):
        programmer.apply(OTHER)
    assert table.failed == restores


class Contested(Table):
    """Others change it `times` times, each between a look and the write that follows."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def restore(self, text: str) -> None:
        self.says = Since.CHANGED if self.times > 0 else Since.UNCHANGED
        if self.times > 0:
            self.times -= 1
            super().restore(f"*nat\n:THEIRS-{self.times} - [0:0]\nCOMMIT\n")
            raise TableError("iptables-restore", "Chain 'IPVS_OUTPUT' does not exist")
        super().restore(text)


def test_who_is_overtaken_between_look_and_write_looks_and_writes_again_but_not_for_ever() -> None:
    table = Contested(3)
    assert programming(table).apply(WANTED).written == WANTED.chains
    assert "-A IPVS_OUTPUT -j RETURN" in table.save()
    table = Contested(1_000)
    with pytest.raises(TableError, match="does not exist"):
        programming(table).apply(WANTED)
    assert table.times == 1_000 - 4


@pytest.mark.parametrize("says", Since)
def test_what_fails_although_nobody_changed_anything_is_not_tried_again(
    table: Table, says: Since
) -> None:
    table.failure, table.then_says = TableError("iptables-restore", "failed"), says
    programmer = programming(table)
    for times in (1, 2):
        with pytest.raises(TableError):
            programmer.apply(WANTED)
        assert table.failed == times
        # Read before the write, and after it, as somebody may have changed the table.
        assert table.saves == times * 2
        # Who has read it is told of nothing older.
        table.says = Since.UNKNOWN if says is Since.UNKNOWN else Since.UNCHANGED


def test_writes_are_numbered_on_by_the_next_programmer_of_the_table() -> None:
    table, writes = Table(), Writes()
    for wanted, number in ((WANTED, 1), (OTHER, 2)):
        programming(table, writes).apply(wanted)
        assert writes.made() == {"IPVS_OUTPUT": Made(number)}


def test_writes_are_numbered_by_chain() -> None:
    writes = Writes()
    with writes.under_way(Change({"A": (), "B": ()})):
        assert not writes.done(0)
    assert writes.done(0)
    with writes.under_way(Change({"B": (), "C": ()})):
        pass
    with suppress(ValueError), writes.under_way(Change({"A": (), "B": ()})):
        raise ValueError
    with writes.under_way(Change(dropped=("C",))):
        pass
    assert writes.made() == {"A": Made(1), "B": Made(2)}


def served(*names: str, ip: int = 1, moved: str = "") -> Rules:
    """The rules of these Services; those of the last one and `moved` lead to this ClusterIP."""
    return tuple(
        f'-d 10.19.0.1/32 -m comment --comment "default/{name}"'
        f" -j DNAT --to-destination 10.231.0.{ip if name in (names[-1], *moved) else 1}"
        for name in names
    )


def test_of_an_edited_chain_the_services_are_numbered_whose_rules_are_written() -> None:
    writes, there = Writes(), dict[str, Rules]()

    def write(*names: str, ip: int = 1, moved: str = "", fails: bool = False) -> Mapping[str, Made]:
        wanted = Ruleset({"A": served(*names, ip=ip, moved=moved)})
        change = difference(Found(there), wanted).edited()
        with suppress(ValueError), writes.under_way(change):
            if fails:
                raise ValueError
            there["A"] = change.written["A"]
        return writes.made()

    assert write(*"abcdef") == {"A": Made(1)}
    assert write(*"abcdef", ip=2) == {"A": Made(1, {"default/f": 2})}
    assert write(*"abcdefg", fails=True) == {"A": Made(1, {"default/f": 2})}
    assert write(*"abcdefg") == {"A": Made(1, {"default/f": 3, "default/g": 3})}
    # Who is gone is forgotten.
    assert write(*"abcdef") == {"A": Made(1, {"default/f": 3})}
    # Who stays where it is between two others counts on.
    assert write(*"abcdef", ip=2, moved="d") == {"A": Made(1, {"default/d": 5, "default/f": 5})}
    assert write(*"uvwxyz") == {"A": Made(6)}


class Telling(Table):
    """A table of whose changes one is told, and what was given to it."""

    told_by = 7

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[str] = []
        # What to fail with where rules are put right one by one.
        self.failing: TableError | None = None

    def restore(self, text: str) -> None:
        self.inputs.append(text)
        if self.failing is not None and "\n:" not in text:
            raise self.failing
        super().restore(text)


THREE, FOUR = (Ruleset({"IPVS_OUTPUT": served(*names)}, WANTED.jumps) for names in ("abc", "abcd"))


@pytest.fixture
def telling() -> Telling:
    table = Telling()
    table.says = Since.UNCHANGED
    return table


def test_where_a_table_tells_of_changes_the_rules_that_are_right_stay(telling: Telling) -> None:
    programmer = programming(telling)
    for wanted in (THREE, FOUR, THREE):
        programmer.apply(wanted)
        assert telling.copy()["IPVS_OUTPUT"] == [*wanted.chains["IPVS_OUTPUT"]]
    assert ["\n:IPVS_OUTPUT" in text for text in telling.inputs] == [True, False, False]
    assert telling.saves == 1


def test_where_it_does_not_tell_a_chain_is_written_anew(table: Table) -> None:
    table.says = Since.UNCHANGED
    programmer = programming(table)
    for wanted in (THREE, FOUR):
        programmer.apply(wanted)
        assert "\n:IPVS_OUTPUT" in table.last_input


def test_where_the_rules_are_not_in_their_places_the_chain_is_read_and_written_anew(
    telling: Telling,
) -> None:
    programmer = programming(telling)
    programmer.apply(THREE)
    telling.failing = TableError("iptables-restore", "no", by_content=True)
    programmer.apply(FOUR)
    assert telling.copy()["IPVS_OUTPUT"] == [*FOUR.chains["IPVS_OUTPUT"]]
    assert ["\n:IPVS_OUTPUT" in text for text in telling.inputs] == [True, False, True]


def test_what_is_known_of_a_table_follows_from_what_happens_to_it() -> None:
    before, now = Found({"A": ("-j B",)}), Found({"A": ()})
    wanted = Ruleset(before.chains)
    known = Knowledge().read(before, wanted, ("a", "b"))
    assert known == Knowledge(before, How.READ)
    assert known.certain is before
    uncertain = known.uncertain()
    assert uncertain.certain is None
    drifted = uncertain.read(now, wanted, ("a", "b"))
    assert drifted == Knowledge(now, How.READ, ("ChainFlushed",), ("a", "b"))
    twice = drifted.read(before, wanted, ("b", "c"))
    assert (twice.drift, twice.by) == (("ChainFlushed", "ChainChanged"), ("a", "b", "c"))
    # Whoever changes what makes no difference did no harm.
    assert drifted.read(now, wanted, ("d",)).by == ("a", "b")
    assert known.written(now) == Knowledge(now, How.WRITTEN)
    # Of what nobody knows nobody can tell what others did to it.
    assert Knowledge().read(now, wanted, ("a",)).drift == ()


@pytest.mark.parametrize(("name", "watched"), [("nat", {"cali-X", "cali-Y"}), ("filter", set())])
def test_what_stands_before_ours_is_watched_where_it_is_judged(
    name: str, watched: set[str]
) -> None:
    chains = [f":cali-{each} - [0:0]" for each in "XYZ"]
    rules = ["-A OUTPUT -j cali-X", "-A cali-X -j cali-Y"]
    table = FakeTable("\n".join([f"*{name}", *chains, *rules, "COMMIT"]), name)
    programming(table).read(Ruleset(table=name))
    assert table.watched == watched


class Told(Table):
    """A table that tells of the chain that others changed, and whose partial reading may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.says = Since.UNCHANGED
        self.rereads = 0
        # What a partial reading comes to: it works, tells nothing, or fails so.
        self.then: TableError | bool = True

    def meddle(self, line: str) -> None:
        FakeTable.restore(self, f"*nat\n{line}\nCOMMIT\n")
        self.says = Since.CHANGED

    def reread(self) -> Amendment | None:
        self.rereads += 1
        if isinstance(self.then, TableError):
            raise self.then
        there = self.copy()
        return (
            {name: tuple(there[name]) for name in ("IPVS_OUTPUT", "OUTPUT")} if self.then else None
        )

    def looked(self) -> None:
        self.says = Since.UNCHANGED

    def save(self) -> str:
        self.says = Since.UNCHANGED
        return super().save()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.mark.parametrize("line", ["-F IPVS_OUTPUT", "-D OUTPUT -j IPVS_OUTPUT"])
@pytest.mark.parametrize(
    ("then", "saves"),
    [
        (True, 1),
        (False, 2),
        (TableError("iptables-restore", "no such chain"), 2),
    ],
    ids=["enough", "not enough", "failing"],
)
def test_what_others_changed_is_read_alone_where_that_is_enough(
    line: str, then: TableError | bool, saves: int, told: Told
) -> None:
    programmer = programming(told)
    programmer.apply(WANTED)
    told.meddle(line)
    told.then = then
    change = programmer.apply(WANTED)
    assert change
    assert change.repairs
    assert (told.rereads, told.saves) == (1, saves)
    assert "-A OUTPUT -j IPVS_OUTPUT\n-A IPVS_OUTPUT -j RETURN" in told.save()
    assert not programmer.apply(WANTED)


def test_a_partial_reading_that_hangs_is_not_followed_by_another_one(told: Told) -> None:
    programmer = programming(told)
    programmer.apply(WANTED)
    told.meddle("-F IPVS_OUTPUT")
    told.then = TableError("iptables-restore", "hangs", hung=True)
    with pytest.raises(TableError):
        programmer.apply(WANTED)
    assert told.saves == 1
    # And what was believed before is believed no more.
    assert programmer.apply(WANTED).written
    assert told.saves == 2


def test_others_are_waited_for_until_they_are_done(told: Told) -> None:
    programmer = programming(told)
    programmer.apply(WANTED)
    assert programmer.drift_due(5.0) == math.inf
    told.meddle("-F IPVS_OUTPUT")
    for now in (5.0, 5.01):
        assert programmer.drift_due(now) == pytest.approx(5.03)
    programmer.apply(WANTED)
    assert programmer.drift_due(5.5) == math.inf
    told.meddle("-F IPVS_OUTPUT")
    assert programmer.drift_due(6.0) == pytest.approx(6.03)


def test_a_repair_writes_the_whole_chain(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has just changed it may do so again, and then numbers are wrong."""
    monkeypatch.setattr(Told, "told_by", 7)
    programmer = programming(told)
    programmer.apply(FOUR)
    told.meddle("-D IPVS_OUTPUT 1")
    assert programmer.apply(FOUR).repairs == ("ChainChanged",)
    assert "\n:IPVS_OUTPUT" in told.last_input
