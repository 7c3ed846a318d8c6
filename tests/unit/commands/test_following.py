"""The threads that follow the API server: what one of them tells concerns the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipvs_node_agent.commands.following import Following, start_thread
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.model.events import NODES, SERVICES, Event, Recovered, Restarted, Trouble
from tests.support.apiclient import NodeFiles
from tests.support.cluster import node
from tests.support.pki import plain_kubeconfig
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.apiserver import ApiServer

AWAY = AgentError("API server", "is away")


def reader(config: Config) -> Reader:
    return Reader(Path(config.kubeconfig))


def nothing(*_: object) -> None:
    """Takes whatever it is told."""


def call(work: Callable[[], object]) -> None:
    """Does it at once."""
    work()


def in_turn(work: Callable[[], object], _: threading.Event) -> None:
    """Does it at once, whether all is over or not."""
    work()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was hurried."""
    found: list[str] = []

    def note(follower: Any) -> None:
        found.append(follower.name)

    monkeypatch.setattr("ipvs_node_agent.apiserver.follower.Follower.hurry", note)

    def leash(_: object, reached: bool = False) -> None:
        found.append(f"leash{' now' if reached else ''}")

    monkeypatch.setattr("ipvs_node_agent.apiserver.leash.Leash.hurry", leash)
    asked = partial(found.append, "leash in passing")
    monkeypatch.setattr("ipvs_node_agent.apiserver.leash.Leash.ask_in_passing", lambda _: asked())
    return found


@pytest.mark.parametrize(
    ("events", "woken"),
    [
        pytest.param([Recovered(SERVICES)], ["leash", NODES], id="the first list"),
        pytest.param([Recovered(NODES)], ["leash", SERVICES], id="the other first list"),
        pytest.param(
            [Restarted(NODES, "Ended"), Recovered(NODES)],
            ["leash in passing", "leash", "leash", SERVICES],
            id="a watch that came to its end",
        ),
        pytest.param(
            [Restarted(SERVICES, "Ended"), Recovered(SERVICES)],
            ["leash", "leash", NODES],
            id="that of the Services, which nobody keeps waiting",
        ),
        pytest.param(
            [Restarted(NODES, "Expired"), Recovered(NODES)],
            ["leash", "leash", SERVICES],
            id="a version that is too old",
        ),
        pytest.param(
            [Trouble(SERVICES, AWAY, True), Recovered(SERVICES), Recovered(SERVICES)],
            ["leash", "leash now", NODES, "leash", NODES],
            id="an outage for one",
        ),
        pytest.param(
            [
                Trouble(NODES, AWAY),
                Restarted(NODES, "Refused"),
                Trouble(SERVICES, AWAY, True),
                Restarted(SERVICES, "Unreachable"),
                Recovered(SERVICES),
            ],
            ["leash", "leash", "leash", "leash", "leash now", NODES],
            id="an outage for one while the other is refused",
        ),
        pytest.param(
            [
                Restarted(SERVICES, "Unreachable"),
                Restarted(NODES, "Unreachable"),
                Recovered(SERVICES),
                Recovered(NODES),
            ],
            ["leash", "leash", "leash", NODES, "leash now", SERVICES],
            id="an outage for both, after which the Endpoints are asked for once",
        ),
    ],
)
def test_what_one_is_told_hurries_who_it_concerns(
    events: list[Event], woken: list[str], hurried: list[str], tmp_path: Path
) -> None:
    plain_kubeconfig(tmp_path / "kubelet.conf", "http://127.0.0.1:1", "worker-1")
    works: list[Callable[[], object]] = []
    taken: list[Event] = []
    config = Config(kubeconfig=str(tmp_path / "kubelet.conf"))

    def in_turn(work: Callable[[], object], over: threading.Event) -> None:
        if not over.is_set():
            works.append(work)

    following = Following(config, reader(config), nothing, in_turn, taken.append, nothing, ())
    for event in events:
        following._emit(event)
    assert hurried == woken
    for work in works:
        work()
    assert taken == events
    # The next set of threads tells everything anew.
    following.stop()
    following._emit(events[0])
    assert taken == events


@pytest.mark.usefixtures("kubeconfig_read_here")
@pytest.mark.parametrize("there_are_some", [True, False])
def test_between_two_watches_of_the_node_the_leash_asks_by_their_connection(
    there_are_some: bool, server: ApiServer, files: NodeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_node_agent.apiserver.leash._PASSING", 0.0)
    server.put(node())
    if there_are_some:
        server.put({"kind": "Endpoints", "metadata": {"name": "kubernetes"}})

    def ports(resource: str) -> list[int]:
        return [one.port for one in server.requests if one.resource == resource and one.status]

    config = Config(kubeconfig=str(files.kubeconfig))
    following = Following(config, reader(config), call, in_turn, nothing, nothing, ())
    following.start()
    try:
        server.wait_for(lambda: server.watches(NODES) and server.watches(SERVICES))
        server.wait_for(lambda: len(ports("endpoints")) == 1)
        kept = ports(NODES)[-1]
        assert kept not in ports("endpoints")
        count = len(ports(NODES))
        server.close_watches(NODES)
        server.wait_for(lambda: len(ports(NODES)) > count and server.watches(NODES) == 1)
        assert ports("endpoints")[1:] == [kept]
        assert ports(NODES)[-2:] == [kept] * 2
    finally:
        following.stop()


@pytest.mark.parametrize(("period", "asks"), [(0.01, False), (60.0, True)])
def test_credentials_are_looked_at_now_and_then_and_with_each_request(
    period: float, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kubeconfig(tmp_path / "kubelet.conf", "http://127.0.0.1:1", "worker-1")
    config = Config(kubeconfig=str(tmp_path / "kubelet.conf"))
    following = Following(config, reader(config), nothing, nothing, nothing, nothing, ())
    looks = threading.Semaphore(0)
    monkeypatch.setattr(following.api, "refresh", looks.release)
    monkeypatch.setattr("ipvs_node_agent.commands.following._CREDENTIALS_PAUSE", 0.01)
    monkeypatch.setattr("ipvs_node_agent.commands.following._CREDENTIALS_PERIOD", period)
    thread = threading.Thread(target=following._refresh)
    thread.start()
    for _ in range(5):
        assert looks.acquire(timeout=30)
        if asks:
            with pytest.raises(AgentError), following.api.get("/", {}, "ask", 1.0):
                pass
    following.stop()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.usefixtures("kubeconfig_read_here")
def test_a_rotation_that_has_not_come_to_its_end_is_looked_at_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kubelet.conf"
    plain_kubeconfig(path, "http://127.0.0.1:1", "worker-1")
    config = Config(kubeconfig=str(path))
    following = Following(config, reader(config), nothing, nothing, nothing, nothing, ())
    following.api.credentials()
    monkeypatch.setattr("ipvs_node_agent.commands.following._CREDENTIALS_PAUSE", 0.01)
    monkeypatch.setattr("ipvs_node_agent.commands.following._CREDENTIALS_PERIOD", 60.0)
    path.write_text("users: [")
    thread = threading.Thread(target=following._refresh)
    thread.start()
    eventually(lambda: "cannot read the changed credentials" in caplog.text, "twice the same", 30)
    following.stop()
    thread.join(30)


def test_a_thread_that_fails_fails_the_main_thread() -> None:
    works: list[Callable[[], object]] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    start_thread(fail, works.append)
    eventually(lambda: works)
    with pytest.raises(RuntimeError, match="a bug"):
        works[0]()
