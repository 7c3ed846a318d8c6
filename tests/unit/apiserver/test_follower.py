"""A Follower tells what there is and what changes: bytes in, events out.

What only a connection can show is in test_follower_connections.py; whatever else a server may do
is in tests/simulation.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from typing import Any, Callable, Union
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
from tests.support.living import living
from tests.support.wire import Response, WiredApi

SERVICES = Resource("services", "/api/v1/services", "Service", read_service, dict)
STREAMED = dataclasses.replace(SERVICES, streamed=True)
FIELDS = "spec.type!=ExternalName,spec.clusterIP!=None"
SPARING = dataclasses.replace(STREAMED, sparing={"fieldSelector": FIELDS})

# An error is one that asking ends with.
Answer = Union[Response, Exception]

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


def a_status(code: int) -> Response:
    return Response(code, [b'{"message": "why"}'])


GONE = line("ERROR", {"code": 410, "message": "too old"})
END_OF_STATE = bookmark("7", **{"k8s.io/initial-events-end": "true"})
LISTED = ["listed a", "recovered", "recovered"]
REFUSED = ConnectionRefusedError(111, "Connection refused")
NO_CREDENTIALS = RefusedError("kubeconfig", "No such file")


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


class Followed(WiredApi):
    """A Follower that gets `answers`, one for each request, and what came of it.

    `waiting` is called at each wait; `back` says whether somebody takes connections.
    """

    def __init__(
        self,
        *answers: Answer,
        resource: Resource = SERVICES,
        waiting: Callable[[Followed], None] = lambda followed: None,
    ) -> None:
        super().__init__(self)
        self._answers, self._waiting = list(answers), waiting
        self.requests: list[dict[str, str]] = []
        # Each request in short, and when it came.
        self.asked: list[str] = []
        self.times: list[float] = []
        # Each event in short, and beside them why watches ended.
        self.told: list[str] = []
        self.restarts: list[str] = []
        self.waits, self.back = 0, False
        self.clock = clock = Clock()
        self.stopped = self._instant()
        self.follower = Follower(
            self,
            resource,
            self._emit,
            self.stopped,
            Backoff(clock, lambda: 0.0),
            clock,
            lambda: 0.5,
            self._instant,
        )

    def _instant(self) -> Instant:
        return Instant(self.clock, self._waited)

    def _waited(self) -> None:
        self.waits += 1
        self._waiting(self)

    def answers(self) -> bool:
        return self.back

    def request(self, method: str, url: str, **_: Any) -> Response:
        """In the place of urllib3's pool."""
        assert (method, urlsplit(url).path) == ("GET", "/api/v1/services")
        if not self._answers:
            self.stopped.set()
            raise Superseded
        parameters = dict(parse_qsl(urlsplit(url).query))
        self.requests.append(parameters)
        self.asked.append(_asked(parameters))
        self.times.append(self.clock.now)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _emit(self, event: Event) -> None:
        if self.stopped.is_set():
            return
        if isinstance(event, Restarted):
            self.restarts.append(event.reason)
        else:
            self.told.append(_told(event))

    @property
    def pauses(self) -> list[float]:
        """The time between two requests."""
        return [round(after - before, 3) for before, after in zip(self.times, self.times[1:])]


def follow(*answers: Answer, **options: Any) -> Followed:
    """What came of `answers`, when there is none any more."""
    followed = Followed(*answers, **options)
    followed.follower.run()
    return followed


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
    return kind if isinstance(event, Recovered) else f"{kind}: {getattr(event, 'text', event[1])}"


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


@pytest.mark.parametrize(
    ("fields", "resource"),
    [
        (
            "metadata.name=a",
            dataclasses.replace(STREAMED, selector=lambda: {"fieldSelector": "metadata.name=a"}),
        ),
        (FIELDS, SPARING),
    ],
    ids=["selector", "sparing"],
)
def test_only_what_is_selected_is_asked_for(fields: str, resource: Resource) -> None:
    followed = follow(a_status(422), a_list("7", "a"), a_watch(), resource=resource)
    assert followed.asked == ["stream", "list 0", "watch 7"]
    assert [request["fieldSelector"] for request in followed.requests] == [fields] * 3


