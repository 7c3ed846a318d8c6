"""What a Follower has to tell and to ask for, given the bytes that it got: a second reading."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import ApiError
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
from tests.simulation.search import Violation

# What the back-off lets pass in a minute: it begins with 0.8 s and doubles.
MOST_AFTER_WAITS = 7
# So many more where a server that was away is seen again, which ends a wait and starts over; and
# one where something else hurries it. Either comes once in half a minute.
_MORE_AFTER_LOOK = 6
_SELDOM_IN_A_MINUTE = 3
# Answers that lived for 5 s are gone on with at once; once in half a minute each comes an attempt
# out of turn behind 410 or new credentials, and one that is hurried. Each may be a list with its
# watch, and two ways of asking are given up.
MOST_IN_A_MINUTE = 2 * (MOST_AFTER_WAITS + _SELDOM_IN_A_MINUTE * (_MORE_AFTER_LOOK + 2) + 12) + 2
_MINUTE = 60.0
_SELDOM = 29.9
_LONGEST_WAIT = 60.0
# Sums of the same times may differ by so much.
_EPSILON = 1e-6
_LIVED = 5.0
_LEAST_WAIT = 0.8
_REASONS = {
    "ended": "Ended",
    "gone": "Expired",
    "superseded": "CredentialsChanged",
    "unreadable": "Unreadable",
    "unreachable": "Unreachable",
    "passing": "Refused",
    "refused": "Refused",
    "keyless": "NoCredentials",
}


class Request(NamedTuple):
    """What was asked for, and when."""

    at: float
    kind: str  # list, stream or watch
    version: str | None
    sparing: bool


@dataclass
class Attempt:
    """A request, what came of it, and what was told beside objects meanwhile."""

    request: Request
    # The version that was known when it was made.
    before: str
    # What a streaming list has so far; None behind its end, and for whatever else was asked for.
    initial: dict[str, Any] | None
    begun: float | None = None
    body: bytearray = field(default_factory=bytearray)
    # Why nothing may be read any more: gone, unreadable, or a status.
    dead: str = ""
    ending: str = ""
    # When the client was first hurried since it asked.
    hurried: float = math.inf
    troubles: list[Any] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    recovered: int = 0

    @property
    def followed(self) -> bool:
        """Whether changes are followed, or were."""
        watching = self.request.kind != "list" and self.initial is None
        return watching and self.begun is not None


class Judge:
    """Raises Violation as soon as something is told or asked that should not be, or is missing."""

    # Whether everything has ended.
    over = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # What was told, and what should have been: of objects, over all attempts.
        self._told: list[Any] = []
        self._due: list[Any] = []
        self._agreed = 0
        self._trouble_now = True
        # What a client knows.
        self._known: dict[str, Any] | None = None
        self._version = ""
        self._doubts = 0
        self._list_from: str | None = "0"
        self._no_stream = self._no_sparing = False
        self._attempt: Attempt | None = None
        # When attempts ended and began.
        self._over = self._alone_until = 0.0
        self._lived = False
        self._asked: deque[float] = deque()
        self._waited: deque[float] = deque()
        self._looks: list[float] = []
        self._hurries: list[float] = []
        # When something out of turn was done last: at once, or where a hurry surely, or maybe,
        # ended a wait.
        self._out_of_turn = self._cut_short = self._maybe_cut_short = 0.0
        # The same as the first, but for what may as well have been a hurry.
        self._surely_out_of_turn = 0.0

    @property
    def _present(self) -> Attempt:
        assert self._attempt is not None
        return self._attempt

    # What it tells

    def told_of(self, event: Event) -> None:
        """Takes what the Follower emits."""
        if isinstance(event, (Listed, Changed, Deleted)):
            self._expect(event.arrived == self._clock(), f"{event} arrived at another time")
        if isinstance(event, Listed):
            self._known = dict(event.items)
            self._told.append(("listed", sorted(event.items)))
        elif isinstance(event, (Changed, Deleted)):
            if self._known is None:
                raise Violation(f"{event} before the first list")
            if isinstance(event, Changed):
                key, value = event.item
                self._known[key] = value
                self._told.append(("changed", event.item))
            else:
                self._known.pop(event.key, None)
                self._told.append(("deleted", event.key))
        elif isinstance(event, Skipped):
            if self._present.request.kind != "list":
                self._told.append("skipped")
        elif isinstance(event, Trouble):
            self._present.troubles.append(event.error)
            self._trouble_now = True
        elif isinstance(event, Recovered):
            self._present.recovered += 1
            self._trouble_now = False
        elif isinstance(event, Restarted):
            self._present.restarts.append(event.reason)

    def well(self, objects: Mapping[str, Any]) -> None:
        """The server has been well for long: what there is must be known."""
        there = {f"default/{name}": raw["value"] for name, raw in objects.items()}
        self._expect(self._known == there, f"there is {there}, known is {self._known}")
        self._expect(not self._trouble_now, "the server is well, and there is trouble")

    # What it asks

    def asked(self, request: Request) -> None:
        """Judges the attempt that is over, and whether the next one is right."""
        self._expect(not self.over, "it asks behind the end of everything")
        if self._attempt is not None:
            self._settle(self._attempt)
            self._judge_pace(self._attempt, request.at)
        self._judge_request(request)
        initial: dict[str, Any] | None = {} if request.kind == "stream" else None
        self._attempt = Attempt(request, self._version, initial)

    def _judge_pace(self, attempt: Attempt, now: float) -> None:
        self._expect(now >= self._alone_until - _EPSILON, "it asks before Retry-After is over")
        asked = _within_a_minute(self._asked, now)
        self._expect(asked <= MOST_IN_A_MINUTE, f"{asked} requests in a minute")
        ending, wait = attempt.ending, now - self._over
        self._expect(wait <= _LONGEST_WAIT + _EPSILON, f"it waits for {wait:.1f} s")
        lived = self._lived and ending in ("ended", "unreadable", "unreachable")
        if lived or ending in ("listed", "other way"):
            self._expect(wait == 0.0, f"{ending}, and it waits for {wait:.1f} s")
            return
        # When a hurry ends a wait, or comes before one.
        hurried_at = max(attempt.hurried, self._over, self._alone_until)
        if self._over - self._maybe_cut_short >= _SELDOM + 0.2:
            self._expect(now <= hurried_at + _EPSILON, "it is hurried, and waits on")
        if abs(now - hurried_at) < _EPSILON:
            self._maybe_cut_short = now
        since = self._over - self._out_of_turn
        if ending in ("gone", "superseded") and since >= _SELDOM:
            if wait == 0.0:
                # So close to its time, it may be a hurry that ended the wait.
                if since >= _SELDOM + 0.2 or attempt.hurried == math.inf:
                    self._surely_out_of_turn = now
                self._out_of_turn = now
                return
            self._expect(since < _SELDOM + 0.2, f"{ending}, and it waits for {wait:.1f} s")
        if wait < _LEAST_WAIT - _EPSILON:
            out_of_turn = self._over - self._surely_out_of_turn >= _SELDOM
            if ending in ("gone", "superseded") and out_of_turn:
                self._surely_out_of_turn = self._out_of_turn = now
                return
            seldom = self._over - self._cut_short >= _SELDOM
            self._expect(
                attempt.hurried < math.inf and seldom, f"{ending}, and it asks again at once"
            )
            self._cut_short = now
            return
        waited = _within_a_minute(self._waited, now)
        looks, hurries = (
            min(_SELDOM_IN_A_MINUTE, sum(at > now - _MINUTE for at in times))
            for times in (self._looks, self._hurries)
        )
        most = MOST_AFTER_WAITS + _MORE_AFTER_LOOK * looks + hurries
        self._expect(waited <= most, f"{waited} attempts in a minute after waits")

    def hurried(self) -> None:
        """It may be that what keeps it from following is over."""
        self._present.hurried = min(self._present.hurried, self._clock())
        self._hurries.append(self._clock())

    def seen(self) -> None:
        """It looked whether anybody takes connections, and somebody did."""
        self._looks.append(self._clock())

    def _judge_request(self, request: Request) -> None:
        wanted: tuple[str, str | None] = ("stream", None)
        if self._version:
            wanted = ("watch", self._version)
        elif self._no_stream:
            wanted = ("list", self._list_from)
        asked = (request.kind, request.version)
        self._expect(asked == wanted, f"it asks for {asked}, wanted {wanted}")
        self._expect(request.sparing != self._no_sparing, "the selectors are not as they should be")

    def begun(self) -> None:
        """The answer has begun."""
        self._present.begun = self._clock()

    def resumed(self) -> None:
        """The client has taken in all that it got, and reads on: all of that must be told."""
        attempt = self._present
        if attempt.request.kind != "list":
            self._expect(not attempt.dead, f"it reads on behind what is {attempt.dead}")
            self._compare()
            self._expect_recovered(attempt.initial is None)

    def ended(self, error: BaseException | None) -> None:
        """The attempt is over."""
        attempt, now = self._present, self._clock()
        attempt.ending = self._ending_of(attempt, error)
        # What was given up once stays so.
        if attempt.initial is not None and attempt.begun is not None:
            self._no_stream = True
        if self._version != attempt.before:
            self._doubts = 0
        if self._version and attempt.ending in ("unreadable", "refused"):
            self._doubts += 1
        if attempt.ending == "gone" or self._doubts == 3:
            self._version, self._list_from, self._doubts = "", None, 0
        self._over = now
        self._lived = attempt.begun is not None and now - attempt.begun >= _LIVED
        self._alone_until = now + min(60.0, getattr(error, "retry_after", 0.0))

    def _ending_of(self, attempt: Attempt, error: BaseException | None) -> str:
        if isinstance(error, Superseded):
            return "superseded"
        if error is not None and not isinstance(error, ApiError):
            return "keyless"
        if attempt.dead in ("gone", "unreadable"):
            return attempt.dead
        initial = attempt.initial is not None
        if attempt.dead and initial:
            return "other way"
        if attempt.dead or error is not None:
            status = int(attempt.dead) if attempt.dead else getattr(error, "status", 0)
            return self._refusal(attempt, status)
        if attempt.request.kind == "list":
            return "listed" if self._read_list(attempt.body) else "unreachable"
        if attempt.body.strip():
            return "unreadable"
        return "other way" if initial else "ended"

    def _refusal(self, attempt: Attempt, status: int) -> str:
        if status == 400 and attempt.request.sparing:
            self._no_sparing = True
            return "other way"
        if status == 422 and attempt.initial is not None:
            self._no_stream = True
            return "other way"
        named = {0: "unreachable", 410: "gone"}
        return named.get(status, "passing" if status in (401, 403, 429, 503) else "refused")

    def _settle(self, attempt: Attempt) -> None:
        """Judges what was told of the attempt that is over."""
        self._compare()
        ending, restarts, troubles = attempt.ending, attempt.restarts, attempt.troubles
        reasons = [_REASONS[ending]] if ending in _REASONS else []
        self._expect(restarts == reasons, f"{ending} is counted {restarts}")
        trouble = ending in ("unreachable", "passing", "refused", "keyless")
        trouble = trouble or (ending == "unreadable" and not self._version)
        self._expect(len(troubles) == trouble, f"{ending} is told as {troubles}")
        self._expect_recovered(ending == "listed" or attempt.followed)

    # What it was given

    def got(self, piece: bytes) -> None:
        """The client is given a piece of the body."""
        attempt = self._present
        attempt.body += piece
        if attempt.request.kind == "list" or b"\n" not in piece:
            return
        *lines, rest = bytes(attempt.body).split(b"\n")
        attempt.body = bytearray(rest)
        for line in lines:
            if line.strip() and not attempt.dead:
                self._read_line(attempt, line)

    def _read_list(self, body: bytearray) -> bool:
        """Whether it is one that can be watched from."""
        try:
            document = json.loads(body)
        except ValueError:
            raise Violation("half a list was taken for a whole one") from None
        version = _version((document.get("metadata") or {}).get("resourceVersion"))
        if version:
            items = [thing for thing in map(_thing, document["items"]) if thing is not None]
            self._listed(dict(items), version)
        return version != ""

    def _listed(self, items: dict[str, Any], version: str) -> None:
        self._due.append(("listed", sorted(items.items())))
        self._version, self._list_from = version, "0"

    def _read_line(self, attempt: Attempt, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, raw = event["type"], event["object"]
        except (ValueError, RecursionError, LookupError, TypeError):
            attempt.dead = "unreadable"
            return
        if kind == "ERROR":
            attempt.dead = _status(raw)
            return
        metadata = _metadata(raw) or {}
        version = _version(metadata.get("resourceVersion"))
        if attempt.initial is not None and kind == "BOOKMARK" and metadata.get("annotations"):
            self._listed(attempt.initial, version)
            attempt.initial = None
            return
        thing = _thing(raw)
        if kind == "BOOKMARK":
            pass
        elif thing is None or kind not in ("ADDED", "MODIFIED", "DELETED"):
            self._due.append("skipped")
        elif attempt.initial is None:
            deleted = kind == "DELETED"
            self._due.append(("deleted", thing[0]) if deleted else ("changed", thing))
        elif kind == "DELETED":
            attempt.initial.pop(thing[0], None)
        else:
            attempt.initial[thing[0]] = thing[1]
        if attempt.initial is None:
            self._version = version or self._version

    def _compare(self) -> None:
        told, due = self._told[self._agreed :], self._due[self._agreed :]
        self._expect(told == due, f"told was {told}, wanted {due}")
        self._agreed = len(self._due)

    def _expect_recovered(self, recovered: bool) -> None:
        times = self._present.recovered
        self._expect(times == recovered, f"Recovered was told {times} times")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            request = self._attempt and self._attempt.request
            raise Violation(f"at {self._clock() - 1000:.3f} s, {request}: {otherwise}")


def _within_a_minute(times: deque[float], now: float) -> int:
    """How many of `times`, with `now`, are within the last minute."""
    times.append(now)
    while times[0] <= now - _MINUTE:
        times.popleft()
    return len(times)


def _version(value: Any) -> str:
    good = isinstance(value, str) and re.fullmatch(r"[ -~]{1,128}", value)
    return value if good else ""


def _status(raw: Any) -> str:
    """What an event of an error says: that a version is gone, or a status."""
    status = raw if isinstance(raw, dict) else {}
    if status.get("code") == 410 or status.get("reason") == "Expired":
        return "gone"
    return str(status.get("code") or 500)


def _metadata(raw: Any) -> dict[str, Any] | None:
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    return metadata if isinstance(metadata, dict) else None


def _thing(raw: Any) -> tuple[str, Any] | None:
    """The object's key and value, where it is one."""
    metadata = _metadata(raw)
    if metadata is None or raw.get("kind", "Service") != "Service":
        return None
    name = metadata.get("name")
    named = isinstance(name, str) and re.fullmatch("[a-z]+", name)
    return (f"default/{name}", raw.get("value")) if named else None
