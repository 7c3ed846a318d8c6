"""A Follower tells what there is and what changes, over real connections.

Whatever else a server may do is in tests/simulation.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver import follower as watch
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.events import (
    Changed,
    Deleted,
    Event,
    Listed,
    Recovered,
    Restarted,
    Skipped,
    Trouble,
)
from tests.support.apiserver import ApiServer
from tests.support.cluster import node, service
from tests.support.pki import plain_kubeconfig
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

SERVICES = Resource("services", "/api/v1/services", "Service", read_service, dict)


class QuickBackoff(Backoff):
    """Hardly waits, and counts how often it was asked."""

    calls = 0

    def next(self) -> float:
        self.calls += 1
        return 0.01


class Following:
    """A Follower in a thread of its own, and everything that it has told."""

    def __init__(
        self,
        api: Api,
        resource: Resource = SERVICES,
        backoff: Backoff | None = None,
    ) -> None:
        self.api = api
        self.backoff = QuickBackoff()
        self.events: list[Event] = []
        self.times: list[float] = []
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
            self.times.append(time.monotonic())
            if isinstance(event, Listed):
                self.known = {_key(item): item for item in event.items}
            elif isinstance(event, (Changed, Deleted)):
                assert self.known is not None, "told of a change before the first list"
                if isinstance(event, Changed):
                    self.known[_key(event.item)] = event.item
                else:
                    del self.known[event.key]
            self._changed.notify_all()

    def of(self, *kinds: type) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def news(self) -> list[Any]:
        """The events that change what is known."""
        return self.of(Listed, Changed, Deleted)

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


def web(name: str = "web", external_ip: str = "10.19.20.201") -> dict[str, Any]:
    return service(name, ["10.231.42.164"], [external_ip])


def put(server: ApiServer, name: str = "web", external_ip: str = "10.19.20.201") -> str:
    """Puts a Service, and gives its version."""
    return str(server.put(web(name, external_ip))["metadata"]["resourceVersion"])


def delete(server: ApiServer, name: str = "web") -> None:
    server.delete("Service", "default", name)


def event(kind: Any, obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def external_ips(following: Following, name: str = "web") -> list[str]:
    assert following.known is not None
    return [str(ip) for ip in following.known[f"default/{name}"].load_balancer_ips]


def asked(server: ApiServer) -> list[tuple[str, str | None]]:
    """All requests: the verb, and the version that was asked for."""
    return [(request.verb, request.params.get("resourceVersion")) for request in server.requests]


def count(server: ApiServer, verb: str) -> int:
    return [request.verb for request in server.requests].count(verb)


def watched_again(server: ApiServer, times: int) -> None:
    """Waits until the watch number `times` is open, and no other."""
    server.wait_for(lambda: count(server, "watch") == times and server.watches("services") == 1)


def _key(item: Any) -> str:
    return str(getattr(item, "key", None) or item.name)


# 1. List and watch


def test_everything_is_listed_first_and_then_watched_from_there(
    server: ApiServer, follow: Follow
) -> None:
    put(server, "web")
    version = put(server, "other")
    following = follow()
    watched_again(server, 1)
    assert asked(server) == [("list", "0"), ("watch", version)]
    following.wait_for(lambda: len(following.events) == 3)
    assert [type(e) for e in following.events] == [Listed, Recovered, Recovered]
    (listed,) = following.news
    assert listed.resource == "services"
    assert [item.key for item in listed.items] == ["default/other", "default/web"]


def test_changes_are_told_in_their_order(server: ApiServer, follow: Follow) -> None:
    following = follow()
    watched_again(server, 1)
    put(server, external_ip="10.0.0.1")
    put(server, external_ip="10.0.0.2")
    delete(server)
    following.wait_for(lambda: len(following.news) == 4)
    _, added, modified, deleted = following.news
    assert [str(ip) for e in (added, modified) for ip in e.item.load_balancer_ips] == [
        "10.0.0.1",
        "10.0.0.2",
    ]
    assert (deleted.resource, deleted.key) == ("services", "default/web")
    assert added.arrived <= modified.arrived <= deleted.arrived <= time.monotonic()
    assert asked(server) == [("list", "0"), ("watch", "1")]


def test_a_watch_asks_for_bookmarks_and_for_an_end_at_a_random_time(
    server: ApiServer, follow: Follow
) -> None:
    follow()
    for times in range(1, 5):
        watched_again(server, times)
        server.close_watches()
    watches = [request.params for request in server.requests if request.verb == "watch"]
    assert all(params["allowWatchBookmarks"] == "true" for params in watches)
    seconds = [int(params["timeoutSeconds"]) for params in watches]
    assert all(300 <= value <= 600 for value in seconds)
    assert len(set(seconds)) > 1


def test_only_what_is_selected_is_listed_and_watched(server: ApiServer, follow: Follow) -> None:
    server.put(node("10.240.2.128/25", name="worker-1"))
    server.put(node("10.240.3.0/25", name="worker-2"))
    selector = {"fieldSelector": "metadata.name=worker-1"}
    following = follow(Resource("nodes", "/api/v1/nodes", "Node", read_node, lambda: selector))
    server.wait_for(lambda: server.watches("nodes") == 1)
    assert all(r.params["fieldSelector"] == "metadata.name=worker-1" for r in server.requests)
    server.put(node("10.240.4.0/25", name="worker-2"))
    server.put(node("10.240.5.0/25", name="worker-1"))
    following.wait_for(lambda: len(following.news) == 2)
    assert following.names == {"worker-1"}


# 2. The end of a watch


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
    delete(server, "gone")
    put(server, "web", "10.0.0.9")
    put(server, "new")
    server.start()
    following.knows("web", "new")
    assert external_ips(following) == ["10.0.0.9"]
    assert count(server, "list") == 1


# 3. Versions that are gone


@pytest.mark.parametrize("gone_as", ["status", "event"])
def test_a_version_that_is_gone_leads_to_a_list_of_the_newest_and_no_deletion(
    gone_as: str, server: ApiServer, follow: Follow
) -> None:
    put(server, "web")
    put(server, "gone")
    following = follow()
    watched_again(server, 1)
    server.stop()
    delete(server, "gone")
    put(server, "new")
    server.compact(gone_as)
    server.start()
    following.knows("web", "new")
    assert [type(e) for e in following.news] == [Listed, Listed]
    watched_again(server, 3)
    assert following.restarts[-1] == "Expired"
    assert set(following.restarts[:-1]) == {"Unreachable"}
    assert asked(server)[2:] == [
        ("watch", asked(server)[1][1]),
        ("list", None),
        ("watch", str(server.store.oldest)),
    ]


# 4. Streams that make no sense


@pytest.mark.parametrize(
    "kind", ["FROBNICATED", pytest.param("a\nb" * 50_000, id="long"), None, {}]
)
def test_an_event_of_an_unknown_type_is_passed_over(
    kind: Any, server: ApiServer, follow: Follow
) -> None:
    put(server)
    following = follow()
    watched_again(server, 1)
    server.send_raw(event(kind, web("new")))
    put(server, "other")
    following.knows("web", "other")
    following.wait_for(lambda: following.of(Skipped))
    (skipped,) = following.of(Skipped)
    assert "\n" not in skipped.text
    assert len(skipped.text) < 120
    assert count(server, "watch") == 1


# 5. Lists that break


def test_a_list_that_breaks_off_tells_nothing(server: ApiServer, follow: Follow) -> None:
    for index in range(50):
        put(server, f"web-{index}")
    server.truncate_lists()
    following = follow()
    following.wait_for(lambda: len(following.of(Trouble)) >= 3)
    assert not following.news
    server.heal()
    following.wait_for(lambda: following.news)
    assert len(following.news[0].items) == 50


def test_a_list_that_breaks_off_later_leaves_what_is_known(
    server: ApiServer, follow: Follow
) -> None:
    put(server)
    following = follow()
    watched_again(server, 1)
    server.truncate_lists()
    server.compact()
    server.close_watches()
    following.wait_for(lambda: len(following.of(Trouble)) >= 3)
    assert following.names == {"web"}
    delete(server)
    put(server, "other")
    server.heal()
    following.knows("other")


# 6. Servers that are away


def test_a_server_that_comes_late_is_waited_for(server: ApiServer, follow: Follow) -> None:
    put(server)
    server.stop()
    following = follow()
    following.wait_for(lambda: len(following.of(Trouble)) >= 3)
    assert {type(e) for e in following.events} == {Trouble}
    assert str(following.events[0].error).endswith("Connection refused")  # type: ignore[union-attr]
    server.start()
    following.knows("web")
    following.wait_for(lambda: following.of(Recovered))


def test_a_server_that_goes_and_comes_back_costs_nothing(server: ApiServer, follow: Follow) -> None:
    put(server)
    following = follow()
    watched_again(server, 1)
    recovered = len(following.of(Recovered))
    server.stop()
    following.wait_for(lambda: len(following.of(Trouble)) >= 3)
    assert following.names == {"web"}
    server.start()
    following.wait_for(lambda: len(following.of(Recovered)) > recovered)
    put(server, "other")
    following.knows("web", "other")
    assert count(server, "list") == 1
    assert not following.of(Deleted)


@pytest.mark.parametrize(
    ("status", "verb"),
    [(401, "list"), (403, "watch"), (429, "list"), (500, "watch"), (503, "list")],
)
def test_a_refusal_is_trouble_and_tried_again(
    status: int, verb: str, server: ApiServer, follow: Follow
) -> None:
    put(server)
    server.fail(status, verb, times=2)
    following = follow()
    following.knows("web")
    watched_again(server, 3 if verb == "watch" else 1)
    troubles = following.of(Trouble)
    assert [trouble.error.status for trouble in troubles] == [status] * 2
    assert f"refused to {verb} services: {status}" in str(troubles[0].error)
    following.wait_for(lambda: isinstance(following.events[-1], Recovered))
    assert following.backoff.calls == 2


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


def test_credentials_that_are_not_there_are_trouble_and_waited_for(
    server: ApiServer, follow: Follow
) -> None:
    there = threading.Event()

    def selector() -> Mapping[str, str]:
        if not there.is_set():
            raise RefusedError("kubeconfig", "No such file")
        return {}

    put(server)
    resource = Resource("services", SERVICES.path, "Service", read_service, selector)
    following = follow(resource)
    following.wait_for(lambda: len(following.of(Trouble)) >= 3)
    assert not server.requests
    there.set()
    following.knows("web")


def test_a_mistake_of_the_programs_own_ends_the_follower(server: ApiServer, tmp_path: Path) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("a bug")

    put(server)
    plain_kubeconfig(tmp_path / "kubeconfig", server.url, "worker-1")
    resource = Resource("services", SERVICES.path, "Service", broken, dict)
    follower = Follower(Api(tmp_path / "kubeconfig"), resource, lambda _: None, threading.Event())
    with pytest.raises(RuntimeError, match="a bug"):
        follower.run()


# 7. How often


def test_watches_that_end_at_once_are_backed_off_though_each_has_news(
    server: ApiServer, follow: Follow
) -> None:
    following = follow()
    for times in range(1, 5):
        watched_again(server, times)
        put(server, f"web-{times}")
        server.close_watches()
    watched_again(server, 5)
    assert following.backoff.calls == 4
    assert count(server, "list") == 1


class EndlessBackoff(Backoff):
    """Waits for longer than any test; `asked` tells that the wait has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def next(self) -> float:
        self.asked.set()
        return 1000.0


