"""A Follower tells what there is and what changes: bytes in, events out.

What only a connection can show is in test_follower_connections.py; whatever else a server may do
is in tests/simulation.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Callable
from urllib.parse import parse_qsl, urlsplit

import pytest

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.apiserver.resources import Resource
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.events import Changed, Deleted, Event, Listed, Recovered, Restarted
from tests.support.clock import Clock
from tests.support.cluster import service
from tests.support.wire import Response, WiredApi

SERVICES = Resource("services", "/api/v1/services", "Service", read_service, dict)
STREAMED = dataclasses.replace(SERVICES, streamed=True)
FIELDS = "spec.type!=ExternalName,spec.clusterIP!=None"
SPARING = dataclasses.replace(STREAMED, sparing={"fieldSelector": FIELDS})

# What the server says


def web(name: str, version: str = "9", ip: str = "10.19.20.201") -> dict[str, Any]:
    raw = service(name, ["10.231.42.164"], [ip])
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": version}}


def line(kind: Any, raw: Any) -> bytes:
    return json.dumps({"type": kind, "object": raw}).encode() + b"\n"


def bookmark(version: str, **annotations: str) -> bytes:
    return line("BOOKMARK", {"metadata": {"resourceVersion": version, "annotations": annotations}})


def listing(version: str, *names: str) -> bytes:
    items = [web(name) for name in names]
    return json.dumps({"items": items, "metadata": {"resourceVersion": version}}).encode()


def a_list(version: str, *names: str) -> Response:
    return Response(200, [listing(version, *names)])


def a_watch(*lines: bytes, breaks: bool = False) -> Response:
    return Response(200, lines, breaks)


def a_status(code: int, **headers: str) -> Response:
    return Response(code, [json.dumps({"message": "why"}).encode()], headers=headers)


GONE = line("ERROR", {"code": 410, "message": "too old"})
END_OF_STATE = bookmark("7", **{"k8s.io/initial-events-end": "true"})
LISTED = ["listed a", "recovered", "recovered"]


class Instant(threading.Event):
    """An event that is not waited for: the time passes at once."""

    def __init__(self, clock: Clock, passes: Callable[[], None]) -> None:
        super().__init__()
        self._clock, self._passes = clock, passes

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._passes()
        self._clock.now += 0.0 if self.is_set() else timeout
        return self.is_set()


class Followed:
    """A Follower that gets `answers`, one for each request, and what came of it.

    `waiting` is called at each wait.
    """

    def __init__(
        self,
        *answers: Response | OSError,
        resource: Resource = SERVICES,
        waiting: Callable[[Followed], None] = lambda followed: None,
    ) -> None:
        self._answers = list(answers)
        self.requests: list[dict[str, str]] = []
        # When each attempt began.
        self.times: list[float] = []
        self.events: list[Event] = []
        self.clock = clock = Clock()

        def instant() -> Instant:
            return Instant(clock, lambda: waiting(self))

        self.stopped = instant()
        self.follower = Follower(
            WiredApi(self),
            resource,
            self._emit,
            self.stopped,
            Backoff(clock, lambda: 0.0),
            clock,
            lambda: 0.5,
            instant,
        )

    def run(self) -> Followed:
        """Follows until there is no answer any more."""
        self.follower.run()
        return self

    def request(self, method: str, url: str, **_: Any) -> Response:
        """In the place of urllib3's pool."""
        assert (method, urlsplit(url).path) == ("GET", "/api/v1/services")
        if not self._answers:
            self.stopped.set()
            raise Superseded
        self.requests.append(dict(parse_qsl(urlsplit(url).query)))
        self.times.append(self.clock.now)
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _emit(self, event: Event) -> None:
        if not self.stopped.is_set():
            self.events.append(event)

    @property
    def asked(self) -> list[str]:
        """Each request in short."""
        return [_asked(request) for request in self.requests]

    @property
    def told(self) -> list[str]:
        """Each event in short, but why watches ended."""
        return [_told(event) for event in self.events if not isinstance(event, Restarted)]

    @property
    def restarts(self) -> list[str]:
        """Why watches ended."""
        return [event.reason for event in self.events if isinstance(event, Restarted)]

    @property
    def pauses(self) -> list[float]:
        """The time between two requests."""
        return [round(after - before, 3) for before, after in zip(self.times, self.times[1:])]


