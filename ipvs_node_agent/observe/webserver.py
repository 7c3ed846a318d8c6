"""A small HTTP server for metrics and health, and the bounded server that it stands on.

Whoever can reach an address may be hostile, and can cost nobody but himself anything. One thread
takes connections and moves bytes, and waits for no single one of them. Few others make the
answers, each for all who have asked the same meanwhile. A connection has so much time for its
question, and for question and answer together. Where there are too many, the oldest of those goes
that have not asked yet; where all have asked, the one that has taken nothing for longest.

HTTP is GET and HEAD, a request for each connection. What a request says beyond method and path is
not looked at.
"""

from __future__ import annotations

import logging
import queue
import re
import selectors
import socket
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Callable, Generic, NamedTuple, TypeVar

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import parse_host_port

log = logging.getLogger(__name__)

Question = TypeVar("Question", bound=Hashable)

MOST_CONNECTIONS = 256
BACKLOG = 1024
_CHUNK = 16 << 10
# How long it rests where a connection cannot be taken, and there is none to give up for it.
_REST_SECONDS = 0.1

_MAX_REQUEST = 8 << 10
# For the request, and for request and answer together: as long as Prometheus waits by default.
_REQUEST_SECONDS, _SECONDS = 3.0, 10.0
# One page takes long, and is made but once at a time.
_WORKERS = 3
# What the kernel may hold of an answer that nobody takes.
_SEND_BUFFER = 64 << 10
# How often an address that could not be had is tried again.
_RETRY_SECONDS = 5.0
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(eq=False)
class _Connection:
    """One client: what it has said, and what it has not taken yet of its answer."""

    client: socket.socket
    end: float
    said: bytes = b""
    asked: bool = False
    rest: memoryview = field(init=False)


