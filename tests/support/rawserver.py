"""A server whose every byte a test decides, and a proxy in front of it."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RawServer:
    """Answers each request with `head`; what follows is sent by the test over `asked()`."""

    def __init__(self, head: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.head = head
        self._tls = tls
        self._asked: queue.Queue[socket.socket] = queue.Queue()
        self._open: list[socket.socket] = []
        # Each request, and the connection that it came by.
        self.connections: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._open:
            one.close()

    def asked(self) -> socket.socket:
        """The connection of the next request, whose answer has begun."""
        return self._asked.get(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection, len(self._open)), daemon=True
            ).start()
            self._open.append(connection)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while _head(connection):
                self.connections.append(number)
                connection.sendall(self.head)
                self._asked.put(connection)
        except OSError:
            pass  # The client has left.


@contextmanager
def proxied(port: int) -> Iterator[str]:
    """The URL of a proxy that leads every CONNECT to `port`."""
    opened: list[socket.socket] = []

    def serve() -> None:
        try:
            client, _ = listener.accept()
            opened.append(client)
            assert _head(client).startswith(b"CONNECT ")
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            behind = socket.create_connection(("127.0.0.1", port))
            opened.append(behind)
            threading.Thread(target=_relay, args=(behind, client), daemon=True).start()
            _relay(client, behind)
        except OSError:
            pass  # The client has left.

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in opened:
            one.close()


def _head(connection: socket.socket) -> bytes:
    """A request without a body; empty where there is none any more."""
    head = b""
    while b"\r\n\r\n" not in head:
        got = connection.recv(4096)
        if not got:
            return b""
        head += got
    return head


def _relay(source: socket.socket, target: socket.socket) -> None:
    try:
        while got := source.recv(65536):
            target.sendall(got)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # One of them has left.