def follow(*answers: Response | OSError, **options: Any) -> Followed:
    """What came of `answers`."""
    return Followed(*answers, **options).run()


def _asked(request: Mapping[str, str]) -> str:
    kind = "stream" if "sendInitialEvents" in request else "watch" if "watch" in request else "list"
    return f"{kind} {request.get('resourceVersion', '')}".strip()


def _told(event: Event) -> str:
    kind = type(event).__name__.lower()
    if isinstance(event, Listed):
        return " ".join([kind, *(item.key.partition("/")[2] for item in event.items)])
    if isinstance(event, Changed):
        return f"{kind} {event.item.key.partition('/')[2]} {event.item.load_balancer_ips[0]}"
    if isinstance(event, Deleted):
        return f"{kind} {event.key}"
    return kind if isinstance(event, Recovered) else f"{kind}: {getattr(event, 'text', event[-1])}"


# 1. List and watch


def test_everything_is_listed_first_and_then_watched_from_there() -> None:
    followed = follow(a_list("7", "a", "b"), a_watch())
    assert followed.asked == ["list 0", "watch 7"]
    assert followed.told == ["listed a b", "recovered", "recovered"]
    watch = followed.requests[1]
    assert watch["allowWatchBookmarks"] == "true"
    assert watch["timeoutSeconds"] == "450", "halfway between five and ten minutes"


def test_changes_are_told_in_their_order_and_a_watch_goes_on_behind_the_last() -> None:
    lines = (
        line("ADDED", web("b", "8", "10.0.0.1")),
        line("MODIFIED", web("b", "9", "10.0.0.2")),
        line("DELETED", web("a", "10")),
    )
    followed = follow(a_list("7", "a"), a_watch(*lines), a_watch(bookmark("12")), a_watch())
    told = ["changed b 10.0.0.1", "changed b 10.0.0.2", "deleted default/a"]
    assert followed.told == [*LISTED, *told, "recovered", "recovered"]
    assert followed.asked == ["list 0", "watch 7", "watch 10", "watch 12"]
    assert {event.arrived for event in followed.events[3:6]} == {1000.0}  # type: ignore[union-attr]


def test_only_what_is_selected_is_listed_and_watched() -> None:
    selector = {"fieldSelector": "metadata.name=a"}
    chosen = dataclasses.replace(SERVICES, selector=lambda: selector)
    followed = follow(a_list("7", "a"), a_watch(), resource=chosen)
    assert [request["fieldSelector"] for request in followed.requests] == ["metadata.name=a"] * 2


# 2. Versions that are gone, and streams that make no sense


@pytest.mark.parametrize("gone", [[410, b"{}"], [200, GONE]], ids=["a status", "an event"])
def test_a_version_that_is_gone_leads_to_a_list_of_the_newest_and_no_deletion(gone: Any) -> None:
    followed = follow(a_list("7", "a"), Response(gone[0], [gone[1]]), a_list("20", "b"), a_watch())
    assert followed.asked == ["list 0", "watch 7", "list", "watch 20"]
    assert [one for one in followed.told if one != "recovered"] == ["listed a", "listed b"]
    assert followed.restarts == ["Expired", "Ended"]
    assert followed.pauses == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "kind", ["FROBNICATED", pytest.param("a\nb" * 50_000, id="long"), None, {}]
)
def test_an_event_of_an_unknown_type_is_passed_over(kind: Any) -> None:
    followed = follow(
        a_list("7", "a"), a_watch(line(kind, web("x", "8")), line("ADDED", web("b"))), a_watch()
    )
    skipped, told = followed.told[3:5]
    assert skipped.startswith("skipped: an event of the unknown type ")
    assert "\n" not in skipped
    assert len(skipped) < 130
    assert told == "changed b 10.19.20.201"
    assert followed.restarts == ["Ended", "Ended"]


