"""A Follower over real connections, which fall silent and are closed while they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver import follower
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.model.events import Changed, Deleted, Event, Listed, Trouble
from tests.support.apiserver import ApiServer
from tests.support.cluster import service
from tests.support.pki import plain_kubeconfig

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

SERVICES = Resource("services", "/api/v1/services", "Service", read_service, dict)


class QuickBackoff(Backoff):
    """Hardly waits."""

    def next(self) -> float:
        return 0.01


class Following:
    """A Follower in a thread of its own, and everything that it has told."""

    def __init__(self, kubeconfig: Path) -> None:
        self._api = Api(kubeconfig)
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        follows = Follower(self._api, SERVICES, self._emit, self._stopped, QuickBackoff())
        self._thread = threading.Thread(target=follows.run, daemon=True)
        self._thread.start()

    def _emit(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, *kinds: type) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    def wait_for(self, predicate: Callable[[], object]) -> None:
        """Waits until something is true that events decide."""
        with self._changed:
            assert self._changed.wait_for(predicate, 10), self.events[-10:]

    def stop(self) -> None:
        """Ends it, in the middle of whatever it does."""
        self._stopped.set()
        self._api.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def following(server: ApiServer, tmp_path: Path) -> Iterator[Following]:
    plain_kubeconfig(tmp_path / "kubeconfig", server.url, "worker-1")
    started = Following(tmp_path / "kubeconfig")
    yield started
    started.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "LIST_READ_TIMEOUT", 0.2)
    monkeypatch.setattr(follower, "_WATCH_BEGIN_TIMEOUT", 0.2)
    monkeypatch.setattr(follower, "_WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(follower, "_READ_SLACK", -0.8)


def put(server: ApiServer, name: str) -> None:
    server.put(service(name, ["10.231.42.164"], ["10.19.20.201"]))


@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_is_given_up(server: ApiServer, following: Following) -> None:
    def troubles() -> int:
        return len(following.of(Trouble))

    server.hang()
    put(server, "web")
    following.wait_for(lambda: troubles() == 2)
    assert all(str(each.error).endswith("timed out") for each in following.of(Trouble))
    server.heal()
    server.wait_for(lambda: server.watches("services") == 1)
    before = troubles()
    server.hang()
    # The watch falls silent, and the next one does not even begin.
    following.wait_for(lambda: troubles() >= before + 2)
    put(server, "other")
    server.heal()
    following.wait_for(lambda: following.of(Changed))
    assert len(following.of(Listed)) == 1
    assert not following.of(Deleted)


def test_a_stopped_follower_ends_in_the_middle_of_a_watch(
    server: ApiServer, following: Following
) -> None:
    server.wait_for(lambda: server.watches("services") == 1)
    following.stop()
    assert not following.of(Trouble)
