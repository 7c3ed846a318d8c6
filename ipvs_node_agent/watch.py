"""Follows one resource of the API server for ever: list once, then watch, and repeat what broke.

A `Follower` hands every change to `emit` as an event. What it guarantees: no event before the first
whole list; a list replaces everything before it; nothing that the server does or fails to do ends
it or takes a known object away, except that the server says so.

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
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Union

from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.jsonlist import BrokenList, read_list
from ipvs_node_agent.kube import Api, ApiError, Superseded, be_patient
from ipvs_node_agent.model import UnknownObject, object_key, shown
from ipvs_node_agent.watchlines import BrokenStream, Gone, Line, read_lines, version_in

log = logging.getLogger(__name__)

# Watches that end spread over a while, so that the nodes of a cluster do not come back together.
_WATCH_SECONDS = (300, 600)
_READ_SLACK = 30.0
_LIST_READ_TIMEOUT = 60.0
# A server begins the answer to a watch at once, whether there is an event or not.
_WATCH_BEGIN_TIMEOUT = 30.0
_CHUNK = 64 << 10
# A watch that lived that long ended normally, and is resumed at once.
_HEALTHY_SECONDS = 5.0
# So often a watch may break at the same version before the version itself is given up.
_BREAKS_BEFORE_LIST = 3
# What a watch may fail with for as long as it likes: a list would fail alike, or do harm (429).
_MAY_PASS = (0, 401, 403, 429, 503)
# So often a server that nobody is to be reached at is looked for, spread over the nodes.
_LOOK_SECONDS = (1.5, 3.0)

_STREAMED_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


@dataclass(frozen=True)
class Resource:
    """What to list and watch. `read` makes a value of a raw object, or raises UnknownObject.

    `selector` gives the request's selectors; it is asked each time, and may raise AgentError.
    `sparing` are further ones, for what `read` would make nothing of: a server that does not know
    them is asked without. `streamed` says that there is enough of it for a streaming list.
    """

    name: str
    path: str
    kind: str
    read: Callable[[Any], Any]
    selector: Callable[[], Mapping[str, str]]
    sparing: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False


class Listed(NamedTuple):
    """Everything there is of a resource, at one moment. `arrived` is monotonic, as everywhere."""

    resource: str
    items: tuple[Any, ...]
    arrived: float


class Changed(NamedTuple):
    """An object was made or changed."""

    resource: str
    item: Any
    arrived: float


class Deleted(NamedTuple):
    """An object is gone."""

    resource: str
    key: str
    arrived: float


class Skipped(NamedTuple):
    """Something in the stream was no such object; it was passed over."""

    resource: str
    text: str


class Trouble(NamedTuple):
    """The resource cannot be followed right now."""

    resource: str
    error: AgentError


class Recovered(NamedTuple):
    """The resource is being followed."""

    resource: str


class Restarted(NamedTuple):
    """A watch, or the attempt at one, has ended, and there will be another. See RESTART_REASONS."""

    resource: str
    reason: str


Event = Union[Listed, Changed, Deleted, Skipped, Trouble, Recovered, Restarted]

# Why a watch ended, one word each, for counting.
RESTART_REASONS = {
    "Ended": "the server ended it in time",
    "Expired": "the server no longer knows the version to go on from",
    "Unreadable": "the stream could not be read on",
    "Unreachable": "the server could not be reached, or the connection broke",
    "Refused": "the server refused it",
    "CredentialsChanged": "the credentials it was made with were replaced",
    "NoCredentials": "there are no credentials that can be used",
}


class _OtherWay(Exception):
    """The server does not know this way of asking; there is another one."""


def list_all(
    api: Api,
    resource: Resource,
    version: str,
    emit: Callable[[Event], None],
    sparing: Mapping[str, str] | None = None,
    read_timeout: float | None = None,
) -> str:
    """Lists `resource` once, emits it as `Listed`, and gives the version to watch from.

    `version` "0" takes what the server has in its cache, "" asks for the newest. It may pause for
    `read_timeout`, or a minute. Raises AgentError.
    """
    items: list[Any] = []

    def found(raw: Any) -> None:
        try:
            items.append(resource.read(raw))
        except UnknownObject as error:
            emit(Skipped(resource.name, str(error)))

    parameters = {**(sparing or {}), **resource.selector()}
    if version:
        parameters["resourceVersion"] = version
    doing = f"list {resource.name}"
    with api.get(resource.path, parameters, doing, read_timeout or _LIST_READ_TIMEOUT) as response:
        try:
            metadata = read_list(response.stream(_CHUNK, decode_content=False), found)
        except BrokenList as error:
            raise ApiError("API server", f"cannot {doing}: {error}") from None
    listed = version_in(metadata)
    if not listed:
        raise ApiError("API server", f"cannot {doing}: the list has no resourceVersion")
    emit(Listed(resource.name, tuple(items), time.monotonic()))
    return listed


class Follower:
    """Follows one resource in the thread that calls `run`."""

    def __init__(
        self,
        api: Api,
        resource: Resource,
        emit: Callable[[Event], None],
        stopped: threading.Event,
        backoff: Backoff | None = None,
    ) -> None:
        self._api, self._resource, self._emit, self._stopped = api, resource, emit, stopped
        self.name = resource.name
        self._backoff = backoff or Backoff()
        # Set by `hurry`: the next attempt need not wait any longer.
        self._hurry = threading.Event()
        self._hurried = -Backoff.CAP
        # The version to watch from; empty means that a list has to come first.
        self._version = ""
        # The first list may come from the server's cache; one after 410 must not (client-go).
        self._list_from = "0"
        self._breaks = 0
        self._listed = -_HEALTHY_SECONDS
        # When the server began to answer the present watch.
        self._begun = math.inf
        # What this server is asked for: less, once it has refused something.
        self._sparing = resource.sparing
        self._streamed = resource.streamed

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
            started, before = time.monotonic(), self._version
            failed, away, self._begun = True, False, math.inf
            try:
                if self._version:
                    self._watch()
                elif self._streamed:
                    self._stream()
                else:
                    self._list()
                failed = False
                if before or self._streamed:
                    self._restarted("Ended")
            except Gone:
                self._restarted("Expired")
                self._version = self._list_from = ""
                if started - self._listed > _HEALTHY_SECONDS:
                    continue
            except _OtherWay:
                continue
            except Superseded:
                self._restarted("CredentialsChanged")
                continue
            except BrokenStream as error:
                self._restarted("Unreadable")
                self._count_break()
                # Once is what a restart of the server looks like; only what lasts is worth a word.
                if not self._version:
                    self._trouble(AgentError("API server", f"{self._resource.name}: {error}"))
            except AgentError as error:
                self._trouble(error)
                away = isinstance(error, ApiError) and error.status == 0
                asked = "Unreachable" if away else "Refused"
                self._restarted(asked if isinstance(error, ApiError) else "NoCredentials")
                if self._version and getattr(error, "status", 0) not in _MAY_PASS:
                    self._count_break()
            if self._version and self._version != before:
                self._breaks = 0
            elif not self._lived(failed, started):
                self._wait(self._backoff.next(), away)

    def _lived(self, failed: bool, started: float) -> bool:
        """Whether what has just ended worked for a while: then its end says nothing of the next."""
        # The start alone, where it did not end by a failure: a list may take its time.
        since = self._begun if failed else started
        return time.monotonic() - since >= _HEALTHY_SECONDS

    def _trouble(self, error: AgentError) -> None:
        self._emit(Trouble(self._resource.name, error))

    def _restarted(self, reason: str) -> None:
        self._emit(Restarted(self._resource.name, reason))

    def _wait(self, seconds: float, away: bool) -> None:
        end = time.monotonic() + seconds
        # Where nobody answers at all, looking again is cheap for both sides, and a server that is
        # back is not left alone for the rest of a long wait.
        away = away and not self._api.answers()
        # Followers whose watches never last would otherwise hurry each other on without end.
        may_hurry = time.monotonic() - self._hurried >= Backoff.CAP
        woken = self._hurry if may_hurry else self._stopped
        while time.monotonic() < end:
            look = random.uniform(*_LOOK_SECONDS) if away else seconds  # noqa: S311
            if woken.wait(max(0.0, min(look, end - time.monotonic()))):
                if may_hurry:
                    self._hurried = time.monotonic()
                return
            if away and self._api.answers():
                self._backoff.reset()
                return

    def _list(self) -> None:
        with self._otherwise():
            self._version = list_all(
                self._api, self._resource, self._list_from, self._emit, self._sparing
            )
        self._listed_all()

    def _listed_all(self) -> None:
        self._list_from = "0"
        self._listed = time.monotonic()
        self._emit(Recovered(self._resource.name))

    def _stream(self) -> None:
        """A list that goes on as a watch (KEP-3157)."""
        doing = f"list {self._resource.name}"
        with self._open(_STREAMED_LIST, doing, _LIST_READ_TIMEOUT) as (response, patience):
            lines = read_lines(response, f"streaming list of {self._resource.name}")
            # What does not come to its end once may never do, and a plain list always works.
            self._streamed = False
            try:
                items, version = self._initial(lines)
            except ApiError as error:
                # Servers with an etcd before 3.4.31 or 3.5.13 say so in a stream that has begun.
                log.debug("listing %s without streaming: %s", self._resource.name, error)
                raise _OtherWay from None
            self._streamed = True
            self._emit(Listed(self._resource.name, items, time.monotonic()))
            self._version = version
            self._listed_all()
            be_patient(response, patience)
            self._follow(lines)

    def _initial(self, lines: Iterator[Line]) -> tuple[tuple[Any, ...], str]:
        """All objects that there are, and the version of that moment."""
        items: dict[str, Any] = {}
        for line in lines:
            if line.ends_initial_events and line.version:
                return tuple(items.values()), line.version
            if line.kind == "BOOKMARK":
                continue
            try:
                key = object_key(line.raw, self._resource.kind)
                if line.kind == "DELETED":
                    items.pop(key, None)
                else:
                    items[key] = self._resource.read(line.raw)
            except UnknownObject as error:
                self._skip(error)
        raise ApiError("API server", "the streaming list has no end")

    def _watch(self) -> None:
        doing = f"watch {self._resource.name}"
        at = {"resourceVersion": self._version}
        with self._open(at, doing, _WATCH_BEGIN_TIMEOUT) as (response, patience):
            self._emit(Recovered(self._resource.name))
            be_patient(response, patience)
            self._follow(read_lines(response, f"watch of {self._resource.name}"))

    @contextmanager
    def _open(
        self, how: Mapping[str, str], doing: str, begin_timeout: float
    ) -> Iterator[tuple[Any, float]]:
        """A watch, and how long it may be silent before it counts as dead."""
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311  (spreads load, hides nothing)
        parameters = {
            **self._sparing,
            **self._resource.selector(),
            **how,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        path = self._resource.path
        with self._otherwise(), self._api.get(path, parameters, doing, begin_timeout) as response:
            self._begun = time.monotonic()
            # The server ends the watch in time; if not even that is heard, the connection is dead.
            yield response, seconds + _READ_SLACK

    @contextmanager
    def _otherwise(self) -> Iterator[None]:
        """Turns a server's refusal of what it does not know into _OtherWay, and 410 into Gone."""
        try:
            yield
        except ApiError as error:
            if error.status == 410:
                raise Gone from None
            if error.status == 422 and not self._version and self._streamed:
                self._streamed = False
            elif error.status == 400 and self._sparing:
                self._sparing = {}
            else:
                raise
            log.debug("asking for the %s in another way: %s", self._resource.name, error)
            raise _OtherWay from None

    def _follow(self, lines: Iterator[Line]) -> None:
        for line in lines:
            self._take(line, time.monotonic())
            if line.version:
                self._version = line.version

    def _take(self, line: Line, arrived: float) -> None:
        name = self._resource.name
        try:
            if line.kind in ("ADDED", "MODIFIED"):
                self._emit(Changed(name, self._resource.read(line.raw), arrived))
            elif line.kind == "DELETED":
                key = object_key(line.raw, self._resource.kind)
                self._emit(Deleted(name, key, arrived))
            elif line.kind != "BOOKMARK":
                raise UnknownObject(f"an event of the unknown type {shown(line.kind)}")
        except UnknownObject as error:
            self._skip(error)

    def _skip(self, error: UnknownObject) -> None:
        self._emit(Skipped(self._resource.name, str(error)))

    def _count_break(self) -> None:
        self._breaks += 1
        if self._breaks >= _BREAKS_BEFORE_LIST:
            # Something behind this version cannot be read; a list goes around it.
            self._version, self._list_from, self._breaks = "", "", 0
