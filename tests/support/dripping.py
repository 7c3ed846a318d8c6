"""A peer that never comes to an end, and never falls silent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable

from tests.support.meanwhile import meanwhile

_PAUSE = 0.02


@contextmanager
def dripping(
    connect: Callable[[], socket.socket], drop: bytes, pause: float = _PAUSE
) -> Iterator[None]:
    """Meanwhile one drop after the other is sent over what `connect` gives."""
    peers: list[socket.socket] = []

    def drip() -> None:
        if not peers:
            peers.append(connect())
        with suppress(OSError):  # The other end has given it up.
            peers[0].send(drop)

    with meanwhile(drip, pause):
        yield