# 2. Versions that are gone, and streams that make no sense


@pytest.mark.parametrize(("status", "body"), [(410, b"{}"), (200, GONE)], ids=["status", "event"])
def test_a_version_that_is_gone_leads_to_a_list_of_the_newest_and_no_deletion(
    status: int, body: bytes
) -> None:
    followed = follow(a_list("7", "a"), Response(status, [body]), a_list("20", "b"), a_watch())
    assert followed.asked == ["list 0", "watch 7", "list", "watch 20"]
    assert [one for one in followed.told if one != "recovered"] == ["listed a", "listed b"]
    assert followed.restarts == ["Expired", "Ended"]
    assert followed.pauses == [0.0, 0.0, 0.0]


def test_an_event_of_an_unknown_type_is_passed_over() -> None:
    lines = line("a\nb" * 50_000, web("x", "8")), line("ADDED", web("b"))
    followed = follow(a_list("7", "a"), a_watch(*lines), a_watch())
    skipped, told = followed.told[3:5]
    assert skipped.startswith("skipped: an event of the unknown type ")
    assert "\n" not in skipped
    assert len(skipped) < 130
    assert told == "changed b 10.19.20.201"


@pytest.mark.parametrize(
    ("breaks", "rest", "reason"), [(False, b'{"ty', "Unreadable"), (True, b"", "Unreachable")]
)
def test_a_watch_that_is_cut_goes_on_from_the_last_whole_event(
    breaks: bool, rest: bytes, reason: str
) -> None:
    broken = a_watch(line("ADDED", web("b", "8")), rest, breaks=breaks)
    followed = follow(a_list("7", "a"), broken, a_watch(), a_watch())
    assert followed.asked == ["list 0", "watch 7", "watch 8", "watch 8"]
    assert followed.restarts == [reason, "Ended", "Ended"]
    assert any(one.startswith("trouble") for one in followed.told) == breaks


# 3. What fails


def test_a_list_that_breaks_off_tells_nothing_and_later_leaves_what_is_known() -> None:
    half = listing("7", "a")[:60]
    broken = "trouble: API server http://api: the connection broke: it ended in the middle"
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


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize(
    ("failing", "reason", "said"),
    [
        *((status, "Refused", f": {status} Whatever: why") for status in (401, 403, 429, 500, 503)),
        (REFUSED, "Unreachable", "API server http://api: cannot be reached: Connection refused"),
        (NO_CREDENTIALS, "NoCredentials", "kubeconfig: No such file"),
    ],
)
def test_a_failure_is_trouble_and_tried_again(
    failing: int | Exception, reason: str, said: str, verb: str
) -> None:
    failure = a_status(failing) if isinstance(failing, int) else failing
    if isinstance(failing, int):
        said = f"API server http://api: refused to {verb} services{said}"
    answers: list[Answer] = [failure, failure, a_watch()]
    answers.insert(2 if verb == "list" else 0, a_list("7", "a"))
    followed = follow(*answers)
    troubles = [one for one in followed.told if one.startswith("trouble")]
    assert len(troubles) == 2
    assert all(one.startswith(f"trouble: {said}") for one in troubles)
    assert followed.told[-1] == "recovered"
    assert followed.restarts == [reason] * 2 + ["Ended"]
    assert [pause for pause in followed.pauses if pause] == [0.8, 1.6]


def test_a_mistake_of_the_programs_own_ends_the_follower() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        follow(RuntimeError("a bug"), a_list("7", "a"))


# 4. How often


