"""An API server in simulated time, all of whose moves are steps of a history.

It keeps objects, tells of them in lists and watches as a real one does, and does to its answers
what the steps say. A `Judge` sees all that the server and its client tell each other.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.follower import Follower
from ipvs_node_agent.errors import AgentError, RefusedError
from tests.simulation.judge import Judge, Request
from tests.simulation.search import Step, Violation

SPARING = {"fieldSelector": "spec.type!=ExternalName"}
# How long a request takes to reach the server.
_WAY = 0.005
# Above all versions that there ever are.
_FUTURE = 10**9
_MARK = {"k8s.io/initial-events-end": "true"}

# How often a watch gets a bookmark once it got one, and how long a client may wait where they stop.
_BOOKMARKS, _MOST_PATIENCE = 60.0, 180.0

# A step, and how many seconds after the last one it comes.
Timed = tuple[float, Step]


class Body:
    """An answer's body, in the place of `answer.Answer`."""

    def __init__(self, server: Server, patience: float, position: int | None, end: float) -> None:
        self._server, self._patience, self._end = server, patience, end
        # How much of the server's log a watch has; None for what is no watch.
        self._position = position
        self.ready = bytearray()
        self.closed = self.reset = self.silent = self.superseded = False
        self.bookmark_due = math.inf
        self.pump()

    def be_patient(self, seconds: float) -> None:
        self._patience = seconds

    def pump(self) -> None:
        """Has a watch send all that is new."""
        if self._position is None or self.closed:
            return
        for kind, version, raw in self._server.log:
            if version > self._position:
                self.ready += self._server.line(kind, version, raw)
        self._position = self._server.version

    def pieces(self) -> Iterator[bytes]:
        server = self._server
        while True:
            server.judge.resumed()
            self._wait()
            if self.superseded:
                raise Superseded
            piece = b"" if self.silent else self._cut()
            if piece:
                server.judge.got(piece)
                yield piece
            elif self.silent and self.bookmark_due < server.now - _MOST_PATIENCE:
                raise Violation(f"bookmarks stopped, and it waited for {self._patience} s")
            elif self.silent:
                raise OSError("timed out")
            elif not self.closed:
                raise Violation(f"given up after {self._patience} s, before the server's own end")
            elif self.reset:
                raise OSError("Connection reset by peer")
            else:
                return

    def _wait(self) -> None:
        """Lets time pass until there is something to read, for as long as the client waits."""
        server = self._server
        end = server.now + self._patience
        if self.bookmark_due < min(end, self._end) and not self.silent:
            server.pass_until(self.bookmark_due, self._moved)
            if not (self._moved() or self.silent):
                server.bookmark()
                return
        server.pass_until(min(end, max(self._end, server.now)), self._moved)
        if not self._moved() and not self.silent and server.now >= self._end:
            self.closed = True
        server.pass_until(end, self._moved)

    def _moved(self) -> bool:
        return self.superseded or (not self.silent and bool(self.ready or self.closed))

    def _cut(self) -> bytes:
        """The next piece; with the last one that it may have, the body ends."""
        server = self._server
        piece = bytes(self.ready[: next(server.sizes)])
        if server.limit is not None:
            piece = piece[: server.limit[0]]
            left, reset = server.limit[0] - len(piece), server.limit[1]
            server.limit = (left, reset)
            if not left:
                self.ready.clear()
                self.closed, self.reset, server.limit = True, reset, None
        del self.ready[: len(piece)]
        return piece


