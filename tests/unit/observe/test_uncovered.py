"""When the API server is asked whose the addresses without rules are, and what is then told."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.host import pods
from ipvs_node_agent.host.links import Links, Route
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import OwnPod, UncoveredPod
from ipvs_node_agent.observe import uncovered
from ipvs_node_agent.observe.uncovered import UncoveredPods
from ipvs_node_agent.rules.coverage import Coverage
from ipvs_node_agent.sync.state import AgentState, Published
from tests.support.clock import Clock

BY_CIDR = Coverage((), (parse_network("10.240.2.128/25"),))


class Node:
    """A node whose kernel and API server are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.routed, self.pods = list[str](), list[OwnPod]()
        self.asked, self.told = 0, list[tuple[UncoveredPod, ...]]()
        self.broken: Exception | None = None
        self.agent = AgentState(coverage=BY_CIDR, node_addresses=(parse_address("192.168.7.11"),))
        self.looking = UncoveredPods(
            lambda: Published(0.0, agent=self.agent), self._links, self.told.append, self.clock
        )
        monkeypatch.setattr(uncovered, "neighbours", frozenset)
        monkeypatch.setattr(pods, "plugins", list)
        monkeypatch.setattr(uncovered, "own_pods", self._ask)

    def _links(self) -> Links:
        routes = (Route(parse_network(f"{ip}/32"), "veth1", False) for ip in self.routed)
        return Links(routes=frozenset(routes))

    def _ask(self, api: Api, node: str) -> tuple[OwnPod, ...]:
        assert node == "worker-1"
        self.asked += 1
        if self.broken is not None:
            raise self.broken
        return tuple(self.pods)

    def has(self, *addresses: str, pods: Iterable[str] = ()) -> None:
        """The kernel leads to these addresses; some are those of pods."""
        self.routed = [*addresses]
        self.pods = [OwnPod(f"default/{ip}", (parse_address(ip),)) for ip in pods]

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.looking.turn(cast(Api, None), lambda: "worker-1")
            self.clock.now += 30

    def tells(self) -> list[list[str]]:
        return [[str(pod.address) for pod in pods] for pods in self.told]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


@pytest.mark.parametrize("times", [1, 50])
def test_where_rules_cover_all_nobody_is_asked(node: Node, times: int) -> None:
    node.has("10.240.2.130", pods=["10.240.2.130"])
    node.look(times)
    assert (node.asked, node.told) == (0, [])


def test_a_pod_that_is_not_covered_is_told_once(node: Node) -> None:
    node.has("10.240.2.130", "10.9.0.5", pods=["10.240.2.130", "10.9.0.5"])
    node.look(50)
    assert node.told == [(UncoveredPod("default/10.9.0.5", parse_address("10.9.0.5"), "veth1"),)]
    assert node.asked == 1


def test_one_that_has_just_started_is_given_the_time_to_be_known(node: Node) -> None:
    node.has("10.9.0.5")
    node.look()
    assert node.asked == 0
    node.has("10.9.0.5", pods=["10.9.0.5"])
    node.look()
    assert node.tells() == [["10.9.0.5"]]


def test_who_is_no_pod_is_not_asked_about_again_as_long_as_he_stays(node: Node) -> None:
    node.has("172.17.0.2")
    node.look(50)
    assert (node.asked, node.told) == (1, [])
    node.has()
    node.look()
    node.has("172.17.0.2", pods=["172.17.0.2"])
    node.look(2)
    assert (node.asked, node.tells()) == (2, [["172.17.0.2"]])


def test_the_server_is_not_asked_twice_in_ten_minutes(node: Node) -> None:
    for number in range(60):
        node.has(*(f"172.17.0.{n}" for n in range(number + 1)))
        node.look()
    # Half an hour in which somebody comes at each look.
    assert node.asked == 3


def test_what_failed_is_said_once_and_tried_again_after_ten_minutes(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.has("10.9.0.5", pods=["10.9.0.5"])
    refused = ApiError("x", "y", status=403)
    outage = (ApiError("x", "z"), ApiError("x", "full", status=503), OSError("no"), ValueError())
    for node.broken in (refused, refused, *outage, None):
        node.look(20)
    assert (node.asked, node.tells()) == (7, [["10.9.0.5"]])
    said = "cannot tell whether rules cover all pods of this node: x: y"
    assert [line for line in caplog.messages if line.startswith("cannot tell")] == [said]


def test_who_goes_or_is_covered_is_told_at_the_next_look(node: Node) -> None:
    node.has("10.9.0.5", "10.9.0.6", pods=["10.9.0.5", "10.9.0.6"])
    node.look(2)
    node.routed = ["10.9.0.6"]
    # Also where nobody could be asked.
    node.broken = OSError()
    node.look()
    node.agent = replace(node.agent, coverage=Coverage(("veth+",), ()))
    node.look()
    assert node.tells() == [["10.9.0.5", "10.9.0.6"], ["10.9.0.6"], []]


def test_a_subnet_that_is_not_covered_is_asked_about_all_the_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = pods.Plugin("bridge", "br1", (parse_network("10.9.0.0/24"),))
    monkeypatch.setattr(pods, "plugins", lambda: [bridge])
    monkeypatch.setattr(node.looking, "_links", lambda: Links(names=frozenset({"br1"})))
    node.look(2)
    node.has(pods=["10.9.0.5"])
    node.look(20)
    assert (node.asked, node.tells()) == (2, [["10.9.0.5"]])


@pytest.mark.parametrize("change", [{"coverage": None}, {"node_addresses": ()}])
def test_before_the_node_is_known_and_without_neighbours_it_waits(
    node: Node, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> None:
        raise OSError("the kernel refuses to tell")

    monkeypatch.setattr(uncovered, "neighbours", unknown)
    node.agent = replace(node.agent, **change)
    node.has("10.9.0.5", pods=["10.9.0.5"])
    node.look(5)
    assert (node.asked, node.told) == (0, [])


def test_it_ends_when_it_is_told_to(node: Node) -> None:
    stopped = threading.Event()
    stopped.set()
    node.looking.run(cast(Api, None), lambda: "worker-1", stopped)
    assert node.asked == 0
