"""Events on the Node: what is told, when, and in which form."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Problem, UncoveredPod
from ipvs_node_agent.observe import nodeevents
from ipvs_node_agent.observe.nodeevents import (
    NOT_NEEDED,
    PROGRAMMING_FAILED,
    REFUSED,
    UNCOVERED,
    Condition,
    EventRecorder,
    Schedule,
    conditions,
    event,
)
from ipvs_node_agent.rules.coverage import Coverage
from ipvs_node_agent.sync.state import AgentState, Published
from tests.support.apiserver import ApiServer
from tests.support.clock import Clock
from tests.support.pki import plain_kubeconfig

NOW = 1000.0
WELL = Published(NOW, ready=True, sentence="In sync; Services with rules: 1 in IPv4")
BAD = Problem("default/bad", "Loopback", "127.0.0.1 is refused: it is a loopback address")

STRAY = UncoveredPod("default/a", parse_address("10.9.0.5"), "cni0")


def having(**known: object) -> Published:
    return replace(WELL, agent=AgentState(**known))  # type: ignore[arg-type]


def told(published: Published) -> dict[str, str]:
    return {condition.reason: condition.message for condition in conditions(published, NOW)}


# What there is to tell


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (WELL, {}),
        (having(waiting_since=NOW - 60), {}),
        (
            having(waiting_since=NOW - 61),
            {PROGRAMMING_FAILED: f"no change reaches the kernel: {WELL.sentence}"},
        ),
        (
            having(proxy_mode="nftables"),
            {NOT_NEEDED: "kube-proxy is in nftables mode, which does not need ipvs-node-agent"},
        ),
        (having(refusals=frozenset({BAD})), {REFUSED: str(BAD)}),
        (
            having(uncovered=(STRAY,), coverage=Coverage(("cali+",), ())),
            {
                UNCOVERED: "1 pod of this node has no rules: default/a at 10.9.0.5 by cni0;"
                " set podInterfaces: [cali+, cni0]"
            },
        ),
    ],
    ids=["well", "a minute", "stuck", "another mode", "refused", "uncovered"],
)
def test_what_an_operator_should_know_is_told(
    published: Published, expected: dict[str, str]
) -> None:
    assert told(published) == expected


def test_of_many_refusals_the_first_are_told_and_the_number_of_the_others() -> None:
    many = frozenset(BAD._replace(service=f"default/bad-{n:02}") for n in range(40))
    message = told(having(refusals=many))[REFUSED]
    assert message.startswith("default/bad-00: 127.0.0.1 is refused")
    assert message.endswith("; and 35 more")


# When it is due


class Node:
    """A node's schedule; what it is shown is told where that is due."""

    def __init__(self) -> None:
        self.schedule, self.clock = Schedule(), Clock()

    def tells(self, *found: Condition) -> list[Condition]:
        due = self.schedule.due(found, self.clock.now)
        for condition in due:
            self.schedule.tell(condition, self.clock.now)
        return due


FIRST, NEEDLESS = Condition(REFUSED, "first"), Condition(NOT_NEEDED, "needless")


def test_a_condition_is_told_at_once_and_then_hourly() -> None:
    node = Node()
    for seconds, due in ((0, True), (10, False), (3500, False), (90, True), (3599, False)):
        node.clock.now += seconds
        assert node.tells(FIRST) == ([FIRST] if due else [])
    # Reasons do not keep each other waiting.
    assert node.tells(FIRST, NEEDLESS) == [NEEDLESS]
    node.clock.now += 1
    assert node.tells(FIRST, NEEDLESS) == [FIRST]


@pytest.mark.parametrize(
    "found",
    [lambda n: [Condition(REFUSED, f"the {n}th")], lambda n: [FIRST][n % 2 :]],
    ids=["another text", "comes and goes"],
)
def test_one_that_changes_all_the_time_is_told_every_five_minutes(
    found: Callable[[int], list[Condition]],
) -> None:
    node, times = Node(), []
    for n in range(120):
        if node.tells(*found(n)):
            times.append(n * 10)
        node.clock.now += 10
    assert times == [0, 300, 600, 900]


def test_what_could_not_be_told_stays_due() -> None:
    schedule = Schedule()
    assert schedule.due([FIRST], NOW) == schedule.due([FIRST], NOW + 1) == [FIRST]


# What is written


def test_an_event_is_of_the_kind_that_kubectl_describe_node_shows() -> None:
    made = event("worker-1", REFUSED, "first", lambda: 1_790_000_000_123_456_789)
    assert made["involvedObject"]["kind"] == "Node"
    assert made["involvedObject"]["uid"] == made["involvedObject"]["name"] == "worker-1"
    assert made["metadata"]["namespace"] == "default"
    assert made["metadata"]["name"] == f"worker-1.{1_790_000_000_123_456_789:x}"
    assert (made["type"], made["reason"], made["message"]) == ("Warning", REFUSED, "first")
    assert made["firstTimestamp"] == made["lastTimestamp"] == "2026-09-21T14:13:20Z"
    assert made["source"] == {"component": "ipvs-node-agent", "host": "worker-1"}


def test_a_message_is_no_longer_than_the_api_server_takes() -> None:
    assert len(event("worker-1", REFUSED, "x" * 5000)["message"]) <= 1024


class Recording:
    """An `EventRecorder` at an API server, where one condition is due."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        kubeconfig = directory / "kubelet.conf"
        plain_kubeconfig(kubeconfig, server.url, "worker-1")
        self.server, self.api = server, Api(kubeconfig)
        published = having(refusals=frozenset({BAD}))
        self.recorder = EventRecorder(lambda: published, Clock())

    def turn(self) -> bool:
        return self.recorder.turn(self.api, lambda: "worker-1")

    @property
    def statuses(self) -> list[int]:
        return [request.status for request in self.server.requests]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with ApiServer() as server:
        yield Recording(server, tmp_path)


def test_an_event_is_created_once(recording: Recording) -> None:
    assert recording.turn()
    assert recording.turn()
    (request,) = recording.server.requests
    assert (request.verb, request.resource, request.status) == ("create", "events", 201)


def test_one_that_is_refused_is_said_once_and_made_later(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    recording.server.fail(403, verb="create", times=2)
    assert [recording.turn() for _ in range(3)] == [False, False, True]
    assert recording.statuses == [403, 403, 201]
    (said,) = [record for record in caplog.records if record.name == nodeevents.__name__]
    assert said.levelno == logging.WARNING
    assert said.getMessage().startswith(
        "cannot write an Event on the Node, will retry: API server http://"
    )
    assert "refused to create Events: 403 Forbidden" in said.getMessage()


def test_without_credentials_it_waits(recording: Recording) -> None:
    def unknown() -> str:
        raise RefusedError("kubeconfig /none", "No such file or directory")

    assert not recording.recorder.turn(recording.api, unknown)
    assert recording.turn()


def test_it_ends_when_it_is_told_to(recording: Recording) -> None:
    stopped = threading.Event()
    stopped.set()
    recording.recorder.run(recording.api, lambda: "worker-1", stopped)
    assert recording.statuses == []
