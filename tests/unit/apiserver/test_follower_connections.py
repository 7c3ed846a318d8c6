"""A Follower over real connections, which break, fall silent and come back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver import follower as watch
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.model.events import (
    Changed,
    Deleted,
    Event,
    Listed,
    Restarted,
    Trouble,
)
from tests.support.apiserver import ApiServer
from tests.support.cluster import service
from tests.support.pki import plain_kubeconfig
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

SERVICES = Resource("services", "/api/v1/services", "Service", read_service, dict)
STREAMED = dataclasses.replace(SERVICES, streamed=True)


class QuickBackoff(Backoff):
    """Hardly waits, and counts how often it was asked."""

    calls = 0

    def next(self) -> float:
        self.calls += 1
        return 0.01


class EndlessBackoff(Backoff):
    """Waits for longer than any test; `asked` tells that the wait has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def next(self) -> float:
        self.asked.set()
        return 1000.0


class Following:
    """A Follower in a thread of its own, and everything that it has told."""

    def __init__(self, api: Api, resource: Resource, backoff: Backoff | None) -> None:
        self.api = api
        self.backoff = QuickBackoff()
        self.events: list[Event] = []
        # Why watches ended; beside the events, which are about what there is.
        self.restarts: list[str] = []
        self.known: dict[str, Any] | None = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self.follower = Follower(api, resource, self._emit, self._stopped, backoff or self.backoff)
        self.thread = threading.Thread(target=self.follower.run, daemon=True)
        self.thread.start()

    def _emit(self, event: Event) -> None:
        with self._changed:
            if isinstance(event, Restarted):
                self.restarts.append(event.reason)
                return
            self.events.append(event)
            if isinstance(event, Listed):
                self.known = {item.key: item for item in event.items}
            elif isinstance(event, (Changed, Deleted)):
                assert self.known is not None, "told of a change before the first list"
                if isinstance(event, Changed):
                    self.known[event.item.key] = event.item
                else:
                    del self.known[event.key]
            self._changed.notify_all()

    def of(self, *kinds: type) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def names(self) -> set[str] | None:
        """The names of what is known; None before the first list."""
        return None if self.known is None else {key.rpartition("/")[2] for key in self.known}

    def wait_for(self, predicate: Callable[[], object]) -> None:
        """Waits until something is true that events decide."""
        with self._changed:
            assert self._changed.wait_for(predicate, 10), self.events[-10:]

    def knows(self, *names: str) -> None:
        """Waits until exactly these objects are known."""
        self.wait_for(lambda: self.names == set(names))

    def stop(self) -> None:
        """Tells the Follower to end."""
        self._stopped.set()
        self.api.close()
        self.follower.hurry()


Follow = Callable[..., Following]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def follow(server: ApiServer, tmp_path: Path) -> Iterator[Follow]:
    """Starts a Follower of the test server."""
    plain_kubeconfig(tmp_path / "kubeconfig", server.url, "worker-1")
    started: list[Following] = []

    def start(resource: Resource = SERVICES, backoff: Backoff | None = None) -> Following:
        started.append(Following(Api(tmp_path / "kubeconfig"), resource, backoff))
        return started[-1]

    yield start
    for following in started:
        following.stop()
    server.stop()
    for following in started:
        eventually(lambda one=following: one.stop() or not one.thread.is_alive())  # type: ignore[misc]


def put(server: ApiServer, name: str = "web", external_ip: str = "10.19.20.201") -> str:
    """Puts a Service, and gives its version."""
    raw = service(name, ["10.231.42.164"], [external_ip])
    return str(server.put(raw)["metadata"]["resourceVersion"])


def asked(server: ApiServer) -> list[tuple[str, str | None]]:
    """All requests: the verb, and the version that was asked for."""
    return [(request.verb, request.params.get("resourceVersion")) for request in server.requests]


def count(server: ApiServer, verb: str) -> int:
    return [request.verb for request in server.requests].count(verb)


def watched_again(server: ApiServer, times: int) -> None:
    """Waits until the watch number `times` is open, and no other."""
    server.wait_for(lambda: count(server, "watch") == times and server.watches("services") == 1)


