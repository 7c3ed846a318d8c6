"""Which way the kernel would send a packet of this host's, as it reports (rtnetlink(7)).

An address that is the host's own may have another one as its source: the second of a subnet has the
first. So the kernel is asked for the kind of the route, and nothing is guessed.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost
from ipvs_node_agent.model.addresses import Address, address_of

_NETLINK_ROUTE, _GETROUTE, _NEWROUTE = 0, 26, 24
_ROUTE, _ATTRIBUTE = struct.Struct("=8BI"), struct.Struct("=HH")
_DST, _OIF, _PREFSRC = 1, 4, 7
_LOCAL = 2


class Way(NamedTuple):
    """The way to an address: whether that is this host's own, from which source, and by whom."""

    is_local: bool
    source: Address
    interface: str


def way_to(address: Address) -> Way | None:
    """The way of a packet to `address`; None where there is no route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    header = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _DST) + address.packed
    try:
        told = netlink.ask(_NETLINK_ROUTE, _GETROUTE, header + attribute)
        *_, kind, _ = _ROUTE.unpack_from(told.body)
        found = netlink.attributes(told.body[_ROUTE.size :])
    except (OSError, Lost, struct.error):
        return None
    source, index = found.get(_PREFSRC, b""), found.get(_OIF, b"")
    if told.kind != _NEWROUTE or len(source) != len(address.packed) or len(index) != 4:
        return None
    name = ""
    with suppress(OSError):
        name = socket.if_indextoname(*struct.unpack("=I", index))
    return Way(kind == _LOCAL, address_of(source), name)
