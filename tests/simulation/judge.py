"""What a Follower has to tell and to ask for, given the bytes that it got: a second reading."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from typing import Any

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
from tests.simulation.servers import Request, Server

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


class Judge:
    """Raises Violation as soon as something is told or asked that should not be, or is missing."""

    server: Server
    # Whether everything has ended.
    over = False

    def __init__(self) -> None:
        # What was told, and what should have been: of objects, over all attempts.
        self._told: list[Any] = []
        self._due: list[Any] = []
        self._agreed = 0
        # What was told beside, in the present attempt.
        self._troubles: list[Any] = []
        self._restarts: list[str] = []
        self._recovered = 0
        self._trouble_now = True
        # What a client knows.
        self._known: dict[str, Any] | None = None
        self._version = ""
        self._doubts = 0
        self._list_from: str | None = "0"
        self._no_stream = self._no_sparing = False
        # The present attempt.
        self._request: Request | None = None
        self._begun: float | None = None
        self._body = bytearray()
        self._before = ""
        self._initial: dict[str, Any] | None = None
        self._dead = ""
        self._ending = ""
        # When attempts ended and began.
        self._over = 0.0
        self._alone_until = 0.0
        self._lived = False
        self._asked: deque[float] = deque()
        self._waited: deque[float] = deque()
        self._looks: list[float] = []
        self._hurries: list[float] = []
        # When it was first hurried since it asked, and when that surely, or maybe, ended a wait.
        self._hurried: float | None = None
        self._out_of_turn = self._cut_short = self._maybe_cut_short = 0.0

    # What it tells

    def told_of(self, event: Event) -> None:
        """Takes what the Follower emits."""
        if isinstance(event, (Listed, Changed, Deleted)):
            self._expect(event.arrived == self.server.now, f"{event} arrived at another time")
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
            if self._request is not None and self._request.kind != "list":
                self._told.append("skipped")
        elif isinstance(event, Trouble):
            self._troubles.append(event.error)
            self._trouble_now = True
        elif isinstance(event, Recovered):
            self._recovered += 1
            self._trouble_now = False
        elif isinstance(event, Restarted):
            self._restarts.append(event.reason)

    def well(self) -> None:
        """The server has been well for long: what there is must be known."""
        there = {f"default/{name}": raw["value"] for name, raw in self.server.objects.items()}
        self._expect(self._known == there, f"there is {there}, known is {self._known}")
        self._expect(not self._trouble_now, "the server is well, and there is trouble")

    # What it asks

    def asked(self, request: Request) -> None:
        """Judges the attempt that is over, and whether the next one is right."""
        self._expect(not self.over, "it asks behind the end of everything")
        if self._request is not None:
            self._settle()
            self._judge_pace(request)
        self._judge_request(request)
        self._request, self._begun = request, None
        self._body = bytearray()
        self._before = self._version
        self._initial = {} if request.kind == "stream" else None
        self._dead, self._hurried = "", None
        self._troubles, self._restarts, self._recovered = [], [], 0

    def _judge_pace(self, request: Request) -> None:
        now = request.at
        self._expect(now >= self._alone_until - _EPSILON, "it asks before Retry-After is over")
        asked = _within_a_minute(self._asked, now)
        self._expect(asked <= MOST_IN_A_MINUTE, f"{asked} requests in a minute")
        lived = self._lived and self._ending in ("ended", "unreadable", "unreachable")
        wait = now - self._over
        self._expect(wait <= _LONGEST_WAIT + _EPSILON, f"it waits for {wait:.1f} s")
        if lived or self._ending in ("listed", "other way"):
            self._expect(wait == 0.0, f"{self._ending}, and it waits for {wait:.1f} s")
            return
        # When a hurry ends a wait, or comes before one.
        hurried_at = max(self._hurried or math.inf, self._over, self._alone_until)
        if self._over - self._maybe_cut_short >= _SELDOM + 0.2:
            self._expect(now <= hurried_at + _EPSILON, "it is hurried, and waits on")
        if abs(now - hurried_at) < _EPSILON:
            self._maybe_cut_short = now
        since = self._over - self._out_of_turn
        if self._ending in ("gone", "superseded") and since >= _SELDOM:
            if wait == 0.0:
                self._out_of_turn = now
                return
            self._expect(since < _SELDOM + 0.2, f"{self._ending}, and it waits for {wait:.1f} s")
        self._judge_wait(now, wait)

    def _judge_wait(self, now: float, wait: float) -> None:
        """Whether a wait is long enough."""
        if wait >= _LEAST_WAIT - _EPSILON:
            waited = _within_a_minute(self._waited, now)
            looks, hurries = (
                min(_SELDOM_IN_A_MINUTE, sum(at > now - _MINUTE for at in times))
                for times in (self._looks, self._hurries)
            )
            most = MOST_AFTER_WAITS + _MORE_AFTER_LOOK * looks + hurries
            self._expect(waited <= most, f"{waited} attempts in a minute after waits")
        else:
            hurried = self._hurried is not None and self._over - self._cut_short >= _SELDOM
            self._expect(hurried, f"{self._ending}, and it asks again at once")
            self._cut_short = now

    def hurried(self) -> None:
        """It may be that what keeps it from following is over."""
        now = self.server.now
        self._hurried = now if self._hurried is None else self._hurried
        self._hurries.append(now)

    def seen(self) -> None:
        """It looked whether anybody takes connections, and somebody did."""
        self._looks.append(self.server.now)

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
        self._begun = self.server.now

    def resumed(self) -> None:
        """All that has arrived must have been told."""
        if self._request is None or self._request.kind == "list":
            return
        self._expect(not self._dead, f"it reads on behind what is {self._dead}")
        self._compare()
        followed = self._initial is None
        self._expect(self._recovered == followed, f"Recovered was told {self._recovered} times")

    def ended(self, error: BaseException | None) -> None:
        """The attempt is over."""
        request = self._request
        assert request is not None
        ending = self._ending_of(request, error)
        # What was given up once stays so.
        if self._initial is not None and self._begun is not None:
            self._no_stream = True
        if self._version != self._before:
            self._doubts = 0
        if self._version and ending in ("unreadable", "refused"):
            self._doubts += 1
        if ending == "gone" or self._doubts == 3:
            self._version, self._list_from, self._doubts = "", None, 0
        now = self.server.now
        self._ending, self._over = ending, now
        self._lived = self._begun is not None and now - self._begun >= _LIVED
        self._alone_until = now + min(60.0, getattr(error, "retry_after", 0.0))

    def _ending_of(self, request: Request, error: BaseException | None) -> str:
        if isinstance(error, Superseded):
            return "superseded"
        if error is not None and not isinstance(error, ApiError):
            return "keyless"
        if self._dead in ("gone", "unreadable"):
            return self._dead
        initial = self._initial is not None
        if self._dead and initial:
            return "other way"
        if self._dead or error is not None:
            status = int(self._dead) if self._dead else getattr(error, "status", 0)
            return self._refusal(request, status)
        if request.kind == "list":
            return "listed" if self._read_list() else "unreachable"
        if self._body.strip():
            return "unreadable"
        return "other way" if initial else "ended"

    def _refusal(self, request: Request, status: int) -> str:
        if status == 400 and request.sparing:
            self._no_sparing = True
            return "other way"
        if status == 422 and self._initial is not None:
            self._no_stream = True
            return "other way"
        if status == 410:
            return "gone"
        if status == 0:
            return "unreachable"
        return "passing" if status in (401, 403, 429, 503) else "refused"

    def _settle(self) -> None:
        """Judges what was told of the attempt that is over."""
        self._compare()
        ending, request = self._ending, self._request
        assert request is not None
        reason = _REASONS.get(ending)
        self._expect(
            self._restarts == ([reason] if reason else []), f"{ending} is counted {self._restarts}"
        )
        trouble = ending in ("unreachable", "passing", "refused", "keyless") or (
            ending == "unreadable" and not self._version
        )
        self._expect(len(self._troubles) == trouble, f"{ending} is told as {self._troubles}")
        followed = ending == "listed" or (
            self._begun is not None and request.kind != "list" and self._initial is None
        )
        self._expect(self._recovered == followed, f"Recovered was told {self._recovered} times")

    # What it was given

    def got(self, piece: bytes) -> None:
        """Reads a piece of the body."""
        assert self._request is not None
        self._body += piece
        if self._request.kind == "list" or b"\n" not in piece:
            return
        *lines, rest = bytes(self._body).split(b"\n")
        self._body = bytearray(rest)
        for line in lines:
            if line.strip() and not self._dead:
                self._read_line(line)

    def _read_list(self) -> bool:
        """Whether it is one that can be watched from."""
        try:
            document = json.loads(self._body)
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

    def _read_line(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, raw = event["type"], event["object"]
        except (ValueError, RecursionError, LookupError, TypeError):
            self._dead = "unreadable"
            return
        if kind == "ERROR":
            self._read_status(raw)
            return
        metadata = raw.get("metadata") if isinstance(raw, dict) else None
        metadata = metadata if isinstance(metadata, dict) else {}
        version = _version(metadata.get("resourceVersion"))
        marked = kind == "BOOKMARK" and bool(metadata.get("annotations"))
        if self._initial is not None and marked:
            items, self._initial = self._initial, None
            self._listed(items, version)
            return
        thing = _thing(raw)
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            self._due.extend([] if kind == "BOOKMARK" else ["skipped"])
        elif thing is None:
            self._due.append("skipped")
        elif self._initial is None:
            deleted = kind == "DELETED"
            self._due.append(("deleted", thing[0]) if deleted else ("changed", thing))
        elif kind == "DELETED":
            self._initial.pop(thing[0], None)
        else:
            self._initial[thing[0]] = thing[1]
        if self._initial is None:
            self._version = version or self._version

    def _read_status(self, status: Any) -> None:
        status = status if isinstance(status, dict) else {}
        code = status.get("code")
        if code == 410 or status.get("reason") == "Expired":
            self._dead = "gone"
        else:
            self._dead = str(code or 500)

    def _compare(self) -> None:
        told, due = self._told[self._agreed :], self._due[self._agreed :]
        self._expect(told == due, f"told was {told}, wanted {due}")
        self._agreed = len(self._due)

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(f"at {self.server.now - 1000:.3f} s, {self._request}: {otherwise}")


def _within_a_minute(times: deque[float], now: float) -> int:
    """How many of `times`, with `now`, are within the last minute."""
    times.append(now)
    while times[0] <= now - _MINUTE:
        times.popleft()
    return len(times)


def _version(value: Any) -> str:
    good = isinstance(value, str) and re.fullmatch(r"[ -~]{1,128}", value)
    return value if good else ""


def _thing(raw: Any) -> tuple[str, Any] | None:
    """The object's key and value, where it is one."""
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    if not isinstance(metadata, dict) or raw.get("kind", "Service") != "Service":
        return None
    name = metadata.get("name")
    named = isinstance(name, str) and re.fullmatch("[a-z]+", name)
    return (f"default/{name}", raw.get("value")) if named else None
