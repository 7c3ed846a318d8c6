"""Which legacy tables there are, and whether one is the same for a fraction of what reading costs.

Nobody tells of changes. The kernel gives the number of entries and their size in a microsecond,
and most changes show there. All others show in the block of entries that the table is (what
iptables-legacy-save begins with; see linux/netfilter_ipv4/ip_tables.h and its twin for IPv6): with
the packet counts left out, it changes only when somebody replaces the table.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

_GET_INFO, _GET_ENTRIES = 64, 65
# struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
_INFO = struct.Struct("=32sI5I5III")
# struct ipt_get_entries, up to its entries.
_HEADER = struct.Struct("=32sI4x")
_TRIES = 5
_NAMES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}


# How a table is asked for, and where its entries have the offset of the next one and 16 bytes of
# counters: address family, level, and the two places.
_LAYOUTS = {
    4: (socket.AF_INET, socket.SOL_IP, 90, 96),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6, 142, 152),
}
_COUNTS = 16
# So many entries are copied at once. Most runs of so few have the lengths of another one, and share
# its Struct.
_TOGETHER = 16
_libc = ctypes.CDLL(None, use_errno=True)


def names(version: int) -> Sequence[str]:
    """The names of the legacy tables of IPv4 or IPv6 that this network namespace has."""
    try:
        return _NAMES[version].read_text().split()
    except OSError:
        return ()


class Block(NamedTuple):
    """All entries of a table at one moment but their counts: where they are, and what they hold."""

    places: tuple[struct.Struct, ...]
    digest: int


class Seen:
    """What was last seen of `table` of IPv4 or IPv6."""

    def __init__(self, version: int, table: str) -> None:
        self._family, self._level, *self._layout = _LAYOUTS[version]
        self._name = table.encode().ljust(32, b"\0")
        self._info = b""
        self._block: Block | None = None

    @property
    def known(self) -> bool:
        """Whether it was seen since it was last forgotten."""
        return bool(self._info)

    def look(self) -> None:
        """Takes note of all of it. Raises OSError."""
        self.forget()
        with self._asking() as asking:
            info, block = self._fetched(asking)
        places = _places(block, *self._layout)
        self._info, self._block = info, Block(places, _digest(block, places))

    def glance(self) -> None:
        """Takes note of its size alone. Raises OSError."""
        self.forget()
        with self._asking() as asking:
            self._info = self._told(asking)

    def forget(self) -> None:
        """Takes it for not seen."""
        self._info, self._block = b"", None

    def is_same(self, closely: bool) -> bool | None:
        """Whether it is still the same; None where that is not known. Raises OSError.

        Without looking closely, only its size is, and most that others do changes that.
        """
        if not self._info:
            return None
        with self._asking() as asking:
            if self._told(asking) != self._info:
                return False
            if not closely or self._block is None:
                return None
            info, block = self._fetched(asking)
        # Where an entry has become longer or shorter, the block is told apart by that alone.
        return info == self._info and _digest(block, self._block.places) == self._block.digest

    def _asking(self) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        return socket.socket(self._family, kind, socket.IPPROTO_RAW)

    def _told(self, asking: socket.socket) -> bytes:
        """Its number of entries, their size, and where the built-in chains begin and end."""
        info = bytearray(_INFO.pack(self._name, *[0] * 13))
        _get(asking, self._level, _GET_INFO, info)
        return bytes(info)

    def _fetched(self, asking: socket.socket) -> tuple[bytes, bytearray]:
        for _ in range(_TRIES):
            info = self._told(asking)
            size = _INFO.unpack(info)[-1]
            block = bytearray(_HEADER.size + size)
            _HEADER.pack_into(block, 0, self._name, size)
            try:
                _get(asking, self._level, _GET_ENTRIES, block)
            except BlockingIOError:  # Somebody replaced it with one of another size in between.
                continue
            return info, block
        raise OSError("the table keeps changing")


def _get(asking: socket.socket, level: int, option: int, buffer: bytearray) -> None:
    """getsockopt(2), which Python lets have no more than 1,024 bytes."""
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    length = ctypes.c_uint(len(buffer))
    if _libc.getsockopt(asking.fileno(), level, option, memory, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _places(block: bytearray, next_at: int, counts_at: int) -> tuple[struct.Struct, ...]:
    """What takes out of `block` all but the counters. Raises OSError where they cannot be told."""
    between = _between(block, next_at, counts_at)
    pieces = list(iter(lambda: "".join(islice(between, _TOGETHER)), ""))
    made = {piece: struct.Struct(f"={piece}") for piece in set(pieces)}
    return tuple(made[piece] for piece in pieces)


def _between(block: bytearray, next_at: int, counts_at: int) -> Iterator[str]:
    """What lies between the counters of one entry and those of the next, in one piece."""
    offsets = struct.Struct("=H")
    since = at = _HEADER.size
    end = len(block)
    while at < end:
        if at + counts_at + _COUNTS > end:
            raise OSError("an entry is cut off")
        (length,) = offsets.unpack_from(block, at + next_at)
        if length < counts_at + _COUNTS or at + length > end:
            raise OSError("an entry is too short")
        yield f"{at + counts_at - since}s{_COUNTS}x"
        since = at + counts_at + _COUNTS
        at += length
    yield f"{end - since}s"


def _digest(block: bytearray, places: Sequence[struct.Struct]) -> int:
    """Stands for all that is at `places`, in this process."""
    at, digests = _HEADER.size, []
    for one in places:
        digests.append(hash(one.unpack_from(block, at)))
        at += one.size
    return hash(tuple(digests))
