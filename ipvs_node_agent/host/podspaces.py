"""The network namespaces at the other ends of this node's interfaces, which those of pods are.

What processes and files are called proves nothing, and neither does what is in such a namespace:
that it has the other end of one of our interfaces is the kernel's word (rtnetlink(7)). What ends or
goes while it is looked at is left out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost

_NETLINK_ROUTE = 0
_GETLINK, _GETNSID = 18, 90
_LINK, _NUMBER = struct.Struct("=BxHiII"), struct.Struct("=i")
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 10, 18, 37
_IFLA_INFO_KIND = 1
_NETNSA_NSID, _NETNSA_FD = 1, 3
# Of others, as a tunnel that was moved, the other namespace is the one that it came from.
_PAIRS = (b"veth", b"netkit")
_PROC = Path("/proc")
# Where ip(8) and container runtimes keep those that no process may be in.
_KEPT = (Path("/run/netns"), Path("/run/docker/netns"))


class End(NamedTuple):
    """One end of a pair of interfaces, and the bridge that it is a port of, or none.

    `space` is this namespace's number for the one where the other end is.
    """

    name: str
    bridge: str
    space: int


def ends() -> tuple[End, ...]:
    """The interfaces of this namespace whose other ends are in another one. Raises OSError."""
    names, found = {}, []
    try:
        for message in netlink.dump(_NETLINK_ROUTE, _GETLINK, bytes(_LINK.size)):
            (_, _, index, _, _) = _LINK.unpack_from(message.body)
            told = netlink.attributes(message.body[_LINK.size :])
            name = told.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
            kind = netlink.attributes(told.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
            names[index] = name
            if kind.rstrip(b"\0") in _PAIRS and _IFLA_LINK_NETNSID in told:
                (space,) = _NUMBER.unpack(told[_IFLA_LINK_NETNSID])
                (master,) = _NUMBER.unpack(told.get(_IFLA_MASTER, bytes(4)))
                found.append((name, master, space))
    except Lost as error:
        raise OSError("the interfaces of this node change meanwhile") from error
    return tuple(End(name, names.get(master, ""), space) for name, master, space in found)


@contextmanager
def opened(wanted: Collection[int], most: int) -> Iterator[list[int]]:
    """Descriptors of `most` of the `wanted` namespaces, those with processes first."""
    with ExitStack() as files:
        found: list[int] = []
        for descriptor in _namespaces():
            if len(found) == most:
                os.close(descriptor)
                break
            number = _number_of(descriptor)
            if number >= 0 and number in wanted:
                files.callback(os.close, descriptor)
                found.append(descriptor)
            else:
                os.close(descriptor)
        yield found


def _namespaces() -> Iterator[int]:
    """A descriptor of each, which whoever gets it has to close."""
    seen = set()
    with suppress(OSError):
        for name in sorted(filter(str.isdigit, os.listdir(_PROC)), key=int):
            with suppress(OSError):
                path = _PROC / name / "ns/net"
                space = os.readlink(path)
                if space not in seen:
                    seen.add(space)
                    yield os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    for folder in _KEPT:
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                with suppress(OSError):
                    # What is no namespace at all may be a FIFO, which has nobody to wait for.
                    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    space = f"net:[{os.fstat(descriptor).st_ino}]"
                    if space in seen:
                        os.close(descriptor)
                    else:
                        seen.add(space)
                        yield descriptor


def _number_of(descriptor: int) -> int:
    """The number that this namespace has for another one; -1 where that is none or has none."""
    attribute = struct.pack("=HHI", 8, _NETNSA_FD, descriptor)
    try:
        answer = netlink.ask(_NETLINK_ROUTE, _GETNSID, bytes(4) + attribute)
        told = netlink.attributes(answer.body[4:]).get(_NETNSA_NSID, b"")
    except (OSError, Lost):
        return -1
    return int(_NUMBER.unpack(told)[0]) if len(told) == _NUMBER.size else -1
