"""A server whose every byte a test decides, and a proxy in front of it.

No thread closes what another one reads: the next file that is opened gets its number, and TLS
would write its last alert into that file. It is shut down, and its reader closes it.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 10
Serve = Callable[[socket.socket], None]


class _Listener:
    """Has each connection served by a thread of its own, which can be broken off."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._running: list[tuple[threading.Thread, socket.socket]] = []
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._start(self._accept, listener)

    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            thread, handle = self._running.pop()
            with handle:
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # The client has left.
                thread.join(_SECONDS)
                assert not thread.is_alive()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            self._start(self._serve, connection)

    def _start(self, serve: Serve, connection: socket.socket) -> None:
        def run() -> None:
            try:
                with connection:
                    serve(connection)
            except OSError:
                pass  # The client has left.

        thread = threading.Thread(target=run, daemon=True)
        # A descriptor of its own, as TLS takes over the other one.
        self._running.append((thread, connection.dup()))
        thread.start()


class RawServer:
    """Answers each request with `head`; what follows is sent by the test over `asked()`.

    Or nothing follows, where it `hangs_up`. Whatever is said is a request to who is `hasty`.
    """

    def __init__(
        self,
        head: bytes,
        tls: ssl.SSLContext | None = None,
        hangs_up: bool = False,
        hasty: bool = False,
    ) -> None:
        self.head, self._hasty = head, hasty
        self._tls, self._hangs_up = tls, hangs_up
        self._asked: queue.Queue[socket.socket] = queue.Queue()
        # Each request, and the connection that it came by.
        self.connections: list[int] = []
        self._known: list[socket.socket] = []
        self._listener = _Listener(self._serve)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.__exit__(*error)

    def asked(self) -> socket.socket:
        """The connection of the next request, whose answer has begun."""
        return self._asked.get(timeout=_SECONDS)

    def _serve(self, connection: socket.socket) -> None:
        with self._secured(connection) as client:
            number = len(self._known)
            self._known.append(client)
            while client.recv(1 << 16) if self._hasty else _head(client):
                self.connections.append(number)
                client.sendall(self.head)
                if self._hangs_up:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                self._asked.put(client)

    def _secured(self, connection: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(connection, server_side=True) if self._tls else connection


@contextmanager
def proxied(port: int) -> Iterator[str]:
    """The URL of a proxy that leads every CONNECT to `port`."""

    def serve(client: socket.socket) -> None:
        assert _head(client).startswith(b"CONNECT ")
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as server:
            target = {client: server, server: client}
            while True:
                for source in select.select([*target], [], [])[0]:
                    got = source.recv(65536)
                    if not got:
                        return
                    target[source].sendall(got)

    with _Listener(serve) as listener:
        yield f"http://127.0.0.1:{listener.port}"


def _head(connection: socket.socket) -> bytes:
    """A request without a body; empty where there is none any more."""
    head = b""
    while b"\r\n\r\n" not in head:
        # TLS is not to be read while the test writes to it.
        select.select([connection], [], [])
        got = connection.recv(4096)
        if not got:
            return b""
        head += got
    return head
