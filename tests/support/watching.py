"""One open watch: it turns changes of the store into lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from tests.support.rest import API_VERSIONS, encode
from tests.support.selection import Term, matches
from tests.support.sockets import reset
from tests.support.store import ABSENT, Change, Store, at_version

INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}

_PIECE = 64 << 10

Action = Callable[["Watch"], Awaitable[None]]


class Watch:
    """A stream of events to one client, steered by the actions that are posted to it."""

    def __init__(
        self,
        http: web.BaseRequest,
        stream: web.StreamResponse,
        store: Store,
        kind: str,
        selector: Sequence[Term],
        bookmarks: bool,
    ) -> None:
        self._http, self._stream, self._store = http, stream, store
        self._kind, self._selector, self._bookmarks = kind, selector, bookmarks
        self._position = 0
        self._ended = False
        self._actions: asyncio.Queue[Action] = asyncio.Queue()

    def post(self, action: Action) -> None:
        """Have the watch do something, in the order of the calls."""
        self._actions.put_nowait(action)

    async def run(self, healed: asyncio.Event) -> None:
        """Send changes and do what is posted, until an action ends it.

        Whenever `healed` is not set, nothing happens at all.
        """
        while not self._ended:
            await healed.wait()
            await self._send_changes()
            action = await self._actions.get()
            await healed.wait()
            await self._send_changes()
            await action(self)

    def start_after(self, version: int) -> None:
        """Begin with the first change after a version."""
        self._position = version

    async def send_state(self, mark_end: bool) -> None:
        """Begin with an event for each object there is, and a mark if asked for."""
        objects, self._position = self._store.items(self._kind)
        told = bytearray()
        for obj in objects:
            if matches(obj, self._selector):
                told += event("ADDED", obj)
            # A write for each object would take longer than a client takes to read it.
            if len(told) >= _PIECE:
                await self.write(bytes(told))
                told.clear()
        if told:
            await self.write(bytes(told))
        if mark_end and self._bookmarks:
            await self.write(self._bookmark(INITIAL_EVENTS_END))

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.write(data)

    async def look(self) -> None:
        """Nothing but a reason to look for changes."""

    async def bookmark(self) -> None:
        """Tell the client how far it has seen, if it wants to know."""
        if self._bookmarks:
            await self.write(self._bookmark({}))

    async def end(self) -> None:
        """End the stream as a server does when the time is over."""
        self._ended = True

    async def truncate(self) -> None:
        """End the stream in the middle of a line."""
        line = self._bookmark({})
        await self.write(line[: len(line) // 2])
        self._ended = True

    async def reset(self) -> None:
        """Break the connection off."""
        self._ended = True
        if self._http.transport:
            reset(self._http.transport)

    async def _send_changes(self) -> None:
        changes, self._position = self._store.changes(self._position, self._kind)
        for change in changes:
            line = self._translate(change)
            if line:
                await self.write(line)

    def _translate(self, change: Change) -> bytes | None:
        was = change.old is not ABSENT and matches(change.old, self._selector)
        now = change.new is not ABSENT and matches(change.new, self._selector)
        if now:
            return event("MODIFIED" if was else "ADDED", change.new)
        return event("DELETED", at_version(change.old, change.version)) if was else None

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(self._position)}
        if annotations:
            metadata["annotations"] = annotations
        version = API_VERSIONS.get(self._kind, "v1")
        return event("BOOKMARK", {"kind": self._kind, "apiVersion": version, "metadata": metadata})


def event(name: str, obj: Any) -> bytes:
    """One line of a watch."""
    return encode({"type": name, "object": obj})
