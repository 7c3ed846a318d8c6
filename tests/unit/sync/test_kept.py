"""A table that is kept as wanted, whatever it is wanted for; `test_family` has the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.sync.kept import KeptTable
from ipvs_node_agent.sync.state import Meter
from tests.support.agentnode import BUSY, Log, Table
from tests.support.clock import Clock

LOCKED = TableError("iptables-restore", "busy", locked=True)
HUNG = TableError("iptables-restore", "hung", hung=True)
WANTED = Ruleset({"OURS": ("-j RETURN",)}, {"INPUT": "OURS"}, table="filter")
NOTHING = Ruleset(table="filter")


class Kept(KeptTable):
    """One that wants what it is told to."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.clock, self.table = Clock(), Table("", "filter")
        programmer = Programmer(self.table, owner(frozenset({"OURS"})), "kept")
        super().__init__("kept", IPV4, programmer, self.clock, Meter())
        self.wanted = ruleset

    @property
    def ruleset(self) -> Ruleset:
        return self.wanted

    def _give_way(self, other: tuple[str, str]) -> None:
        self.wanted = replace(self.wanted, behind=self.wanted.behind | {other})

    @property
    def inputs(self) -> list[str]:
        """The rules of INPUT."""
        return [line for line in self.table.lines if line.startswith("-A INPUT ")]

    def pass_time(self, seconds: float) -> None:
        """Looks each second."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.sync(looking=True)


@pytest.mark.parametrize(
    ("wanted", "error", "fails"),
    [
        (WANTED, BUSY, True),
        # A kernel without the family, or a table that iptables cannot use.
        (NOTHING, BUSY, False),
        # They say nothing of what the table holds.
        (NOTHING, LOCKED, True),
        (NOTHING, HUNG, True),
    ],
)
def test_a_failure_counts_unless_nothing_is_wanted_or_ever_was_there(
    wanted: Ruleset, error: TableError, fails: bool
) -> None:
    kept = Kept(wanted)
    kept.table.broken = error
    kept.sync(looking=False)
    assert (kept.error is not None, kept.dirty, kept.state.failures) == (fails, fails, int(fails))


def test_what_is_told_of_a_table_that_cannot_be_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Table, "told_by", 7)
    kept = Kept(NOTHING)
    kept.table.broken = BUSY
    kept.sync(looking=False)
    # Nobody would take what is told, and the next wait would end at once.
    assert (kept.told_by, kept.due, kept.untold) == (None, math.inf, False)
    kept.table.broken = None
    kept.sync(looking=True)
    assert kept.told_by == 7


def test_a_look_at_everything_that_falls_into_a_rest_comes_behind_it() -> None:
    kept = Kept(WANTED)
    kept.sync(looking=False)
    kept.repairs.rest_until = end = kept.clock.now + 10
    kept.table.meddle("-F OURS")
    kept.programmer.resync()
    kept.sync(looking=True)
    assert kept.due == end
    kept.clock.now = end
    assert kept.due <= end
    kept.sync(looking=False)
    assert "-A OURS -j RETURN" in kept.table.lines


def test_what_was_there_and_is_to_go_is_tried_until_it_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, kept = Log(caplog), Kept(WANTED)
    kept.sync(looking=False)
    kept.wanted, kept.table.broken = NOTHING, BUSY
    kept.sync(looking=False)
    assert kept.dirty
    assert kept.due > kept.clock.now
    kept.table.broken = None
    kept.clock.now = kept.due
    kept.sync(looking=False)
    assert not kept.dirty
    assert "OURS" not in kept.table.save()
    assert log.said("kept: works again")


def test_somebody_who_comes_back_to_the_front_gets_the_place_and_keeps_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, kept = Log(caplog), Kept(WANTED)
    kept.sync(looking=False)
    kept.table.meddle(":THEIRS - [0:0]", "-I INPUT 1 -j THEIRS")
    for _ in range(9):
        kept.pass_time(1)
        if kept.inputs[0] != "-A INPUT -j THEIRS":
            kept.table.meddle("-D INPUT -j THEIRS", "-I INPUT 1 -j THEIRS")
    assert kept.inputs == ["-A INPUT -j THEIRS", "-A INPUT -j OURS"]
    assert kept.repairs.counts["JumpNotFirst"] == 3
    assert len(log.said("keeps returning to the front of INPUT")) == 1
