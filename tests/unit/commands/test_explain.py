"""`explain`: how it is shown; what is said is unit/explain's and kernel/test_explain's."""

from __future__ import annotations

import json
import re

import pytest

from ipvs_node_agent.commands import explain
from ipvs_node_agent.commands.explain import as_text
from ipvs_node_agent.explain.facts import SILENT, Facts
from ipvs_node_agent.explain.lines import (
    FAIL,
    NEUTRAL,
    OK,
    UNKNOWN,
    WARN,
    Explanation,
    Line,
    Verdict,
)
from ipvs_node_agent.explain.target import Target
from ipvs_node_agent.observe.status import HANGING, Report
from tests.support.commandline import Command
from tests.support.situations import SITUATIONS, Situation

LINES = tuple(Line(level, "a", f"b\n{level}") for level in (OK, WARN, FAIL, UNKNOWN, NEUTRAL))
HOSTILE = Explanation("x\x1b[2J", None, LINES, Verdict(False, "c\rd", "e\x07"))


def test_a_line_each_and_whatever_is_hostile_is_made_harmless() -> None:
    plain = (
        "ok    a: b\\nok\nwarn  a: b\\nwarn\nfail  a: b\\nfail\n?     a: b\\n?\n      a: b\\n\n"
        "x\\x1b[2J: c\\rd\n=> e\\x07\n"
    )
    assert as_text([HOSTILE]) == plain
    coloured = as_text([HOSTILE], colours=True)
    assert re.findall(r"\x1b\[(\d+)m", coloured) == [
        "32",
        "0",
        "33",
        "0",
        "31",
        "0",
        "33",
        "0",
        "31",
        "0",
    ]
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


def test_several_addresses_have_an_empty_line_between() -> None:
    assert as_text([HOSTILE, HOSTILE]).count("\n\n") == 1


CASES = [
    next(each for each in SITUATIONS if each.works is works and ":" not in each.asked)
    for works in (True, False, None)
]


@pytest.mark.parametrize(
    ("situation", "status"), list(zip(CASES, (0, 1, 3))), ids=lambda each: getattr(each, "name", "")
)
def test_the_exit_status_is_the_verdict(
    situation: Situation, status: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(config: object, asked: Target) -> Facts:
        return situation.facts

    monkeypatch.setattr(explain, "gathered", known)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    done = command("explain", situation.asked)
    assert done.status == status
    *_, verdict, mend = done.out.splitlines()
    assert situation.verdict in verdict
    assert mend.startswith("=> ")
    asked = command("explain", situation.asked, "-o", "json")
    assert asked.status == status
    assert json.loads(asked.out)["works"] is situation.works


def test_it_is_for_root(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    done = command("explain", "10.19.20.201")
    assert done.status == 3
    assert done.err == "ipvs-node-agent: explain: only root can read the kernel's tables (sudo)\n"


def test_an_agent_that_hangs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Report(HANGING, "In sync; ...")
    monkeypatch.setattr("ipvs_node_agent.observe.statussocket.ask", lambda _: hanging)
    assert explain._agent().state == SILENT
