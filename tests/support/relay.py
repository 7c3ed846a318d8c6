"""A proxy that hands bytes on, as the nginx that kubespray puts before the API server."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.netns import Namespace


@contextmanager
def relay(namespace: Namespace, address: str, target: tuple[str, int]) -> Iterator[int]:
    """The port of `address`, inside, at which connections are led to `target`."""

    def serve(client: socket.socket) -> None:
        # At the end either side may be gone first.
        with suppress(OSError), client:
            with namespace.enter():
                server = socket.create_connection(target)
            with server:
                hand_on(client, server)

    def run() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        listener = socket.create_server((address, 0), family=family)
    with listener:
        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def hand_on(left: socket.socket, right: socket.socket) -> None:
    """Hands on what either side sends, until one of them has ended."""
    while True:
        for source in select.select([left, right], [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            (right if source is left else left).sendall(data)
