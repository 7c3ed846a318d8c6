"""Who is a neighbour on an interface of the kind that leads to pods, as the kernel tells.

Neighbours come and go all the time, so they are asked for when somebody looks, not followed. Those
on cables, bonds and tunnels are other hosts, of which a cluster may have thousands.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost
from ipvs_node_agent.model.addresses import Address, address_of

_NETLINK_ROUTE = 0
_NEWLINK, _GETLINK, _NEWNEIGH, _GETNEIGH = 16, 18, 28, 30
_LINK, _NEIGHBOUR = struct.Struct("=BxHiII"), struct.Struct("=BxxxiHBB")
_IFLA_IFNAME, _IFLA_LINKINFO, _INFO_KIND, _NDA_DST = 3, 18, 1, 1
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 16}
# linux/neighbour.h's NUD_REACHABLE, STALE, DELAY, PROBE and PERMANENT.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
# As the kernel calls them.
_KINDS = frozenset({b"veth", b"bridge", b"openvswitch", b"netkit", b"tun"})
_ATTEMPTS = 3


def neighbours() -> frozenset[tuple[str, Address]]:
    """The names of the interfaces, and the addresses of those who are there. Raises OSError."""
    for _ in range(_ATTEMPTS):
        try:
            names = dict(_interfaces())
            return frozenset((names[at], address) for at, address in _all() if at in names)
        except Lost:
            pass  # They changed meanwhile.
    raise OSError("the neighbours of this node change all the time")


def _interfaces() -> Iterator[tuple[int, str]]:
    """The numbers and names of the interfaces that may lead to pods."""
    for message in netlink.dump(_NETLINK_ROUTE, _GETLINK, bytes(_LINK.size)):
        if message.kind == _NEWLINK:
            _, _, index, _, _ = _LINK.unpack_from(message.body)
            found = netlink.attributes(message.body[_LINK.size :])
            about = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
            if about.get(_INFO_KIND, b"").rstrip(b"\0") in _KINDS:
                name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0")
                yield index, name.decode("utf-8", "replace")


def _all() -> Iterator[tuple[int, Address]]:
    for family, length in _FAMILIES.items():
        body = bytes([family]).ljust(_NEIGHBOUR.size, b"\0")
        for message in netlink.dump(_NETLINK_ROUTE, _GETNEIGH, body):
            if message.kind != _NEWNEIGH:
                continue
            _, index, state, _, _ = _NEIGHBOUR.unpack_from(message.body)
            found = netlink.attributes(message.body[_NEIGHBOUR.size :])
            packed = found.get(_NDA_DST, b"")
            if state & _KNOWN and len(packed) == length:
                yield index, address_of(packed)
