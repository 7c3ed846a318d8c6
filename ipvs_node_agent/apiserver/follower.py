"""Follows one resource of the API server for ever: list once, then watch, and repeat what broke.

A `Follower` hands every change to `emit` as an event. What it guarantees: no event before the first
whole list; a list replaces everything before it; nothing that the server does or fails to do ends
it or takes a known object away, except that the server says so; and nothing that the server does
makes it ask more often than its back-off and a few attempts out of turn allow.

Where the server has streaming lists, list and watch are one request. What a server refuses, since
it is too old for it, is not asked for again.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable

from ipvs_node_agent.apiserver.answer import Answer, Superseded
from ipvs_node_agent.apiserver.bodies import BrokenStream, Gone, Line, read_lines
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.outcome import FOLLOWS, Ending, Outcome, Pace, Told, Version, failed
from ipvs_node_agent.apiserver.reading import UnknownObject, object_key, shown
from ipvs_node_agent.apiserver.resources import LIST_READ_TIMEOUT, Resource, list_all
from ipvs_node_agent.backoff import Backoff, Seldom, between
from ipvs_node_agent.errors import AgentError
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

log = logging.getLogger(__name__)

# Watches that end spread over a while, so that the nodes of a cluster do not come back together.
_WATCH_SECONDS = (300, 600)
_READ_SLACK = 30.0
# Whoever sends bookmarks does so each minute; where they stop, something between is dead that keeps
# its connection to us.
_BOOKMARK_PATIENCE = 150.0
# A server begins the answer to a watch at once, whether there is an event or not.
_WATCH_BEGIN_TIMEOUT = 30.0
# An answer that went on for that long worked: its end says nothing of the next.
_LIVED_SECONDS = 5.0
# So often a watch may break at the same version before the version itself is given up.
_BREAKS_BEFORE_LIST = 3
# So often a server that nobody is to be reached at is looked for, spread over the nodes.
_LOOK_SECONDS = (1.5, 3.0)

_STREAMED_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


class Follower:
    """Follows one resource in the thread that calls `run`; time and chance may be handed in."""

    def __init__(
        self,
        api: Api,
        resource: Resource,
        emit: Callable[[Event], None],
        stopped: threading.Event,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        event: Callable[[], threading.Event] = threading.Event,
    ) -> None:
        self._api, self._resource, self._emit, self._stopped = api, resource, emit, stopped
        self.name = resource.name
        self._clock, self._chance = clock, chance
        self._backoff = backoff or Backoff(clock, chance)
        self._pace = Pace(self._backoff, clock)
        self._hurry = event()
        # Followers whose watches never last would otherwise hurry each other on without end, and a
        # server that comes and goes would have all of its nodes come each time.
        self._hurries, self._looks = Seldom(Backoff.CAP, clock), Seldom(Backoff.CAP, clock)
        # The version to watch from; empty means that a list has to come first.
        self._version = ""
        # The first list may come from the server's cache; one after 410 must not (client-go).
        self._list_from = "0"
        self._breaks = 0
        # When the server began to answer the present watch.
        self._begun = math.inf
        # Less, once the server has refused something.
        self._sparing, self._streamed = resource.sparing, resource.streamed

    def hurry(self) -> None:
        """Cuts the present wait short: whatever made the last attempt fail may be mended."""
        self._hurry.set()

    def run(self) -> None:
        """Lists and watches until `stopped` is set."""
        while True:
            # Before `stopped` is looked at, as `hurry` also follows it.
            self._hurry.clear()
            if self._stopped.is_set():
                return
            before = self._version
            outcome = self._attempt()
            if self._version != before:
                self._breaks = 0
            self._heed(outcome)
            self._wait(self._pace.after(outcome), outcome)

    def _attempt(self) -> Outcome:
        self._begun = math.inf
        error: AgentError | None = None
        try:
            ending = self._ask()
        except Superseded:
            ending = Ending.SUPERSEDED
        except Gone:
            ending = Ending.EXPIRED
        except BrokenStream as broken:
            ending = Ending.UNREADABLE
            error = AgentError("API server", f"{self.name}: {broken}")
        except AgentError as refused:
            ending = Ending.OTHER_WAY if self._gave_up(refused) else failed(refused)
            error = refused
        return Outcome(ending, error, self._clock() - self._begun >= _LIVED_SECONDS)

    def _ask(self) -> Ending:
        if self._version:
            return self._watch()
        return self._stream() if self._streamed else self._list()

    def _gave_up(self, error: AgentError) -> bool:
        """Whether a way of asking was given up, as the server does not know it."""
        status = error.status if isinstance(error, ApiError) else 0
        if status == 422 and self._streamed and not self._version:
            self._streamed = False
        elif status == 400 and self._sparing:
            self._sparing = {}
        else:
            return False
        log.debug("asking for the %s in another way: %s", self.name, error)
        return True

    def _heed(self, outcome: Outcome) -> None:
        """Tells of `outcome`, and gives the version up where it has to go."""
        reason, told, version, _ = FOLLOWS[outcome.ending]
        self._breaks += version is Version.DOUBTED and self._version != ""
        if version is Version.DROPPED or self._breaks >= _BREAKS_BEFORE_LIST:
            # Something behind this version cannot be read; a list goes around it.
            self._version, self._list_from, self._breaks = "", "", 0
        always = told is Told.ALWAYS or (told is Told.WITHOUT_VERSION and not self._version)
        if outcome.error is not None and always:
            self._emit(Trouble(self.name, outcome.error, outcome.away))
        if reason:
            self._emit(Restarted(self.name, reason))

    def _wait(self, seconds: float, outcome: Outcome) -> None:
        end = self._clock() + seconds
        # Nothing but the end of everything may cut short what the server asked for.
        if outcome.least and self._stopped.wait(outcome.least):
            return
        # Where nobody answers at all, looking again is cheap for both sides, and a server that is
        # back is not left alone for the rest of a long wait.
        away = outcome.ending is Ending.UNREACHABLE and seconds > 0 and not self._api.answers()
        woken = self._hurry if self._hurries.due else self._stopped
        while (left := end - self._clock()) > 0:
            if woken.wait(min(between(*_LOOK_SECONDS, self._chance), left) if away else left):
                self._hurries.done()
                return
            if away and self._looks.due and self._api.answers():
                self._looks.done()
                self._backoff.reset()
                return

    def _list(self) -> Ending:
        def skipped(text: str) -> None:
            self._emit(Skipped(self.name, text))

        version, sparing = self._list_from, self._sparing
        self._listed(
            *list_all(self._api, self._resource, version, skipped, sparing, LIST_READ_TIMEOUT)
        )
        return Ending.LISTED

    def _listed(self, items: tuple[Any, ...], version: str) -> None:
        self._emit(Listed(self.name, items, self._clock()))
        self._version, self._list_from = version, "0"
        self._emit(Recovered(self.name))

    def _stream(self) -> Ending:
        """A list that goes on as a watch (KEP-3157)."""
        with self._open("list", _STREAMED_LIST, LIST_READ_TIMEOUT) as (answer, patience):
            lines = read_lines(answer.pieces(), f"streaming list of {self.name}")
            # What does not come to its end once may never do, and a plain list always works.
            self._streamed = False
            try:
                # In a variable, all objects would live as long as the watch.
                self._listed(*self._initial(lines))
            except ApiError as error:
                # Servers with an etcd before 3.4.31 or 3.5.13 say so in a stream that has begun.
                log.debug("listing %s without streaming: %s", self.name, error)
                return Ending.OTHER_WAY
            self._streamed = True
            return self._follow(answer, patience, lines)

    def _initial(self, lines: Iterator[Line]) -> tuple[tuple[Any, ...], str]:
        """All objects that there are, and the version of that moment."""
        items: dict[str, Any] = {}
        for line in lines:
            if line.ends_initial_events and line.version:
                return tuple(items.values()), line.version
            told = self._read(line)
            if isinstance(told, Changed):
                items[object_key(line.raw, self._resource.kind)] = told.item
            elif isinstance(told, Deleted):
                items.pop(told.key, None)
            elif told is not None:
                self._emit(told)
        raise ApiError("API server", "the streaming list has no end")

    def _watch(self) -> Ending:
        at = {"resourceVersion": self._version}
        with self._open("watch", at, _WATCH_BEGIN_TIMEOUT) as (answer, patience):
            self._emit(Recovered(self.name))
            lines = read_lines(answer.pieces(), f"watch of {self.name}")
            return self._follow(answer, patience, lines)

    @contextmanager
    def _open(
        self, verb: str, how: Mapping[str, str], begin_timeout: float
    ) -> Iterator[tuple[Answer, float]]:
        """A watch, and how long it may be silent before it counts as dead."""
        seconds = int(between(*_WATCH_SECONDS, self._chance))
        parameters = {
            **self._sparing,
            **self._resource.selector(),
            **how,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        doing = f"{verb} {self.name}"
        with self._api.get(self._resource.path, parameters, doing, begin_timeout) as answer:
            self._begun = self._clock()
            # The server ends the watch in time; if not even that is heard, the connection is dead.
            yield answer, seconds + _READ_SLACK

    def _follow(self, answer: Answer, patience: float, lines: Iterator[Line]) -> Ending:
        answer.be_patient(patience)
        for line in lines:
            if line.kind == "BOOKMARK" and line.version:
                answer.be_patient(_BOOKMARK_PATIENCE)
            told = self._read(line)
            if told is not None:
                self._emit(told)
            if line.version:
                self._version = line.version
        return Ending.ENDED

    def _read(self, line: Line) -> Changed | Deleted | Skipped | None:
        """What has just arrived with `line`; None where it tells of no object."""
        name, arrived = self.name, self._clock()
        try:
            if line.kind in ("ADDED", "MODIFIED"):
                return Changed(name, self._resource.read(line.raw), arrived)
            if line.kind == "DELETED":
                return Deleted(name, object_key(line.raw, self._resource.kind), arrived)
            if line.kind == "BOOKMARK":
                return None
            raise UnknownObject(f"an event of the unknown type {shown(line.kind)}")
        except UnknownObject as error:
            return Skipped(name, str(error))
