"""What the kernel says over a netlink(7) socket, taken apart.

Only the kernel is believed: `receive` passes over what another process sent.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE, _NLMSG_OVERRUN = 2, 3, 4
_F_REQUEST, _F_DUMP, _F_DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_TYPE_MASK = 0x3FFF
_DATAGRAM = 1 << 17
_KERNEL = 0
# socket(7), which Python does not name.
_SO_RCVBUFFORCE = 33
_HEARING = 4 << 20


class Lost(Exception):
    """Messages were lost, or cannot be understood."""


class Message(NamedTuple):
    """A message's type, flags and body."""

    kind: int
    flags: int
    body: bytes


def connect(protocol: int, groups: int = 0) -> socket.socket:
    """A socket that hears what the kernel tells the multicast `groups`. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        if groups:
            # kube-proxy binds ten thousand addresses in one go. For more than others it takes root.
            with suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _HEARING)
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def receive(source: socket.socket) -> list[Message]:
    """The messages of the kernel's next datagram. Raises Lost, and OSError (ENOBUFS: some lost)."""
    while True:
        data, (sender, _) = source.recvfrom(_DATAGRAM)
        if sender == _KERNEL:
            return list(messages(data))


def dump(protocol: int, kind: int, body: bytes) -> Iterator[Message]:
    """All that the kernel has of a kind. Raises OSError, and Lost where it changed meanwhile."""
    for message in _answers(protocol, kind, _F_REQUEST | _F_DUMP, body):
        if message.kind == _NLMSG_DONE:
            # Whoever cannot tell says so only here.
            _fail(message.body)
            return
        yield message


def ask(protocol: int, kind: int, body: bytes) -> Message:
    """The kernel's answer to a single question. Raises OSError, and Lost."""
    with closing(_answers(protocol, kind, _F_REQUEST, body)) as answers:
        return next(answers)


def _answers(protocol: int, kind: int, flags: int, body: bytes) -> Generator[Message, None, None]:
    with connect(protocol) as asking:
        asking.settimeout(10.0)
        asking.sendall(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            for message in receive(asking):
                if message.flags & _F_DUMP_INTERRUPTED:
                    raise Lost
                if message.kind == _NLMSG_ERROR:
                    _fail(message.body)
                yield message


def _fail(body: bytes) -> None:
    """Raises OSError where the message's body has an error's number."""
    number = int.from_bytes(body[:4], sys.byteorder, signed=True)
    if number < 0:
        raise OSError(-number, "the kernel refuses to tell")


def messages(data: bytes) -> Iterator[Message]:
    """The messages in a datagram. Raises Lost."""
    while data:
        if len(data) < _HEADER.size:
            raise Lost
        length, kind, flags, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data) or kind == _NLMSG_OVERRUN:
            raise Lost
        yield Message(kind, flags, data[_HEADER.size : length])
        data = data[length + 3 & ~3 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes behind a message's own header; the last of each type. Raises Lost."""
    found = {}
    while data:
        if len(data) < _ATTRIBUTE.size:
            raise Lost
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise Lost
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[length + 3 & ~3 :]
    return found
