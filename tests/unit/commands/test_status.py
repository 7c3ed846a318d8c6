"""`status`: the report as text for people, and what is printed when."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipvs_node_agent.commands.status import as_text
from ipvs_node_agent.observe import status
from ipvs_node_agent.observe.status import Report, as_json, from_json
from ipvs_node_agent.observe.statussocket import StatusSocket
from tests.support.commandline import Command
from tests.support.reports import NOON, WHOLE

TEXT = """\
In sync since 2025-11-25 12:00:00 UTC (5 min ago); node worker-1, iptables-nft
  IPv4: 2 Services, 8 rules in 2 chains
  IPv6: 1 Service, 4 rules in 2 chains
  pods are matched by pod CIDR: 10.240.2.128/25
  1 pod of this node has no rules: default/a at 10.9.0.5 by veth1 => podInterfaces: [veth+]
  1 refusal, see below
  last repair 2025-11-25 11:00:00 UTC (65 min ago): IPv4: a jump was gone, by x (7)
  last error 2025-11-25 10:00:00 UTC (2 h ago): IPv4: iptables-nft-restore: busy

SERVICE        EXTERNAL IP     CLUSTER IP       POD PKTS  BYTES  HOST PKTS  BYTES
default/other  10.19.22.57     10.231.2.62             0      0          0      0
default/web    10.19.20.201    10.231.42.164           3    180      12345   723K
               fd00:10:19::c9  fd00:10:231::a4