class Server:
    """The server, the time, and the one client's view of both."""

    # Its client.
    follower: Follower

    def __init__(self, history: Sequence[Timed]) -> None:
        self.now = 1000.0
        self.judge = Judge(self.clock)
        self.stopped = Event(self)
        self._steps = deque(history)
        self._due = self.now + (history[0][0] if history else 0.0)
        # What there is, and all that ever happened.
        self._objects: dict[str, Any] = {}
        self._odd = False
        self.version = 10
        self._oldest = 0
        # The newest version before the server was another one.
        self._newest = 0
        self.log: list[tuple[str, int, Any]] = []
        # Whether a client may have missed something through no fault of its own.
        self._lossy = False
        # How it behaves.
        self._streaming = self._selecting = True
        self._gone_as_event = False
        self._spoils: deque[str] = deque()
        self._refusals: deque[tuple[Any, float]] = deque()
        self._keyless = False
        self.sizes: Iterator[int] = itertools.repeat(1 << 16)
        self.limit: tuple[int, bool] | None = None
        # What comes in a streaming list in the place of its end, and in the place of a list.
        self._unmarked: bytes | None = None
        self._no_list: bytes | None = None
        self._body: Body | None = None
        # Whether the last look found anybody; a server that flaps is seen every other time.
        self._seen = True

    # Time

    def clock(self) -> float:
        return self.now

    def pass_until(self, moment: float, done: Callable[[], bool] = lambda: False) -> None:
        """Lets time pass until `moment`, or until `done` after a step."""
        while self.now < moment and not done():
            if self._steps and self._due <= moment:
                self.now = max(self.now, self._due)
                _, step = self._steps.popleft()
                if self._steps:
                    self._due = self.now + self._steps[0][0]
                step.happen(self)
            else:
                self.now = moment

    # What happens: the steps of a history

    def dice(self, seed: int) -> None:
        """First of all: those of the back-off. `follower` has thrown them then."""

    def knows(self, streaming: bool, selecting: bool) -> None:
        """Whether it knows streaming lists, and field selectors."""
        self._streaming, self._selecting = streaming, selecting

    def pieces(self, sizes: Sequence[int]) -> None:
        """Bodies arrive in pieces of these sizes from now on."""
        self.sizes = itertools.cycle(sizes)

    def put(self, name: str, value: int) -> None:
        """An object is made or changed."""
        self.version += 1
        kind = "MODIFIED" if name in self._objects else "ADDED"
        metadata = {"name": name, "namespace": "default", "resourceVersion": str(self.version)}
        self._objects[name] = {"kind": "Service", "metadata": metadata, "value": value}
        self._log(kind, self._objects[name])

    def delete(self, name: str) -> None:
        """An object is removed, where there is one."""
        if name in self._objects:
            self.version += 1
            raw = self._objects.pop(name)
            self._log("DELETED", _altered(raw, resourceVersion=str(self.version)))

    def odd(self) -> None:
        """Lists have items that are no objects, and streaming lists some that go at once."""
        self._odd = True

    def bookmark(self) -> None:
        """The open watch gets a bookmark."""
        self.send(self._bookmark())
        if self._body is not None and not self._body.silent:
            self._body.bookmark_due = self.now + _BOOKMARKS

    def send(self, data: bytes) -> None:
        """The open watch gets these bytes."""
        if self._body is not None and not self._body.closed:
            self._body.ready += data

    def spoil(self, how: str) -> None:
        """Something happens to the next event's line."""
        self._spoils.append(how)

    def cut(self, size: int, reset: bool) -> None:
        """The body that comes, or the next one, ends after so many bytes more."""
        self.limit = (size, reset)

    def late(self, data: bytes) -> None:
        """The next streaming list has this in the place of its end, and stops."""
        self._unmarked = data

    def no_list(self, data: bytes) -> None:
        """The next list is this."""
        self._no_list = data

    def close(self, reset: bool) -> None:
        """The open answer ends behind what was sent."""
        if self._body is not None and not self._body.closed:
            self._body.closed, self._body.reset = True, reset

    def silence(self) -> None:
        """Nothing more comes over the open connection, not even its end."""
        if self._body is not None:
            self._body.silent = True
            if self._body.ready:
                # Perhaps the bookmark, which then is never seen.
                self._body.bookmark_due = math.inf

    def compact(self, as_event: bool) -> None:
        """Versions before now are gone."""
        self._oldest, self._gone_as_event = self.version, as_event

    def restore(self) -> None:
        """The server is another one, with versions that were seen before."""
        self._newest = max(self._newest, self.version)
        self.version = max(self._oldest, 10, self.version - 5)
        self.log = [entry for entry in self.log if entry[1] <= self.version]
        self._lossy = True
        self.close(reset=True)

    def refuse(self, what: Any, times: int, retry_after: float) -> None:
        """The next requests are refused: with a status, no connection, or no answer.

        A server that is "flapping" takes connections only to break them.
        """
        self._refusals.extend([(what, retry_after)] * times)

    def mend(self) -> None:
        """Requests are no longer refused, and there are credentials."""
        self._refusals.clear()
        self._keyless = False

    def keyless(self) -> None:
        """There are no credentials any more."""
        self._keyless = True

    def rotate(self) -> None:
        """There are other credentials, which ends the open answer."""
        if self._body is not None:
            self._body.superseded = True
        self.hurry()

    def hurry(self) -> None:
        """Something else has reached the server."""
        self.judge.hurried()
        self.follower.hurry()

    def heal(self) -> None:
        """All is well from now on; only connections that are dead stay so."""
        self.mend()
        self._spoils.clear()
        self.limit = self._unmarked = self._no_list = None
        if self._lossy:
            # What a client could not know of, it gets with a list.
            self.close(reset=False)
            self.version = max(self.version, self._newest)
            self.put("healed", 0)
            self._oldest = self.version

    def agree(self) -> None:
        """The client must know all that there is."""
        self.judge.well(self._objects)

    def stop(self) -> None:
        """Everything ends."""
        self.judge.over = True
        self.stopped.set()
        self.rotate()

    # Lines

    def _log(self, kind: str, raw: Any) -> None:
        self.log.append((kind, self.version, raw))
        if self._body is not None:
            self._body.pump()

    def line(self, kind: str, version: int, raw: Any) -> bytes:
        """The line of an event, with what is to be done to the next one."""
        how = self._spoils.popleft() if self._spoils else ""
        versions = {
            "no version": None,
            "a number": version,
            "two lines": f"{version}\n",
            "a long one": "9" * 129,
            "nonsense": "abc",
            "old": "1",
            "future": str(_FUTURE + version),
        }
        if how in versions:
            raw = _altered(raw, resourceVersion=versions[how])
        elif how == "unknown type":
            kind, self._lossy = "FROBNICATED", True
        elif how == "unknown kind":
            raw, self._lossy = {**raw, "kind": "Pod"}, True
        elif how == "unknown name":
            raw, self._lossy = _altered(raw, name="NO\nNAME"), True
        line = event(kind, raw)
        if how == "twice":
            return line * 2
        return line[: len(line) // 2] + b"\n" if how == "cut" else line

    def _bookmark(self, **annotations: str) -> bytes:
        metadata = {"resourceVersion": str(self.version), "annotations": annotations}
        return event("BOOKMARK", {"kind": "Service", "metadata": metadata})

    # Requests, in the place of `kube.Api`

    def answers(self) -> bool:
        """Whether anybody takes connections."""
        what = self._refusals[0][0] if self._refusals else None
        self._seen = what != "connection" and not (what == "flapping" and self._seen)
        if self._seen:
            self.judge.seen()
        return self._seen

    @contextmanager
    def get(
        self, _: str, parameters: Mapping[str, str], doing: str, read_timeout: float
    ) -> Iterator[Body]:
        """An answer to a request."""
        watching = "watch" in parameters
        kind = "stream" if "sendInitialEvents" in parameters else "watch" if watching else "list"
        version = parameters.get("resourceVersion")
        self.judge.asked(Request(self.now, kind, version, "fieldSelector" in parameters))
        error: BaseException | None = None
        try:
            self._body = self._answer(kind, parameters, read_timeout)
            self.judge.begun()
            yield self._body
        except OSError as broken:
            error = _unreachable(str(broken))
            raise error from None
        except (AgentError, Superseded) as caught:
            error = caught
            raise
        finally:
            self._body = None
            self.judge.ended(error)

    def _answer(self, kind: str, parameters: Mapping[str, str], read_timeout: float) -> Body:
        if self._keyless:
            self.pass_until(self.now + _WAY)
            raise RefusedError("kubeconfig", "No such file")
        # So that what ends everything under way also ends what has no answer yet.
        self._body = Body(self, read_timeout, None, self.now + 1e9)
        self.pass_until(self.now + _WAY)
        self._refuse_if_told(read_timeout)
        if self._body.superseded:
            raise Superseded
        if kind == "stream" and not self._streaming:
            raise refusal(422)
        if "fieldSelector" in parameters and not self._selecting:
            raise refusal(400)
        if kind == "list":
            return self._list(read_timeout)
        end = self.now + int(parameters["timeoutSeconds"])
        if kind == "stream":
            return self._stream(read_timeout, end)
        return self._watch(parameters["resourceVersion"], read_timeout, end)

    def _refuse_if_told(self, read_timeout: float) -> None:
        if not self._refusals:
            return
        what, retry_after = self._refusals.popleft()
        if what in ("connection", "flapping"):
            raise _unreachable("Connection refused")
        if what == "silence":
            body = self._body
            self.pass_until(self.now + read_timeout, lambda: body is None or body.superseded)
            if body is not None and body.superseded:
                raise Superseded
            raise _unreachable("timed out")
        raise refusal(what, retry_after)

    def _list(self, patience: float) -> Body:
        body = Body(self, patience, None, self.now + 1e9)
        odd = [{"metadata": {"name": "NO NAME"}}, 7, None] if self._odd else []
        items = [*odd, *self._objects.values()]
        document = {"items": items, "metadata": {"resourceVersion": str(self.version)}}
        body.ready += json.dumps(document).encode() if self._no_list is None else self._no_list
        body.closed, self._no_list = True, None
        return body

    def _stream(self, patience: float, end: float) -> Body:
        body = Body(self, patience, self.version, end)
        for raw in self._objects.values():
            body.ready += self.line("ADDED", int(raw["metadata"]["resourceVersion"]), raw)
        if self._odd:
            ghost = {"kind": "Service", "metadata": {"name": "ghost"}}
            body.ready += event("ADDED", ghost) + event("ADDED", 7) + event("DELETED", ghost)
        if self._unmarked is None:
            body.ready += self._bookmark(**_MARK)
        else:
            body.ready += self._unmarked
            body.closed, self._unmarked = True, None
        return body

    def _watch(self, version: str, patience: float, end: float) -> Body:
        if not version.isdecimal():
            raise refusal(400)
        if int(version) > self.version:
            raise refusal(504)
        if int(version) < self._oldest:
            if not self._gone_as_event:
                raise refusal(410)
            body = Body(self, patience, None, self.now + 1e9)
            body.ready += event("ERROR", {"kind": "Status", "code": 410})
            body.closed = True
            return body
        return Body(self, patience, int(version), end)


def event(kind: Any, raw: Any) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": kind, "object": raw}).encode() + b"\n"


def refusal(status: int, retry_after: float = 0.0) -> ApiError:
    """An answer with an error status."""
    return ApiError("API server", f"refused: {status}", "", status, retry_after)


def _altered(raw: Any, **metadata: Any) -> Any:
    return {**raw, "metadata": {**raw["metadata"], **metadata}}


def _unreachable(why: str) -> ApiError:
    return ApiError("API server", why)


class Event:
    """In the place of a threading.Event: to wait for it lets the server's time pass."""

    def __init__(self, server: Server) -> None:
        self._server, self._set = server, False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float) -> bool:
        self._server.pass_until(self._server.now + timeout, self.is_set)
        return self._set
