"""Proxies, as the nginx that kubespray puts before the API server: they hand bytes on."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable

from tests.support.netns import Namespace


@contextmanager
def answering(
    namespace: Namespace, address: str, serve: Callable[[socket.socket], None]
) -> Iterator[int]:
    """The port of `address`, inside, at which `serve` has each connection, in a thread of its own.

    At the end either side may be gone first.
    """

    def serve_one(client: socket.socket) -> None:
        with suppress(OSError), client:
            serve(client)

    def run() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        listener = socket.create_server((address, 0), family=family)
    with listener:
        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(namespace: Namespace, address: str, target: tuple[str, int]) -> Iterator[int]:
    """The port of `address`, inside, at which connections are led to `target`."""

    def serve(client: socket.socket) -> None:
        with namespace.enter():
            server = socket.create_connection(target)
        with server:
            hand_on(client, server)

    with answering(namespace, address, serve) as port:
        yield port


def hand_on(left: socket.socket, right: socket.socket) -> None:
    """Hands on what either side sends, until one of them has ended."""
    while True:
        for source in select.select([left, right], [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            (right if source is left else left).sendall(data)
