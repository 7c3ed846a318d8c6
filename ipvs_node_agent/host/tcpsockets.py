"""This network namespace's TCP sockets, and whose they are.

The kernel tells of just those that are asked for (sock_diag(7)), in a hundredth of a millisecond.
/proc/net/tcp, read where it does not, takes milliseconds even where it is empty, as the kernel goes
through every bucket of its table of connections for it.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.host import netlink
from ipvs_node_agent.model.addresses import Address

log = logging.getLogger(__name__)

End = tuple[Address, int]

_LISTENING = 10
_NETLINK_SOCK_DIAG, _BY_FAMILY = 4, 20
# struct inet_diag_req_v2: family, protocol, extensions, states; and the sockid: ports, addresses,
# interface, cookie.
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct(">HH16s16sIQ")
_NO_COOKIE = (1 << 64) - 1
# struct inet_diag_msg: family, state, timer, retransmissions; the sockid; expiry, queues, user and
# inode.
_ANSWER_HEAD, _ANSWER_TAIL = struct.Struct("=BBBB"), struct.Struct("=IIIII")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Tcp(NamedTuple):
    """A socket, with the user by number; the inode is 0 where no process has it."""

    here: End
    there: End
    listens: bool
    user: int
    inode: int


def listening(port: int) -> list[Tcp]:
    """The sockets that listen on a port, at whatever address."""
    try:
        found = [one for family in _FAMILIES for one in _told_listening(family, port)]
    except (OSError, netlink.Lost) as error:
        log.debug("the kernel does not tell who listens, looking in /proc: %s", error)
        found = list(_read_out(port))
    return [one for one in found if one.listens and one.here[1] == port]


def connected(here: End, there: End) -> Tcp | None:
    """The socket between two ends, if there is one that a process has."""
    try:
        found = [_told_connected(here, there)]
    except (OSError, netlink.Lost):
        # Also where there is none.
        found = list(_read_out(here[1]))
    return next(
        (one for one in found if (one.here, one.there) == (here, there) and one.inode), None
    )


def _told_listening(family: int, port: int) -> Iterator[Tcp]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTENING)
    body += _SOCKET_ID.pack(port, 0, b"", b"", 0, _NO_COOKIE)
    for message in netlink.dump(_NETLINK_SOCK_DIAG, _BY_FAMILY, body):
        yield _told(message.body)


def _told_connected(here: End, there: End) -> Tcp:
    family = socket.AF_INET if here[0].version == 4 else socket.AF_INET6
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    ends = here[0].packed, there[0].packed
    body += _SOCKET_ID.pack(here[1], there[1], *ends, 0, _NO_COOKIE)
    return _told(netlink.ask(_NETLINK_SOCK_DIAG, _BY_FAMILY, body).body)


def _told(body: bytes) -> Tcp:
    """The socket that a message tells of. Raises Lost."""
    try:
        family, state, _, _ = _ANSWER_HEAD.unpack_from(body)
        near, far, *raw, _, _ = _SOCKET_ID.unpack_from(body, _ANSWER_HEAD.size)
        at = _ANSWER_HEAD.size + _SOCKET_ID.size
        *_, user, inode = _ANSWER_TAIL.unpack_from(body, at)
    except struct.error:
        raise netlink.Lost from None
    size = 4 if family == socket.AF_INET else 16
    here, there = (_address(each[:size]) for each in raw)
    return Tcp((here, near), (there, far), state == _LISTENING, user, inode)


def _read_out(port: int) -> Iterator[Tcp]:
    """Those that have this port, as /proc/net/tcp and its twin show them."""
    for name in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/net/{name}").read_text("ascii", "replace")
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            # NUMBER: ADDRESS:PORT PEER STATE QUEUES TIMER RETRIES USER TIMEOUT INODE ...
            words = line.split()
            if words[1].endswith(f":{port:04X}"):
                here, there = _end(words[1]), _end(words[2])
                listens = int(words[3], 16) == _LISTENING
                yield Tcp(here, there, listens, int(words[7]), int(words[9]))


def _end(text: str) -> End:
    # 32 bits at a time, each in the machine's own order.
    raw, port = bytes.fromhex(text[:-5]), int(text[-4:], 16)
    words = (raw[place : place + 4] for place in range(0, len(raw), 4))
    order = 1 if sys.byteorder == "big" else -1
    return _address(b"".join(word[::order] for word in words)), port


def _address(packed: bytes) -> Address:
    """What is IPv4 for IPv6's sockets is IPv4."""
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address
