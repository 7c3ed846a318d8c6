"""What others do to the table: when it is undone, what is said of it, and how often."""

from __future__ import annotations

import pytest

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.model.events import NODES, SERVICES, Trouble
from ipvs_node_agent.nat.ruleset import DRIFT, Change
from ipvs_node_agent.sync.repairs import Repairs
from tests.support.agentnode import EXTERNAL_4, OTHER, WEB_4, Log, other, running, web


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("-F IPVS_OUTPUT", "a chain was empty"),
        ("-F PREROUTING\n-F OUTPUT", "a jump was gone"),
        ("-D OUTPUT -j IPVS_OUTPUT", "a jump was gone"),
        ("-I OUTPUT 1 -j IPVS_OUTPUT", "a jump was duplicated"),
        ("-A OUTPUT -j IPVS_OUTPUT", "a jump was duplicated"),
        ("-I OUTPUT 1 -j KUBE-POSTROUTING", "a jump was not the first rule"),
        ("-A IPVS_PREROUTING -j RETURN", "a chain's rules were different"),
        (":IPVS_OUTPUT-stray - [0:0]", "there was an extra chain"),
        (
            "-D OUTPUT -j IPVS_OUTPUT\n-F IPVS_OUTPUT\n-X IPVS_OUTPUT",
            "a chain was gone and a jump was gone",
        ),
    ],
)
def test_drift_is_repaired_at_the_next_check_and_said_with_the_reason(
    lines: str, reason: str, log: Log
) -> None:
    made = running(web(EXTERNAL_4))
    wanted = made.rules(IPV4)
    made.tables[IPV4].meddle(lines)
    made.pass_time(2.1)
    assert made.rules(IPV4) == wanted
    jumps = [line for line in made.tables[IPV4].lines if line.startswith("-A OUTPUT")]
    assert jumps[0] == "-A OUTPUT -j IPVS_OUTPUT"
    assert made.restores == {IPV4: 2, IPV6: 1}
    assert len(log.said(f"IPv4: repaired .* ms: {reason} \\(")) == 1
    repairs = made.agent.state().repairs
    assert repairs == {key: int(words in reason) for key, words in DRIFT.items()}
    assert made.agent.in_sync


def test_what_is_no_drift_is_no_repair(log: Log) -> None:
    made = running(web(EXTERNAL_4))
    log.clear()
    made.pass_time(100)
    assert not log.said()
    assert made.restores == {IPV4: 1, IPV6: 1}
    made.put(other())
    made.pass_time(600)
    made.delete("web")
    made.pass_time(600)
    assert not log.said("repaired")


def test_a_change_after_unseen_drift_still_ends_in_the_wanted_rules() -> None:
    made = running(web(EXTERNAL_4))
    made.tables[IPV4].meddle("-F PREROUTING", "-F IPVS_PREROUTING", "-X IPVS_PREROUTING")
    made.put(other())
    made.pass_time(2.1)
    made.holds(WEB_4, OTHER)


def test_drift_is_repaired_during_an_outage_too() -> None:
    made = running(web(EXTERNAL_4))
    for resource in (SERVICES, NODES):
        made.agent.take(Trouble(resource, RefusedError("API server", "is away")))
    made.pass_time(3600)
    made.tables[IPV4].meddle("-F IPVS_OUTPUT")
    made.pass_time(2.1)
    made.holds(WEB_4)


def test_who_fights_with_us_is_said_to_do_so_once(log: Log) -> None:
    made = running(web(EXTERNAL_4))
    before = made.tables[IPV4].restores
    for _ in range(600):
        made.tables[IPV4]._chains["OUTPUT"] = []
        made.pass_time(0.1)
    assert len(log.said("repaired")) == 1
    # One write of ours each two seconds.
    assert 25 <= made.tables[IPV4].restores - before <= 35
    made.pass_time(100)
    made.tables[IPV4]._chains["OUTPUT"] = []
    made.pass_time(3)
    assert len(log.said("repaired")) == 2


FLUSHED = Change({"IPVS_OUTPUT": ()}, repairs=("ChainFlushed",))


def test_the_like_is_counted_and_said_again_after_a_minute() -> None:
    repairs = Repairs()
    fresh = [repairs.note(FLUSHED, 0.1, now) for now in (0, 59, 118, 179)]
    assert fresh == [True, False, False, True]
    assert repairs.note(Change({"IPVS_OUTPUT": ()}), 0.1, 180)
    assert repairs.counts == {"ChainFlushed": 4}


@pytest.mark.parametrize(
    ("change", "times", "seconds", "rest"),
    [
        pytest.param(FLUSHED, 5, 10, 0, id="not often enough to be a fight"),
        pytest.param(FLUSHED, 6, 0.02, 0.5, id="a fight"),
        pytest.param(FLUSHED, 6, 1, 5, id="a fight that takes long"),
        pytest.param(Change(), 5, 10, 0, id="a few looks for nothing"),
        pytest.param(Change(), 6, 0.05, 1, id="looks for nothing"),
        pytest.param(Change(), 6, 10, 2, id="looks for nothing that take long"),
        pytest.param(Change({"IPVS_OUTPUT": ()}), 9, 10, 0, id="nobody in the way"),
    ],
)
def test_who_is_in_the_way_is_given_a_share_of_the_time(
    change: Change, times: int, seconds: float, rest: float
) -> None:
    repairs = Repairs()
    for _ in range(times):
        repairs.note(change, seconds, now=100)
    assert repairs.rest_until == (100 + rest if rest else 0)