def test_watches_that_end_at_once_are_backed_off_though_each_has_news() -> None:
    watches = [a_watch(line("ADDED", web("b", str(version)))) for version in range(8, 12)]
    followed = follow(a_list("7", "a"), *watches, a_watch())
    assert followed.asked == ["list 0", "watch 7", "watch 8", "watch 9", "watch 10", "watch 11"]
    assert followed.pauses == [0.0, 0.8, 1.6, 3.2, 6.4]


def test_a_server_that_answers_with_errors_is_not_looked_for_in_between() -> None:
    followed = follow(*[a_status(500)] * 7, a_list("7"))
    assert followed.pauses == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert followed.waits == 7, "one for each pause"


def test_a_server_that_nobody_answers_for_is_looked_for_between_the_attempts() -> None:
    followed = follow(*[REFUSED] * 4, a_list("7", "a"))
    assert followed.pauses == [0.8, 1.6, 3.2, 6.4]
    assert followed.waits == 7, "within the wait every 2.25 s, and at its end"


def test_a_server_that_is_back_is_not_kept_waiting() -> None:
    def waiting(followed: Followed) -> None:
        followed.back = len(followed.times) == 4

    followed = follow(*[REFUSED] * 5, a_list("7", "a"), waiting=waiting)
    assert followed.pauses == [0.8, 1.6, 3.2, 2.25, 0.8]


def test_hurry_cuts_a_wait_short_but_not_the_next_one() -> None:
    answers = [*[a_status(500)] * 3, a_list("7", "a")]
    followed = follow(*answers, waiting=lambda one: one.follower.hurry())
    assert followed.pauses == [0.0, 1.6, 3.2]


# 5. Streaming lists, and servers that do not know what they are asked for


def test_a_streaming_list_is_one_request_that_goes_on_as_a_watch() -> None:
    lines = [line("ADDED", web("a")), line("ADDED", web("b")), END_OF_STATE]
    more = line("ADDED", web("c", "11"))
    followed = follow(a_watch(*lines, more), a_watch(), resource=STREAMED)
    assert followed.told == ["listed a b", "recovered", "changed c 10.19.20.201", "recovered"]
    assert followed.asked == ["stream", "watch 11"]
    assert followed.requests[0]["resourceVersionMatch"] == "NotOlderThan"


def test_what_a_streaming_list_told_is_not_kept_as_long_as_it_goes_on() -> None:
    kept: list[object] = []

    class Watched(Response):
        """A watch that looks at its end, before the next one begins."""

        def read1(self, amount: int) -> bytes:
            piece = super().read1(amount)
            if not piece:
                kept.append(living("default/told-once"))
            return piece

    lines = [line("ADDED", web("told-once")), END_OF_STATE, line("ADDED", web("c", "11"))]
    followed = follow(Watched(200, lines), a_watch(), resource=STREAMED)
    assert followed.told[0] == "listed told-once"
    assert kept == [[]]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(a_status(422), id="it does not know them"),
        pytest.param(a_watch(line("ADDED", web("a"))), id="it has no end"),
        pytest.param(a_watch(line("ERROR", {"code": 504})), id="it ends in an error"),
    ],
)
def test_a_streaming_list_that_comes_to_nothing_is_asked_for_once(answer: Response) -> None:
    followed = follow(
        answer, a_list("7", "a"), a_watch(GONE), a_list("20"), a_watch(), resource=STREAMED
    )
    assert followed.asked == ["stream", "list 0", "watch 7", "list", "watch 20"]
    assert followed.told[:2] == ["listed a", "recovered"]
    assert followed.pauses[:2] == [0.0, 0.0]


def test_a_server_that_does_not_know_the_fields_is_asked_without_from_then_on() -> None:
    followed = follow(a_status(400), a_status(422), a_list("7", "a"), a_watch(), resource=SPARING)
    fields = [request.get("fieldSelector") for request in followed.requests]
    assert fields == [FIELDS, None, None, None]
    assert followed.told == LISTED
    assert followed.pauses == [0.0, 0.0, 0.0]