def test_hurry_cuts_a_wait_short(server: ApiServer, follow: Follow) -> None:
    put(server)
    server.fail(503, times=1)
    backoff = EndlessBackoff()
    following = follow(backoff=backoff)
    assert backoff.asked.wait(10)
    eventually(lambda: following.follower.hurry() or following.names)  # type: ignore[func-returns-value]
    assert following.names == {"web"}


def test_hurry_counts_also_while_the_attempt_still_runs(server: ApiServer, follow: Follow) -> None:
    began, hurried = threading.Event(), threading.Event()

    def selector() -> Mapping[str, str]:
        if not began.is_set():
            began.set()
            assert hurried.wait(10)
            raise RefusedError("kubeconfig", "No such file")
        return {}

    put(server)
    resource = Resource("services", SERVICES.path, "Service", read_service, selector)
    following = follow(resource, EndlessBackoff())
    assert began.wait(10)
    following.follower.hurry()
    hurried.set()
    following.knows("web")


# 8. The end


def test_a_stopped_follower_ends_in_the_middle_of_a_watch(
    server: ApiServer, follow: Follow
) -> None:
    following = follow()
    watched_again(server, 1)
    following.stop()
    following.thread.join(10)
    assert not following.thread.is_alive()
    assert not following.of(Trouble)


