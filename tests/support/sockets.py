"""Sockets in other network namespaces, and connections that end badly."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def enter_netns(path: str) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(path).open() as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection so that its peer gets a TCP reset."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.Transport):
        transport.abort()


def free_port() -> int:
    """A TCP port of the loopback address that nobody has at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