class BoundedServer(Generic[Question]):
    """Answers everybody who connects to `listener`, which is its own from now on.

    `question` makes one of the bytes that came, as soon as it can, and has to where no more will
    come (True). `answer` is called by one of `workers` threads; where it raises, the connection is
    closed. A connection has `to_ask` seconds until there is a question, and `in_all` seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        question: Callable[[bytes, bool], Question | None],
        answer: Callable[[Question], bytes],
        to_ask: float,
        in_all: float,
        workers: int,
    ) -> None:
        self._listener, self._question, self._answer = listener, question, answer
        self._to_ask, self._more, self._workers = to_ask, in_all - to_ask, workers
        self._stopped = False
        # In the order in which they are given up.
        self._connections: dict[_Connection, None] = {}
        self._waiting: dict[Question, list[_Connection]] = {}
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Question, bytes]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._alarm, self._bell = socket.socketpair()
        for one in (listener, self._alarm, self._bell):
            one.setblocking(False)

    def stop(self) -> None:
        """Has `serve` end, soon; from any thread."""
        self._stopped = True
        self._ring()

    def serve(self) -> None:
        """Serves until `stop`."""
        for _ in range(self._workers):
            threading.Thread(target=self._work, daemon=True).start()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._hand_out)
        try:
            while not self._stopped:
                for key, _ in self._selector.select(self._end_late()):
                    key.data()
        finally:
            for connection in list(self._connections):
                self._close(connection)
            for _ in range(self._workers):
                self._questions.put(None)
            for one in (self._listener, self._alarm, self._bell, self._selector):
                one.close()

    # The workers

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            # Not by a name of its own: until the next question it would keep the megabytes.
            self._answers.put((question, self._text(question)))
            self._ring()

    def _text(self, question: Question) -> bytes:
        try:
            return self._answer(question)
        except Exception:
            log.debug("cannot answer %s", question, exc_info=True)
            return b""

    def _ring(self) -> None:
        # Where it is full it has been rung, and where it is closed nobody listens.
        with suppress(OSError):
            self._bell.send(b"\0")

    # The one thread

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # It is gone already.
        except OSError:  # There are too many files, or there is too little memory.
            if not self._give_one_up():
                time.sleep(_REST_SECONDS)
            return
        client.setblocking(False)
        if len(self._connections) >= MOST_CONNECTIONS:
            self._give_one_up()
        connection = _Connection(client, time.monotonic() + self._to_ask)
        self._connections[connection] = None
        self._hear(connection, b"", over=False)

    def _read(self, connection: _Connection) -> None:
        try:
            more = connection.client.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        self._hear(connection, more, over=not more)

    def _hear(self, connection: _Connection, more: bytes, over: bool) -> None:
        connection.said += more
        question = self._question(connection.said, over)
        if question is None:
            self._watch(connection, selectors.EVENT_READ)
            return
        self._unwatch(connection)
        connection.asked = True
        connection.end += self._more
        if question not in self._waiting:
            self._questions.put(question)
        self._waiting.setdefault(question, []).append(connection)

    def _hand_out(self) -> None:
        self._alarm.recv(_CHUNK)
        with suppress(queue.Empty):
            while True:
                question, text = self._answers.get_nowait()
                for connection in self._waiting.pop(question):
                    if connection in self._connections:
                        connection.rest = memoryview(text)
                        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            count = connection.client.send(connection.rest)
        except BlockingIOError:
            count = 0
        except OSError:
            self._close(connection)
            return
        connection.rest = connection.rest[count:]
        if not connection.rest:
            self._close(connection)
            return
        self._watch(connection, selectors.EVENT_WRITE)
        if count:
            # The last to be given up.
            self._connections[connection] = self._connections.pop(connection)

    def _end_late(self) -> float | None:
        """Ends what has had its time; the seconds until the next one has."""
        now = time.monotonic()
        for connection in [one for one in self._connections if one.end <= now]:
            if connection.asked:
                self._close(connection)
            else:
                self._hear(connection, b"", over=True)
        return min((one.end - now for one in self._connections), default=None)

    def _give_one_up(self) -> bool:
        """Makes room; False where nobody is there."""
        silent = (one for one in self._connections if not one.asked)
        connection = next(silent, None) or next(iter(self._connections), None)
        if connection is not None:
            self._close(connection)
        return connection is not None

    def _close(self, connection: _Connection) -> None:
        self._unwatch(connection)
        del self._connections[connection]
        # The last one is remembered by who selected it.
        connection.rest = memoryview(b"")
        with suppress(OSError):
            connection.client.shutdown(socket.SHUT_WR)
        connection.client.close()

    def _watch(self, connection: _Connection, event: int) -> None:
        self._unwatch(connection)
        self._selector.register(connection.client, event, partial(self._go_on, connection))

    def _go_on(self, connection: _Connection) -> None:
        # What was selected together with it may have cost it its place.
        if connection in self._connections:
            (self._send if connection.asked else self._read)(connection)

    def _unwatch(self, connection: _Connection) -> None:
        with suppress(KeyError):
            self._selector.unregister(connection.client)


class Page(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Callable[[str], Page]


class _Request(NamedTuple):
    """What is asked for, or why that cannot be told."""

    method: str = ""
    path: str = ""
    error: HTTPStatus | None = None


class WebServer:
    """Serves `pages`, by path, at `address` (HOST:PORT) in threads of its own, until `stop`.

    An address that cannot be had is tried again; `after` is the server whose place it takes.
    """

    def __init__(self, address: str, pages: Pages, after: WebServer | None = None) -> None:
        self.address, self._pages = address, pages
        self._stopped = threading.Event()
        self._after = after
        self._server: BoundedServer[_Request] | None = None
        self._complaint = Once()
        self._failures: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Has it end, soon."""
        self._stopped.set()
        if self._server is not None:
            self._server.stop()

    def join(self) -> None:
        """Waits until it no longer has its address."""
        self._thread.join()

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None  # Or each would keep all before it.
        while not self._stopped.is_set():
            try:
                self._server = self._made()
            except (OSError, UnicodeError) as error:
                why = getattr(error, "strerror", None) or str(error)
                if self._complaint.new(why):
                    log.warning(
                        "cannot serve metrics and health at %s: %s"
                        " (trying again; see metricsBindAddress)",
                        self.address,
                        why,
                    )
                self._stopped.wait(_RETRY_SECONDS)
                continue
            log.info("metrics and health are served at %s", self.address)
            if self._stopped.is_set():
                self._server.stop()
            self._server.serve()

    def _made(self) -> BoundedServer[_Request]:
        """A server at the address. Raises OSError and UnicodeError."""
        listener = _listener(self.address)
        try:
            return BoundedServer(
                listener, _request, self._answer, _REQUEST_SECONDS, _SECONDS, _WORKERS
            )
        except OSError:
            # Or the next try would find the address taken.
            listener.close()
            raise

    def _answer(self, request: _Request) -> bytes:
        page = self._page(request)
        head = (
            f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}\r\n"
            f"Content-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n"
            + ("Allow: GET, HEAD\r\n" if page.status == HTTPStatus.METHOD_NOT_ALLOWED else "")
            + "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if request.method == "HEAD" else page.body)

    def _page(self, request: _Request) -> Page:
        if request.error is not None:
            return _error(request.error)
        try:
            return self._pages(request.path)
        except Exception as error:  # A bug, which must not look like an agent that is down.
            # Said once for each path, which is asked for again and again.
            path, kind, why = request.path, type(error).__name__, one_line(str(error))
            if path not in self._failures:
                log.error("cannot make %s: %s: %s (please report it)", path, kind, why)
            log.debug("cannot make %s", path, exc_info=error)
            # Others choose what they ask for, but only paths that there are can fail.
            self._failures.add(path)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR)


def _listener(address: str) -> socket.socket:
    """What listens at HOST:PORT; no host means all addresses. Raises OSError and UnicodeError."""
    host, port = parse_host_port(address)
    if not host:
        # Without IPv6, the first of what all addresses are.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (as asked for)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, resolved = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Those that it accepts have it as well.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind(resolved)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _request(said: bytes, over: bool) -> _Request | None:
    """What the bytes ask for; None where more have to come."""
    if len(said) > _MAX_REQUEST:
        return _Request(error=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if not _END.search(said):
        return _Request(error=HTTPStatus.REQUEST_TIMEOUT) if over else None
    line = _REQUEST_LINE.match(said)
    if line is None:
        return _Request(error=HTTPStatus.BAD_REQUEST)
    method, path = line[1].decode("ascii"), line[2].decode("ascii").partition("?")[0]
    if method not in ("GET", "HEAD"):
        return _Request(error=HTTPStatus.METHOD_NOT_ALLOWED)
    return _Request(method, path)


def _error(status: HTTPStatus) -> Page:
    return Page(status, f"{status.phrase}\n".encode())