def test_a_watch_that_is_cut_within_an_event_goes_on_from_the_last_whole_one() -> None:
    added = line("ADDED", web("b", "8"))
    followed = follow(a_list("7", "a"), a_watch(added, added[:20]), a_watch(), a_watch())
    assert followed.asked == ["list 0", "watch 7", "watch 8", "watch 8"]
    assert followed.restarts[0] == "Unreadable"
    assert not any(one.startswith("trouble") for one in followed.told)


# 3. Lists that break


def test_a_list_that_breaks_off_tells_nothing_and_later_leaves_what_is_known() -> None:
    half = listing("7", "a")[:60]
    broken = "trouble: API server http://api: the connection broke: IncompleteRead"
    followed = follow(
        Response(200, [half], breaks=True),
        Response(200, [half]),
        a_list("7", "a"),
        a_watch(GONE),
        Response(200, [half]),
        a_list("20", "b"),
    )
    first, second, *told = followed.told
    assert first.startswith(broken)
    assert second == "trouble: API server: cannot list services: the list breaks off"
    assert told == [*LISTED, second, "listed b", "recovered"]


# 4. Refusals


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_refusal_is_trouble_and_tried_again(status: int, verb: str) -> None:
    refusals = [a_status(status), a_status(status)]
    listed, watched = a_list("7", "a"), a_watch()
    answers = [*refusals, listed] if verb == "list" else [listed, *refusals]
    followed = follow(*answers, watched)
    troubles = [one for one in followed.told if one.startswith("trouble")]
    wanted = f"trouble: API server http://api: refused to {verb} services: {status} Whatever: why"
    assert len(troubles) == 2
    assert all(one.startswith(wanted) for one in troubles)
    assert followed.told[-1] == "recovered"
    assert followed.restarts == ["Refused"] * 2 + ["Ended"]
    assert [pause for pause in followed.pauses if pause] == [0.8, 1.6]


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks_for() -> None:
    busy = a_status(429, **{"Retry-After": "20"})
    followed = follow(busy, a_list("7", "a"), waiting=lambda one: one.follower.hurry())
    assert followed.pauses == [20.0]


def test_credentials_that_are_not_there_are_trouble_and_waited_for() -> None:
    attempts = 0

    def selector() -> Mapping[str, str]:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise RefusedError("kubeconfig", "No such file")
        return {}

    followed = follow(a_list("7", "a"), resource=dataclasses.replace(SERVICES, selector=selector))
    assert followed.told == ["trouble: kubeconfig: No such file"] * 3 + ["listed a", "recovered"]
    assert followed.restarts == ["NoCredentials"] * 3
    assert followed.times == [1000.0 + 0.8 + 1.6 + 3.2]


def test_a_mistake_of_the_programs_own_ends_the_follower() -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        follow(a_list("7", "a"), resource=dataclasses.replace(SERVICES, read=broken))


def test_a_server_that_nobody_answers_for_is_trouble_and_looked_for_between_the_attempts() -> None:
    looks = 0

    def waiting(_: Followed) -> None:
        nonlocal looks
        looks += 1

    away = [OSError(111, "Connection refused") for _ in range(4)]
    followed = follow(*away, a_list("7", "a"), a_watch(), waiting=waiting)
    trouble = "trouble: API server http://api: cannot be reached: Connection refused"
    assert followed.told == [trouble] * 4 + LISTED
    assert followed.restarts == ["Unreachable"] * 4 + ["Ended"]
    assert followed.pauses == [0.8, 1.6, 3.2, 6.4, 0.0]
    assert looks == 8, "within the wait every 2.25 s, and at its end"


# 5. How often