def test_a_stopped_follower_ends_in_the_middle_of_a_wait(server: ApiServer, follow: Follow) -> None:
    server.stop()
    backoff = EndlessBackoff()
    following = follow(backoff=backoff)
    assert backoff.asked.wait(10)
    following.stop()
    following.thread.join(10)
    assert not following.thread.is_alive()


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


# 9. Streaming lists, and servers that do not know what they are asked for

STREAMED = dataclasses.replace(SERVICES, streamed=True)
SPARING = dataclasses.replace(
    STREAMED, sparing={"fieldSelector": "spec.type!=ExternalName,spec.clusterIP!=None"}
)


def fields(server: ApiServer) -> list[str | None]:
    """The field selectors of all requests."""
    return [request.params.get("fieldSelector") for request in server.requests]


def test_a_streaming_list_is_one_request_that_goes_on_as_a_watch(
    server: ApiServer, follow: Follow
) -> None:
    server.streaming_lists = True
    put(server, "web")
    put(server, "other")
    following = follow(STREAMED)
    following.knows("web", "other")
    watched_again(server, 1)
    put(server, "new")
    following.knows("web", "other", "new")
    assert [type(e) for e in following.events] == [Listed, Recovered, Changed]
    (request,) = server.requests
    assert request.params["sendInitialEvents"] == "true"
    assert request.params["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in request.params


def test_a_server_without_streaming_lists_is_asked_for_one_once(
    server: ApiServer, follow: Follow
) -> None:
    version = put(server)
    following = follow(STREAMED)
    watched_again(server, 2)
    assert asked(server) == [("watch", None), ("list", "0"), ("watch", version)]
    assert not following.of(Trouble)
    assert following.backoff.calls == 0
    server.compact()
    server.close_watches()
    server.wait_for(lambda: count(server, "list") == 2)
    assert [r for r in server.requests[1:] if "sendInitialEvents" in r.params] == []


def test_sparing_selectors_are_asked_for_in_lists_and_watches(
    server: ApiServer, follow: Follow
) -> None:
    put(server)
    server.put(service("headless", ["None"], []))
    following = follow(SPARING)
    following.knows("web")
    watched_again(server, 2)
    assert set(fields(server)) == {"spec.type!=ExternalName,spec.clusterIP!=None"}


def test_a_server_that_does_not_know_the_fields_is_asked_without_from_then_on(
    server: ApiServer, follow: Follow
) -> None:
    server.service_field_selectors = False
    put(server)
    following = follow(SPARING)
    following.knows("web")
    watched_again(server, 3)
    assert [request.status for request in server.requests] == [400, 422, 200, 200]
    assert fields(server)[-2:] == [None, None]
    assert not following.of(Trouble)
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


# 10. A server that nobody answers for


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


def test_a_server_that_answers_with_errors_is_given_its_time(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", (0.01, 0.02))
    server.fail(503)
    backoff = EndlessBackoff()
    following = follow(backoff=backoff)
    assert backoff.asked.wait(10)
    time.sleep(0.3)
    assert count(server, "list") == 1
    assert len(following.of(Trouble)) == 1


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
