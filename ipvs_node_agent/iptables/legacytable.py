"""Which legacy tables there are, and whether one is the same for a fraction of what reading costs.

The kernel hands out a legacy table as the block of entries that it is (what iptables-legacy-save
begins with; see linux/netfilter_ipv4/ip_tables.h and its twin for IPv6). With the packet counts
left out, the block changes only when somebody replaces the table.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

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
_NO_COUNTS = bytes(16)
_libc = ctypes.CDLL(None, use_errno=True)


def names(version: int) -> Sequence[str]:
    """The names of the legacy tables of IPv4 or IPv6 that this network namespace has."""
    try:
        return _NAMES[version].read_text().split()
    except OSError:
        return ()


def digest(version: int, table: str) -> bytes:
    """Stands for all of `table` of IPv4 or IPv6 but its counts. Raises OSError."""
    name = table.encode().ljust(32, b"\0")
    family, level, next_at, counts_at = _LAYOUTS[version]
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as asking:
        for _ in range(_TRIES):
            info = bytearray(_INFO.pack(name, *[0] * 13))
            _get(asking, level, _GET_INFO, info)
            size = _INFO.unpack(info)[-1]
            block = bytearray(_HEADER.size + size)
            _HEADER.pack_into(block, 0, name, size)
            try:
                _get(asking, level, _GET_ENTRIES, block)
            except BlockingIOError:  # Somebody replaced it with one of another size in between.
                continue
            return hashlib.blake2b(_without_counts(block, next_at, counts_at)).digest()
    raise OSError("the table does not stand still")


def _get(asking: socket.socket, level: int, option: int, buffer: bytearray) -> None:
    """getsockopt(2), which Python lets have no more than 1,024 bytes."""
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    length = ctypes.c_uint(len(buffer))
    if _libc.getsockopt(asking.fileno(), level, option, memory, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _without_counts(block: bytearray, next_at: int, counts_at: int) -> memoryview:
    """The entries in `block`, their counters zero. Raises OSError where they cannot be told."""
    offsets = struct.Struct("=H")
    at, end = _HEADER.size, len(block)
    while at < end:
        if at + counts_at + 16 > end:
            raise OSError("an entry is cut off")
        (length,) = offsets.unpack_from(block, at + next_at)
        if length < counts_at + 16:
            raise OSError("an entry is too short")
        block[at + counts_at : at + counts_at + 16] = _NO_COUNTS
        at += length
    return memoryview(block)[_HEADER.size :]