def test_watches_that_end_at_once_are_backed_off_though_each_has_news() -> None:
    watches = [a_watch(line("ADDED", web("b", str(version)))) for version in range(8, 12)]
    followed = follow(a_list("7", "a"), *watches, a_watch())
    assert followed.asked == ["list 0", "watch 7", "watch 8", "watch 9", "watch 10", "watch 11"]
    assert followed.pauses == [0.0, 0.8, 1.6, 3.2, 6.4]


def test_a_server_that_answers_with_errors_is_not_looked_for_in_between() -> None:
    waits = 0

    def waiting(_: Followed) -> None:
        nonlocal waits
        waits += 1

    followed = follow(*[a_status(500) for _ in range(7)], a_list("7"), waiting=waiting)
    assert followed.pauses == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert waits == 7, "one for each pause"


def test_hurry_cuts_a_wait_short_but_not_the_next_one() -> None:
    followed = follow(
        *[a_status(500) for _ in range(3)],
        a_list("7", "a"),
        waiting=lambda one: one.follower.hurry(),
    )
    assert followed.pauses == [0.0, 1.6, 3.2]


def test_hurry_counts_also_while_the_attempt_still_runs() -> None:
    hurried = False

    def selector() -> Mapping[str, str]:
        nonlocal hurried
        if not hurried:
            hurried = True
            followed.follower.hurry()
            raise RefusedError("kubeconfig", "No such file")
        return {}

    followed = Followed(a_list("7", "a"), resource=dataclasses.replace(SERVICES, selector=selector))
    followed.run()
    assert followed.times == [1000.0]


def test_a_stopped_follower_ends_in_the_middle_of_a_wait() -> None:
    followed = follow(a_status(500), a_list("7", "a"), waiting=lambda one: one.stopped.set())
    assert followed.asked == ["list 0"]


# 6. Streaming lists, and servers that do not know what they are asked for


def test_a_streaming_list_is_one_request_that_goes_on_as_a_watch() -> None:
    lines = [line("ADDED", web("a")), line("ADDED", web("b")), END_OF_STATE]
    more = line("ADDED", web("c", "11"))
    followed = follow(a_watch(*lines, more), a_watch(), resource=STREAMED)
    assert followed.told == ["listed a b", "recovered", "changed c 10.19.20.201", "recovered"]
    assert followed.asked == ["stream", "watch 11"]
    assert followed.requests[0]["resourceVersionMatch"] == "NotOlderThan"


def not_whole() -> Iterable[Any]:
    yield pytest.param(a_status(422), id="it does not know them")
    yield pytest.param(a_watch(line("ADDED", web("a"))), id="it has no end")
    error = line("ERROR", {"code": 504, "message": "etcd"})
    yield pytest.param(a_watch(line("ADDED", web("a")), error), id="it ends in an error")


@pytest.mark.parametrize("answer", list(not_whole()))
def test_a_streaming_list_that_comes_to_nothing_is_asked_for_once(answer: Response) -> None:
    followed = follow(
        answer, a_list("7", "a"), a_watch(GONE), a_list("20"), a_watch(), resource=STREAMED
    )
    assert followed.asked == ["stream", "list 0", "watch 7", "list", "watch 20"]
    assert followed.told[:2] == ["listed a", "recovered"]
    assert followed.pauses[:2] == [0.0, 0.0]


def test_sparing_selectors_are_asked_for_in_lists_and_watches() -> None:
    followed = follow(a_status(422), a_list("7", "a"), a_watch(), resource=SPARING)
    assert [request["fieldSelector"] for request in followed.requests] == [FIELDS] * 3


def test_a_server_that_does_not_know_the_fields_is_asked_without_from_then_on() -> None:
    followed = follow(a_status(400), a_status(422), a_list("7", "a"), a_watch(), resource=SPARING)
    fields = [request.get("fieldSelector") for request in followed.requests]
    assert fields == [FIELDS, None, None, None]
    assert followed.told == LISTED
    assert followed.pauses == [0.0, 0.0, 0.0]