@pytest.mark.parametrize("fault", [ApiServer.truncate_watches, ApiServer.drop_watches])
def test_a_watch_that_breaks_off_is_resumed_from_the_last_version_without_a_list(
    fault: Callable[[ApiServer], None], server: ApiServer, follow: Follow
) -> None:
    version = put(server)
    following = follow()
    watched_again(server, 1)
    fault(server)
    watched_again(server, 2)
    assert asked(server) == [("list", "0"), ("watch", version), ("watch", version)]
    put(server, "other")
    following.knows("web", "other")


def test_what_happens_between_two_watches_is_told(server: ApiServer, follow: Follow) -> None:
    put(server, "web")
    put(server, "gone")
    following = follow()
    watched_again(server, 1)
    server.stop()
    server.delete("Service", "default", "gone")
    put(server, "web", "10.0.0.9")
    put(server, "new")
    server.start()
    following.knows("web", "new")
    assert following.known is not None
    (external_ip,) = following.known["default/web"].load_balancer_ips
    assert str(external_ip) == "10.0.0.9"
    assert count(server, "list") == 1


def test_a_server_that_hangs_is_given_up(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LIST_READ_TIMEOUT", 0.2)
    monkeypatch.setattr(watch, "_WATCH_BEGIN_TIMEOUT", 0.2)
    monkeypatch.setattr(watch, "_WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(watch, "_READ_SLACK", -0.8)
    put(server)
    server.hang()
    following = follow()
    following.wait_for(lambda: len(following.of(Trouble)) == 2)
    assert str(following.of(Trouble)[0].error).endswith("timed out")
    server.heal()
    following.knows("web")
    troubles = len(following.of(Trouble))
    server.hang()
    following.wait_for(lambda: len(following.of(Trouble)) > troubles)
    put(server, "other")
    server.heal()
    following.knows("web", "other")
    assert not following.of(Deleted)


def test_a_stopped_follower_ends_in_the_middle_of_a_watch(
    server: ApiServer, follow: Follow
) -> None:
    following = follow()
    watched_again(server, 1)
    following.stop()
    following.thread.join(10)
    assert not following.thread.is_alive()
    assert not following.of(Trouble)


def test_a_follower_whose_credentials_change_goes_on_from_its_last_version(
    server: ApiServer, follow: Follow, tmp_path: Path
) -> None:
    version = put(server)
    following = follow()
    watched_again(server, 1)
    (tmp_path / "kubeconfig").write_text((tmp_path / "kubeconfig").read_text() + "# changed\n")
    assert following.api.refresh()
    watched_again(server, 2)
    assert asked(server) == [("list", "0"), ("watch", version), ("watch", version)]
    assert not following.of(Trouble)
    assert following.restarts == ["CredentialsChanged"]
    assert following.backoff.calls == 0


@pytest.mark.parametrize("resource", [SERVICES, STREAMED], ids=["a watch", "a streaming list"])
def test_what_has_begun_may_be_silent_for_longer_than_a_beginning(
    resource: Resource, server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_WATCH_BEGIN_TIMEOUT", 0.3)
    monkeypatch.setattr(watch, "LIST_READ_TIMEOUT", 0.3)
    server.streaming_lists = True
    put(server)
    following = follow(resource)
    following.knows("web")
    watched_again(server, 1)
    time.sleep(1)
    put(server, "other")
    following.knows("web", "other")
    assert count(server, "watch") == 1
    assert not following.of(Trouble)


def test_a_server_that_is_back_is_not_kept_waiting(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", (0.05, 0.1))
    put(server)
    server.stop()
    backoff = EndlessBackoff()
    following = follow(backoff=backoff)
    assert backoff.asked.wait(10)
    time.sleep(0.3)
    assert len(following.of(Trouble)) == 1, "a look is no attempt"
    server.start()
    following.knows("web")


def test_a_watch_that_does_not_even_begin_is_given_up(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_WATCH_BEGIN_TIMEOUT", 0.2)
    put(server)
    following = follow()
    watched_again(server, 1)
    server.hang()
    put(server, "other")
    # Ends the open watch; the next one gets no answer.
    following.api.close()
    following.wait_for(lambda: following.of(Trouble))
    assert str(following.of(Trouble)[0].error).endswith("timed out")
    server.heal()
    following.knows("web", "other")
    assert count(server, "list") == 1
