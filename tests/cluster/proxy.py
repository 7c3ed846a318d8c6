"""An HTTP proxy that knows CONNECT and nothing else."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.netns import Namespace


class Proxy:
    """Listens on the loopback of a namespace, and notes where its clients wanted to go."""

    def __init__(self, namespace: Namespace, user: str) -> None:
        self._namespace = namespace
        self._wanted = "Basic " + base64.b64encode(user.encode()).decode()
        with namespace.enter():
            self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.targets: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as reader:
            method, target, _ = reader.readline().decode().split()
            headers = {}
            for line in iter(reader.readline, b"\r\n"):
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            if method != "CONNECT" or headers.get("proxy-authorization") != self._wanted:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            self.targets.append(target)
            host, _, port = target.rpartition(":")
            with self._namespace.enter():
                server = socket.create_connection((host.strip("[]"), int(port)))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # One of the two has gone.


@contextmanager
def proxy(namespace: Namespace, user: str) -> Iterator[Proxy]:
    """A proxy for one user (NAME:PASSWORD), gone at the end."""
    made = Proxy(namespace, user)
    try:
        yield made
    finally:
        made.close()
