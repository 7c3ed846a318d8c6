"""The virtual servers of the kernel's IPVS, and who takes their connections, as /proc tells.

A virtual server by firewall mark has no address, and is left out.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, address_of

_TABLE = Path("/proc/net/ip_vs")
# Addresses and ports are in hexadecimal, but IPv6's addresses are as one writes them, in full.
_ENDPOINT = r"([0-9A-F]{8}|\[[0-9a-f:]+\]):([0-9A-F]{4})"
# A scheduler's parameters and flags, and a time for persistent ones, come behind it.
_VIRTUAL = re.compile(rf"(TCP|UDP|SCTP) +{_ENDPOINT} (\S+)")
_REAL = re.compile(rf"  -> {_ENDPOINT} +\S+ +(-?\d+) +(\d+) +(\d+)")


class RealServer(NamedTuple):
    """Who takes connections, none anew with a weight of 0; and how many it has."""

    address: Address
    port: int
    weight: int
    active: int
    inactive: int


class VirtualServer(NamedTuple):
    """An address and port that IPVS takes connections at; `protocol` is tcp, udp or sctp."""

    protocol: str
    address: Address
    port: int
    scheduler: str
    servers: tuple[RealServer, ...]


def virtual_servers() -> tuple[VirtualServer, ...] | None:
    """All of this network namespace's; None where the kernel has no IPVS, or does not tell."""
    try:
        return parse(_TABLE.read_bytes().decode("ascii", "replace"))
    except OSError:
        return None


def parse(text: str) -> tuple[VirtualServer, ...]:
    """The virtual servers in the text of /proc/net/ip_vs."""
    found: list[tuple[VirtualServer, list[RealServer]]] = []
    servers: list[RealServer] = []
    for line in text.splitlines():
        real = _REAL.match(line)
        if real is not None:
            servers.append(RealServer(*_endpoint(real[1], real[2]), *map(int, real.groups()[2:])))
        else:
            # Also of one that is left out.
            servers = []
            virtual = _VIRTUAL.match(line)
            if virtual is not None:
                at = _endpoint(virtual[2], virtual[3])
                found.append((VirtualServer(virtual[1].lower(), *at, virtual[4], ()), servers))
    return tuple(virtual._replace(servers=tuple(its)) for virtual, its in found)


def _endpoint(address: str, port: str) -> tuple[Address, int]:
    if address.startswith("["):
        packed = ipaddress.IPv6Address(address[1:-1]).packed
    else:
        packed = bytes.fromhex(address)
    return address_of(packed), int(port, 16)