REFUSED
default/bad: 127.0.0.1 is refused: it is a loopback address (Loopback)
"""


# 1. Text


def test_the_text_is_a_headline_a_summary_and_tables_and_a_terminal_has_colours_too() -> None:
    assert as_text(WHOLE, NOON + 300) == TEXT
    shown = as_text(WHOLE, NOON + 300, colours=True)
    assert shown.startswith("\x1b[32mIn sync\x1b[0m since ")
    assert re.sub(r"\x1b\[(32|33|0)m", "", shown) == TEXT


CAPITALS = {
    status.NOT_IN_SYNC: "NOT IN SYNC",
    status.HANGING: "HANGING",
    status.NOT_RUNNING: "NOT RUNNING",
}


@pytest.mark.parametrize(("state", "shown"), CAPITALS.items())
def test_what_is_not_well_is_in_capitals_and_red(state: str, shown: str) -> None:
    made = replace(WHOLE, state=state)
    assert as_text(made, NOON).startswith(f"{shown} since ")
    assert as_text(made, NOON, colours=True).startswith(f"\x1b[31m{shown}\x1b[0m since ")


def test_a_table_that_is_too_wide_has_no_bytes() -> None:
    lines = as_text(WHOLE, NOON, width=80).splitlines()
    table = lines[lines.index("") + 1 : -3]
    assert table[0].split() == [
        "SERVICE",
        "EXTERNAL",
        "IP",
        "CLUSTER",
        "IP",
        "POD",
        "PKTS",
        "HOST",
        "PKTS",
    ]
    assert table[2].split() == ["default/web", "10.19.20.201", "10.231.42.164", "3", "12345"]


def test_a_table_fits_a_terminal_at_the_cost_of_names() -> None:
    name = "a-service-with-a-name-of-some-length"
    made = replace(WHOLE, services=(replace(WHOLE.services[0], name=name),))
    assert f"default/{name} " in as_text(made, NOON)
    lines = as_text(made, NOON, width=76).splitlines()
    table = lines[lines.index("") + 1 : -3]
    assert max(map(len, table)) == 76
    assert table[1].startswith("default/a-service-w")
    assert "...  10.19.22.57" in table[1]
    narrow = as_text(made, NOON, width=20)
    assert "default/a-ser...  10.19.22.57" in narrow


def test_without_services_there_is_no_table() -> None:
    made = replace(
        WHOLE, services=(), refused=(), last_error=None, last_repair=None, pods="", uncovered=()
    )
    assert as_text(made, NOON + 300) == "".join(TEXT.splitlines(keepends=True)[:3])


def test_an_agent_in_sync_that_follows_no_changes_says_so() -> None:
    sentence = f"{WHOLE.sentence}; not following changes: API server: gone"
    made = replace(WHOLE, sentence=sentence)
    assert as_text(made, NOON).splitlines()[1] == f"  {sentence}"
    assert f"\x1b[33m{sentence}\x1b[0m" in as_text(made, NOON, colours=True)


def test_the_headline_tells_what_is_known_where_nobody_can_be_followed() -> None:
    made = replace(WHOLE, lost_since=NOON + 60)
    for after, colour in ((59, 33), (60, 31)):
        shown = as_text(made, NOON + 60 + after, colours=True).splitlines()[0]
        assert shown == (
            f"\x1b[{colour}mIn sync with what was known at 2025-11-25 12:00:01 UTC"
            f" ({59 + after} s ago); the API server cannot be reached since"
            f" 2025-11-25 12:01:00 UTC ({after} s ago)\x1b[0m; node worker-1, iptables-nft"
        )


# A clock that went back makes nothing negative.
AGO = {
    -5: "0 s",
    0: "0 s",
    119: "119 s",
    120: "2 min",
    7199: "120 min",
    7200: "2 h",
    1e6: "12 days",
}


@pytest.mark.parametrize(("seconds", "shown"), AGO.items())
def test_times_are_told_as_one_would(seconds: float, shown: str) -> None:
    assert f"({shown} ago)" in as_text(WHOLE, NOON + seconds).splitlines()[0]


def test_nothing_told_can_steer_a_terminal() -> None:
    raw = {**json.loads(as_json(WHOLE)), "sentence": "\x1b[2J\nfake: line"}
    assert as_text(from_json(json.dumps(raw)), NOON).splitlines()[1] == r"  \x1b[2J\nfake: line"


# 2. The command


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "ipvs-node-agent"
    made.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(made))
    return made


@pytest.fixture
def told(directory: Path) -> Iterator[list[Report]]:
    """What the agent tells, the last of the list."""
    reports = [WHOLE]
    socket = StatusSocket(directory, lambda: reports[-1])
    socket.start()
    yield reports
    socket.stop()


def test_the_agents_report_is_printed(command: Command, told: list[Report]) -> None:
    result = command("status")
    assert (result.status, result.err) == (0, "")
    assert re.sub(r"\(\d+ days ago\)", "()", result.out) == re.sub(
        r"\(\d+ (min|h) ago\)", "()", TEXT
    )
    assert command("status", "-o", "json") == (0, as_json(WHOLE), "")


def test_an_agent_that_is_not_in_sync_gives_status_1(command: Command, told: list[Report]) -> None:
    told.append(replace(WHOLE, state=status.NOT_IN_SYNC))
    assert [command("status").status, command("status", "-o", "json").status] == [1, 1]


def test_who_cannot_be_followed_for_a_minute_gives_status_1(
    command: Command, told: list[Report]
) -> None:
    now = time.time()
    for lost, exit_status in ((now - 50, 0), (now - 70, 1)):
        told.append(replace(WHOLE, lost_since=lost, contact=lost))
        assert command("status").status == command("status", "-o", "json").status == exit_status


NAMED = {
    ("default/web",): (["web"], [], ""),
    ("web", "default/other"): (["other", "web"], [], ""),
    ("bad",): ([], ["default/bad"], ""),
    ("we",): ([], [], "we"),
    ("other/web", "web"): (["web"], [], "other/web"),
    ("\x1b[2J",): ([], [], r"\x1b[2J"),
}


@pytest.mark.parametrize("names", NAMED)
def test_services_that_are_named_are_shown_alone(
    names: tuple[str, ...], command: Command, told: list[Report]
) -> None:
    shown, refused, missing = NAMED[names]
    result = command("status", "-o", "json", *names)
    raw = json.loads(result.out)
    assert [each["name"] for each in raw["services"]] == shown
    assert [each["service"] for each in raw["refused"]] == refused
    said = f"ipvs-node-agent: no Service {missing} has rules here or is refused\n"
    assert (result.status, result.err) == ((1, said) if missing else (0, ""))


def test_without_an_agent_machines_get_an_answer_all_the_same(
    command: Command, directory: Path
) -> None:
    complaint = "ipvs-node-agent: status: the agent is not running"
    for arguments, out in (
        ((), ""),
        (("-o", "json"), as_json(Report(status.NOT_RUNNING, "the agent is not running"))),
    ):
        result = command("status", *arguments)
        assert (result.status, result.out) == (1, out)
        assert result.err.startswith(complaint)
