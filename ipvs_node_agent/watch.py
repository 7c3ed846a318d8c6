"""Follows one resource of the API server for ever: list once, then watch, and repeat what broke.

A `Follower` hands every change to `emit` as an event. What it guarantees: no event before the first
whole list; a list replaces everything before it; nothing that the server does or fails to do ends
it or takes a known object away, except that the server says so.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Union

from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.jsonlist import BrokenList, read_list
from ipvs_node_agent.kube import Api, ApiError, Superseded
from ipvs_node_agent.model import UnknownObject, object_key

# Watches that end spread over a while, so that the nodes of a cluster do not come back together.
_WATCH_SECONDS = (300, 600)
_READ_SLACK = 30.0
_LIST_READ_TIMEOUT = 60.0
_CHUNK = 64 << 10
_MAX_LINE_BYTES = 32 << 20
# A watch that lived that long ended normally, and is resumed at once.
_HEALTHY_SECONDS = 5.0
# So often a watch may break at the same version before the version itself is given up.
_BREAKS_BEFORE_LIST = 3
# What a watch may fail with for as long as it likes: a list would fail alike, or do harm (429).
_MAY_PASS = (0, 401, 403, 429, 503)


@dataclass(frozen=True)
class Resource:
    """What to list and watch. `read` makes a value of a raw object, or raises UnknownObject.

    `selector` gives the request's selectors; it is asked each time, and may raise AgentError.
    """

    name: str
    path: str
    kind: str
    read: Callable[[Any], Any]
    selector: Callable[[], Mapping[str, str]]


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


Event = Union[Listed, Changed, Deleted, Skipped, Trouble, Recovered]


class Backoff:
    """Growing delays with jitter, as client-go's reflector has them: 0.8 s doubling to 30 s.

    After two minutes without a failure they start over.
    """

    FIRST, FACTOR, CAP, JITTER, RESET_AFTER = 0.8, 2.0, 30.0, 1.0, 120.0

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._chance = clock, chance
        self._delay, self._last = self.FIRST, clock()

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        now = self._clock()
        if now - self._last > self.RESET_AFTER:
            self._delay = self.FIRST
        self._last = now
        delay, self._delay = self._delay, min(self._delay * self.FACTOR, self.CAP)
        return delay * (1 + self.JITTER * self._chance())


class _Gone(Exception):
    """The server no longer knows the version to watch from (410)."""


class _BrokenStream(Exception):
    """A line of a watch that is no event."""


def list_all(api: Api, resource: Resource, version: str, emit: Callable[[Event], None]) -> str:
    """Lists `resource` once, emits it as `Listed`, and gives the version to watch from.

    `version` "0" takes what the server has in its cache, "" asks for the newest. Raises AgentError.
    """
    items: list[Any] = []

    def found(raw: Any) -> None:
        try:
            items.append(resource.read(raw))
        except UnknownObject as error:
            emit(Skipped(resource.name, str(error)))

    parameters = dict(resource.selector())
    if version:
        parameters["resourceVersion"] = version
    doing = f"list {resource.name}"
    with api.get(resource.path, parameters, doing, _LIST_READ_TIMEOUT) as response:
        try:
            metadata = read_list(response.stream(_CHUNK, decode_content=False), found)
        except BrokenList as error:
            raise ApiError("API server", f"cannot {doing}: {error}") from None
    listed = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(listed, str) or not listed:
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
            failed = True
            try:
                if self._version:
                    self._watch()
                else:
                    self._list()
                failed = False
            except _Gone:
                self._version = self._list_from = ""
                if started - self._listed > _HEALTHY_SECONDS:
                    continue
            except Superseded:
                continue
            except _BrokenStream as error:
                # Once is what a restart of the server looks like; only what lasts is worth a word.
                if not self._version:
                    self._trouble(AgentError("API server", f"{self._resource.name}: {error}"))
            except AgentError as error:
                self._trouble(error)
                if self._version and getattr(error, "status", 0) not in _MAY_PASS:
                    self._count_break()
            if self._version and self._version != before:
                self._breaks = 0
            elif failed or time.monotonic() - started < _HEALTHY_SECONDS:
                self._wait(self._backoff.next())

    def _trouble(self, error: AgentError) -> None:
        self._emit(Trouble(self._resource.name, error))

    def _wait(self, seconds: float) -> None:
        # Followers whose watches never last would otherwise hurry each other on without end.
        if time.monotonic() - self._hurried < Backoff.CAP:
            self._stopped.wait(seconds)
        elif self._hurry.wait(seconds):
            self._hurried = time.monotonic()

    def _list(self) -> None:
        self._version = list_all(self._api, self._resource, self._list_from, self._emit)
        self._list_from = "0"
        self._listed = time.monotonic()
        self._emit(Recovered(self._resource.name))

    def _watch(self) -> None:
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311  (spreads load, hides nothing)
        parameters = {
            **self._resource.selector(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        try:
            # The server ends the watch in time; if not even that is heard, the connection is dead.
            with self._api.get(
                self._resource.path,
                parameters,
                f"watch {self._resource.name}",
                seconds + _READ_SLACK,
            ) as response:
                self._emit(Recovered(self._resource.name))
                self._read_events(response)
        except ApiError as error:
            if error.status == 410:
                raise _Gone from None
            raise

    def _read_events(self, response: Any) -> None:
        rest = b""
        for chunk in response.stream(_CHUNK, decode_content=False):
            arrived = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    self._take(line, arrived)
            if len(rest) > _MAX_LINE_BYTES:
                raise self._broken("a line that is too long")
        if rest.strip():
            # The server was cut off in the middle of an event; it comes again with the next watch.
            raise self._broken("the stream broke off within an event")

    def _take(self, line: bytes, arrived: float) -> None:
        try:
            event = json.loads(line)
            kind, raw = event["type"], event["object"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._broken("a line that is no event") from None
        name = self._resource.name
        if kind == "ERROR":
            self._raise_status(raw)
        try:
            if kind in ("ADDED", "MODIFIED"):
                self._emit(Changed(name, self._resource.read(raw), arrived))
            elif kind == "DELETED":
                self._emit(Deleted(name, object_key(raw, self._resource.kind), arrived))
            elif kind != "BOOKMARK":
                raise UnknownObject(f"an event of the unknown type {kind!r}")
        except UnknownObject as error:
            self._emit(Skipped(name, str(error)))
        metadata = raw.get("metadata") if isinstance(raw, dict) else None
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if isinstance(version, str) and version:
            self._version = version

    def _raise_status(self, status: Any) -> None:
        code = status.get("code") if isinstance(status, dict) else None
        message = status.get("message") if isinstance(status, dict) else None
        if code == 410 or (
            isinstance(status, dict) and status.get("reason") in ("Expired", "Gone")
        ):
            raise _Gone
        what = f"ended the watch of {self._resource.name}: {code} {message}"
        raise ApiError("API server", what, "", code if isinstance(code, int) else 500)

    def _broken(self, why: str) -> _BrokenStream:
        self._count_break()
        return _BrokenStream(why)

    def _count_break(self) -> None:
        self._breaks += 1
        if self._breaks >= _BREAKS_BEFORE_LIST:
            # Something behind this version cannot be read; a list goes around it.
            self._version, self._list_from, self._breaks = "", "", 0
