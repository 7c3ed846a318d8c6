"""What `status` tells: out of the agent, and as JSON there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model import events
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.observe import status
from ipvs_node_agent.observe.counters import Count
from ipvs_node_agent.observe.status import (
    FamilyReport,
    Happened,
    Report,
    ServiceReport,
    as_json,
    from_json,
)
from ipvs_node_agent.sync.state import Published
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    CLUSTER_6,
    EXTERNAL_4,
    EXTERNAL_6,
    Node,
    other,
    running,
    web,
)
from tests.support.reports import WHOLE


def told(node: Node, **sums: Count) -> Report:
    """The report of the agent on `node`, whose clock is 1000 s behind the one on the wall."""
    published = Published(
        node.clock.now, sentence=node.agent.sentence(), agent=node.agent.state(), backend="nft"
    )
    paths = {("default/web", path): count for path, count in sums.items()}
    return status.report(published, node.agent.view(), paths, lambda moment: moment + 1000)


# 1. Out of the agent


def test_each_service_with_rules_is_told_with_its_ips_and_packets() -> None:
    node = running(web(EXTERNAL_6, EXTERNAL_4), other())
    made = told(node, pod=Count(3, 180), host=Count(5, 300))
    assert made.services == (
        ServiceReport("default", "other", ("10.19.22.57",), ("10.231.2.62",)),
        ServiceReport(
            "default",
            "web",
            (EXTERNAL_4, EXTERNAL_6),
            (CLUSTER_4, CLUSTER_6),
            Count(3, 180),
            Count(5, 300),
        ),
    )
    assert made.families == (FamilyReport("IPv4", 2, 8, 2), FamilyReport("IPv6", 1, 4, 2))
    assert (made.node, made.backend) == ("worker-1", "nft")


def test_what_is_refused_is_told_and_not_among_the_services() -> None:
    made = told(running(web("127.0.0.1")))
    assert not made.services
    assert [problem.reason for problem in made.refused] == ["Loopback"]


@pytest.mark.parametrize(
    ("error", "state"), [(None, status.IN_SYNC), (BUSY, status.NOT_IN_SYNC)], ids=["well", "busy"]
)
def test_a_state_is_since_the_change_that_made_it(error: TableError | None, state: str) -> None:
    node = running(web(EXTERNAL_4))
    node.pass_time(100)
    node.tables[IPV4].broken = error
    node.put(other())
    changed = node.clock.now
    node.pass_time(100)
    made = told(node)
    assert made.state == state
    assert made.since == pytest.approx(changed + 1000, abs=0.2)


def test_the_last_error_is_told_also_when_it_is_over() -> None:
    node = running(web(EXTERNAL_4))
    node.tables[IPV4].broken = BUSY
    node.put(other())
    node.tick()
    error = Happened(node.clock.now + 1000, f"IPv4: {BUSY}")
    assert told(node).last_error == error
    node.tables[IPV4].broken = None
    node.pass_time(30)
    assert (told(node).state, told(node).last_error) == (status.IN_SYNC, error)


def test_an_agent_that_knows_nothing_yet_is_not_in_sync() -> None:
    made = told(Node())
    assert made.state == status.NOT_IN_SYNC
    assert made.sentence.startswith("Waiting: ")
    assert (made.services, made.last_error) == ((), None)


def test_an_agent_that_does_not_answer_is_told_by_its_last_sentence() -> None:
    published = Published(500.0, sentence="In sync; ...", backend="nft")
    made = status.report(published, None, {}, lambda moment: moment + 1000)
    assert (made.state, made.sentence, made.since) == (status.HANGING, "In sync; ...", 1500.0)


def test_who_cannot_be_followed_is_told_of_as_of_the_first_trouble() -> None:
    node = running(web(EXTERNAL_4))
    assert told(node).lost_since is None
    lost = node.clock.now
    for resource in (events.SERVICES, events.NODES):
        node.agent.take(events.Trouble(resource, RefusedError("API server", "is away"), away=True))
        node.pass_time(100)
    made = told(node)
    assert (made.state, made.lost_since) == (status.IN_SYNC, lost + 1000)
    assert [made.is_good(lost + 1000 + after) for after in (0, 59, 60)] == [True, True, False]
    node.agent.take(events.Recovered(events.SERVICES))
    assert told(node).lost_since == lost + 1000
    node.agent.take(events.Recovered(events.NODES))
    assert told(node).lost_since is None


def test_the_last_repair_is_told() -> None:
    node = running(web(EXTERNAL_4))
    assert told(node).last_repair is None
    node.tables[IPV4].meddle("-F IPVS_OUTPUT")
    node.pass_time(3)
    repair = told(node).last_repair
    assert repair is not None
    assert repair.text == "IPv4: a chain was empty"
    assert repair.time == pytest.approx(node.clock.now + 1000, abs=3)


# 2. JSON


def test_the_json_has_these_keys() -> None:
    raw = json.loads(as_json(WHOLE))
    assert raw == {
        "state": "InSync",
        "inSync": True,
        "following": True,
        "notFollowingSince": None,
        "lastContact": "2025-11-25T12:00:01Z",
        "since": "2025-11-25T12:00:00Z",
        "sentence": WHOLE.sentence,
        "version": "0.1.0",
        "node": "worker-1",
        "backend": "nft",
        "lastError": {"time": "2025-11-25T10:00:00Z", "text": "IPv4: iptables-nft-restore: busy"},
        "lastRepair": {
            "time": "2025-11-25T11:00:00Z",
            "text": "IPv4: a jump was gone, by x (7)",
        },
        "families": [
            {
                "ipFamily": "IPv4",
                "services": 2,
                "rules": 8,
                "chains": 2,
                "inFront": [{"chain": "PREROUTING", "target": "THEIRS"}],
            },
            {"ipFamily": "IPv6", "services": 1, "rules": 4, "chains": 2, "inFront": []},
        ],
        "services": [
            {
                "namespace": "default",
                "name": "other",
                "externalIPs": ["10.19.22.57"],
                "clusterIPs": ["10.231.2.62"],
                "packets": {"pod": 0, "host": 0},
                "bytes": {"pod": 0, "host": 0},
            },
            {
                "namespace": "default",
                "name": "web",
                "externalIPs": [EXTERNAL_4, EXTERNAL_6],
                "clusterIPs": [CLUSTER_4, CLUSTER_6],
                "packets": {"pod": 3, "host": 12345},
                "bytes": {"pod": 180, "host": 740700},
            },
        ],
        "refused": [
            {
                "service": "default/bad",
                "reason": "Loopback",
                "text": "127.0.0.1 is refused: it is a loopback address",
            }
        ],
        "pods": {
            "knownBy": "pod CIDR: 10.240.2.128/25",
            "uncovered": [{"pod": "default/a", "ip": "10.9.0.5", "interface": "veth1"}],
            "remedy": "podInterfaces: [veth+]",
        },
        "lingering": ["10.19.0.9"],
    }


@pytest.mark.parametrize(
    "made", [WHOLE, replace(WHOLE, lost_since=1_764_072_100.0), Report(status.NOT_RUNNING, "why")]
)
def test_a_report_comes_back_from_json_as_it_was(made: Report) -> None:
    assert from_json(as_json(made)) == made


def test_an_earlier_versions_agent_is_understood() -> None:
    raw = json.loads(as_json(WHOLE))
    for key in ("following", "notFollowingSince", "lastContact", "lastRepair", "lingering"):
        del raw[key]
    earlier = replace(WHOLE, contact=None, last_repair=None, lingering=frozenset())
    assert from_json(json.dumps(raw)) == earlier


@pytest.mark.parametrize(
    ("made", "following"),
    [
        (WHOLE, True),
        (replace(WHOLE, state=status.NOT_IN_SYNC), True),
        (replace(WHOLE, lost_since=1_764_072_100.0), False),
        (replace(WHOLE, state=status.HANGING), False),
        (Report(status.NOT_RUNNING, "why"), False),
    ],
)
def test_whether_the_api_server_is_followed_stands_beside_in_sync(
    made: Report, following: bool
) -> None:
    assert json.loads(as_json(made))["following"] is following


def test_keys_that_a_later_version_adds_do_no_harm() -> None:
    raw = json.loads(as_json(WHOLE))
    raw["more"] = raw["services"][0]["more"] = raw["refused"][0]["more"] = [1]
    assert from_json(json.dumps(raw)) == WHOLE


def mangled(change: dict[str, Any]) -> str:
    return json.dumps({**json.loads(as_json(WHOLE)), **change})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        "[" * 100_000,
        mangled({"state": "Sleeping"}),
        mangled({"state": 3}),
        mangled({"since": "yesterday"}),
        mangled({"since": 3}),
        mangled({"services": {}}),
        mangled({"services": [3]}),
        mangled({"families": [{"ipFamily": "IPv4", "services": "2", "rules": 8, "chains": 2}]}),
        mangled({"refused": [{"service": "x", "reason": "y"}]}),
        mangled({"pods": {"knownBy": "x", "uncovered": [{"pod": "x"}], "remedy": ""}}),
        mangled({"lastError": "x"}),
    ],
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_json(text)
