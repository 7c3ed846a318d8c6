"""A peer that never comes to an end, and never falls silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

_PAUSE = 0.02


@contextmanager
def dripping(
    connect: Callable[[], socket.socket], drop: bytes, pause: float = _PAUSE
) -> Iterator[None]:
    """Meanwhile one drop after the other is sent over what `connect` gives."""
    stopped = threading.Event()

    def drip() -> None:
        one = connect()
        while not stopped.wait(pause):
            try:
                one.send(drop)
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
