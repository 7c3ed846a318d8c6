"""A server to which many may connect, and which nobody can keep from answering the others.

Whoever can reach an address may be hostile, and can cost nobody but himself anything. One thread
takes connections and moves bytes, and waits for no single one of them. Few others make the
answers, each for all who have asked the same meanwhile. A connection has so much time for its
question, and for question and answer together. Where there are too many, the oldest of those goes
that have not asked yet; where all have asked, the one that has taken nothing for longest. So it
does where too much memory is in answers that are not taken.
"""

from __future__ import annotations

import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Generic, TypeVar

log = logging.getLogger(__name__)

Question = TypeVar("Question", bound=Hashable)

MOST_CONNECTIONS = 256
BACKLOG = 1024
# What all connections together may have left of several answers, in bytes.
_MOST_HELD = 64 << 20
_CHUNK = 16 << 10
# How long it rests where a connection cannot be taken, and there is none to give up for it.
_REST_SECONDS = 0.1


@dataclass(eq=False)
class _Connection:
    """One client: what it has said, and what it has not taken yet of its answer."""

    client: socket.socket
    end: float
    said: bytes = b""
    asked: bool = False
    rest: memoryview = field(default_factory=lambda: memoryview(b""))


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
                self._let_go()

    def _let_go(self) -> None:
        """Gives up who has taken nothing for longest, as long as too many texts are held."""
        while holding := [each for each in self._connections if each.rest]:
            texts = {id(each.rest.obj): memoryview(each.rest.obj).nbytes for each in holding}
            if len(texts) == 1 or sum(texts.values()) <= _MOST_HELD:
                return
            self._close(holding[0])

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
