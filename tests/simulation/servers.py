"""An API server in simulated time, all of whose moves are steps of a history.

It keeps objects, tells of them in lists and watches as a real one does, and does to its answers
what the steps say. Whoever asks it is watched by a `Witness`.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple, Protocol

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.errors import AgentError, RefusedError
from tests.simulation.search import Violation

SPARING = {"fieldSelector": "spec.type!=ExternalName"}
# How long a request takes to reach the server.
_WAY = 0.005
# Above all versions that there ever are.
_FUTURE = 10**9
_MARK = {"k8s.io/initial-events-end": "true"}


class Request(NamedTuple):
    """What was asked for, and when."""

    at: float
    kind: str  # list, stream or watch
    version: str | None
    sparing: bool


class Witness(Protocol):
    """Sees everything that the server and its client tell each other."""

    def asked(self, request: Request) -> None:
        """The client asks."""

    def seen(self) -> None:
        """The client looks whether anybody takes connections, and finds somebody."""

    def well(self) -> None:
        """The server has been well for long."""

    def begun(self) -> None:
        """The answer begins."""

    def resumed(self) -> None:
        """The client has taken in all that it got, and reads on."""

    def got(self, piece: bytes) -> None:
        """The client is given a piece of the body."""

    def ended(self, error: BaseException | None) -> None:
        """The request is over."""


class Body:
    """An answer's body, in the place of `answer.Answer`."""

    def __init__(self, server: Server, patience: float, position: int | None, end: float) -> None:
        self._server, self._patience, self._end = server, patience, end
        # How much of the server's log a watch has; None for what is no watch.
        self._position = position
        self.ready = bytearray()
        self.closed = self.reset = self.silent = self.superseded = False
        self.pump()

    def be_patient(self, seconds: float) -> None:
        self._patience = seconds

    def pump(self) -> None:
        """Has a watch send all that is new."""
        if self._position is None or self.closed:
            return
        for kind, version, raw in self._server.log:
            if version > self._position:
                self.ready += self._server.spoilt(kind, version, raw)
        self._position = self._server.version

    def pieces(self) -> Iterator[bytes]:
        server = self._server
        while True:
            server.witness.resumed()
            self._wait()
            if self.superseded:
                raise Superseded
            piece = b"" if self.silent else self._cut()
            if piece:
                server.witness.got(piece)
                yield piece
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

    def __init__(self, steps: Sequence[Any], witness: Witness) -> None:
        self.now = 1000.0
        self.witness = witness
        self._steps = deque(steps)
        self._due = self.now + (steps[0].after if steps else 0.0)
        # What may happen to the client.
        self.hurry: Callable[[], None] = lambda: None
        self.stop: Callable[[], None] = lambda: None
        # What there is, and all that ever happened.
        self.objects: dict[str, Any] = {}
        self.odd = False
        self.version = 10
        self.oldest = 0
        # The newest version before the server was another one.
        self.newest = 0
        self.log: list[tuple[str, int, Any]] = []
        # Whether a client may have missed something through no fault of its own.
        self.lossy = False
        # How it behaves.
        self.streaming = self.selecting = True
        self.gone_as_event = False
        self.spoils: deque[str] = deque()
        self.refusals: deque[tuple[Any, float]] = deque()
        self.keyless = False
        self.sizes: Iterator[int] = itertools.repeat(1 << 16)
        self.limit: tuple[int, bool] | None = None
        # What comes in a streaming list in the place of its end, and in the place of a list.
        self.unmarked: bytes | None = None
        self.no_list: bytes | None = None
        self.body: Body | None = None
        # Whether the last look found anybody; a server that flaps is seen every other time.
        self._seen = True

    # Time

    def pass_until(self, moment: float, done: Callable[[], bool]) -> None:
        """Lets time pass until `moment`, or until `done` after a step."""
        while self.now < moment and not done():
            if self._steps and self._due <= moment:
                self.now = max(self.now, self._due)
                step = self._steps.popleft()
                if self._steps:
                    self._due = self.now + self._steps[0].after
                step.happen(self)
            else:
                self.now = moment

    def clock(self) -> float:
        return self.now

    # Objects

    def put(self, name: str, value: int) -> None:
        """Makes or changes an object."""
        self.version += 1
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.objects[name] = self._raw(name, value)
        self.log.append((kind, self.version, self.objects[name]))
        self.pump()

    def delete(self, name: str) -> None:
        """Removes an object, where there is one."""
        raw = self.objects.pop(name, None)
        if raw is not None:
            self.version += 1
            gone = {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(self.version)}}
            self.log.append(("DELETED", self.version, gone))
            self.pump()

    def pump(self) -> None:
        """Has the open watch send what is new."""
        if self.body is not None:
            self.body.pump()

    def _raw(self, name: str, value: int) -> Any:
        metadata = {"name": name, "namespace": "default", "resourceVersion": str(self.version)}
        return {"kind": "Service", "metadata": metadata, "value": value}

    # Lines

    def spoilt(self, kind: str, version: int, raw: Any) -> bytes:
        """The line of an event, with what is to be done to the next one."""
        how = self.spoils.popleft() if self.spoils else ""
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
            raw = {**raw, "metadata": {**raw["metadata"], "resourceVersion": versions[how]}}
        elif how == "unknown type":
            kind, self.lossy = "FROBNICATED", True
        elif how == "unknown kind":
            raw, self.lossy = {**raw, "kind": "Pod"}, True
        elif how == "unknown name":
            raw = {**raw, "metadata": {**raw["metadata"], "name": "NO\nNAME"}}
            self.lossy = True
        line = event(kind, raw)
        if how == "twice":
            return line * 2
        return line[: len(line) // 2] + b"\n" if how == "cut" else line

    def bookmark(self, annotations: Mapping[str, str] | None = None) -> bytes:
        """A bookmark at the present version."""
        metadata = {"resourceVersion": str(self.version), "annotations": annotations or {}}
        return event("BOOKMARK", {"kind": "Service", "metadata": metadata})

    def send(self, data: bytes) -> None:
        """Sends bytes into the open watch."""
        if self.body is not None and not self.body.closed:
            self.body.ready += data

    def close(self, reset: bool) -> None:
        """Ends the open answer behind what was sent."""
        if self.body is not None and not self.body.closed:
            self.body.closed, self.body.reset = True, reset

    def supersede(self) -> None:
        """Ends the open answer from the client's side."""
        if self.body is not None:
            self.body.superseded = True
        self.hurry()

    def heal(self) -> None:
        """Is well from now on; only connections that are dead stay so."""
        self.refusals.clear()
        self.spoils.clear()
        self.keyless, self.limit = False, None
        self.unmarked = self.no_list = None
        if self.lossy:
            # What a client could not know of, it gets with a list.
            self.close(reset=False)
            self.version = max(self.version, self.newest)
            self.put("healed", 0)
            self.oldest = self.version

    # Requests, in the place of `kube.Api`

    def answers(self) -> bool:
        """Whether anybody takes connections."""
        what = self.refusals[0][0] if self.refusals else None
        self._seen = what != "connection" and not (what == "flapping" and self._seen)
        if self._seen:
            self.witness.seen()
        return self._seen

    @contextmanager
    def get(
        self, _: str, parameters: Mapping[str, str], doing: str, read_timeout: float
    ) -> Iterator[Body]:
        """An answer to a request."""
        watching = "watch" in parameters
        kind = "stream" if "sendInitialEvents" in parameters else "watch" if watching else "list"
        version = parameters.get("resourceVersion")
        self.witness.asked(Request(self.now, kind, version, "fieldSelector" in parameters))
        error: BaseException | None = None
        try:
            self.body = self._answer(kind, parameters, read_timeout)
            self.witness.begun()
            yield self.body
        except OSError as broken:
            error = _unreachable(str(broken))
            raise error from None
        except (AgentError, Superseded) as caught:
            error = caught
            raise
        finally:
            self.body = None
            self.witness.ended(error)

    def _answer(self, kind: str, parameters: Mapping[str, str], read_timeout: float) -> Body:
        if self.keyless:
            self.pass_until(self.now + _WAY, lambda: False)
            raise RefusedError("kubeconfig", "No such file")
        # So that what ends everything under way also ends what has no answer yet.
        self.body = Body(self, read_timeout, None, self.now + 1e9)
        self.pass_until(self.now + _WAY, lambda: False)
        self._refuse_if_told(read_timeout)
        if self.body.superseded:
            raise Superseded
        if kind == "stream" and not self.streaming:
            raise refusal(422)
        if "fieldSelector" in parameters and not self.selecting:
            raise refusal(400)
        if kind == "list":
            return self._list(read_timeout)
        end = self.now + int(parameters["timeoutSeconds"])
        if kind == "stream":
            return self._stream(read_timeout, end)
        return self._watch(parameters["resourceVersion"], read_timeout, end)

    def _refuse_if_told(self, read_timeout: float) -> None:
        if not self.refusals:
            return
        what, retry_after = self.refusals.popleft()
        if what in ("connection", "flapping"):
            raise _unreachable("Connection refused")
        if what == "silence":
            body = self.body
            self.pass_until(self.now + read_timeout, lambda: body is None or body.superseded)
            if body is not None and body.superseded:
                raise Superseded
            raise _unreachable("timed out")
        raise refusal(what, retry_after)

    def _list(self, patience: float) -> Body:
        body = Body(self, patience, None, self.now + 1e9)
        odd = [{"metadata": {"name": "NO NAME"}}, 7, None] if self.odd else []
        items = [*odd, *self.objects.values()]
        document = {"items": items, "metadata": {"resourceVersion": str(self.version)}}
        body.ready += json.dumps(document).encode() if self.no_list is None else self.no_list
        body.closed, self.no_list = True, None
        return body

    def _stream(self, patience: float, end: float) -> Body:
        body = Body(self, patience, self.version, end)
        for raw in self.objects.values():
            body.ready += self.spoilt("ADDED", int(raw["metadata"]["resourceVersion"]), raw)
        if self.odd:
            ghost = {"kind": "Service", "metadata": {"name": "ghost"}}
            body.ready += event("ADDED", ghost) + event("ADDED", 7) + event("DELETED", ghost)
        if self.unmarked is None:
            body.ready += self.bookmark(_MARK)
        else:
            body.ready += self.unmarked
            body.closed, self.unmarked = True, None
        return body

    def _watch(self, version: str, patience: float, end: float) -> Body:
        if not version.isdecimal():
            raise refusal(400)
        if int(version) > self.version:
            raise refusal(504)
        if int(version) < self.oldest:
            if not self.gone_as_event:
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
