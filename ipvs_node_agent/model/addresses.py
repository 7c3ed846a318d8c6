"""IP addresses and prefixes from outside: parsed strictly, printed as iptables-save prints them."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class Family:
    """An address family, and the iptables command that goes with it."""

    name: str
    version: int
    command: str
    bits: int

    def __str__(self) -> str:
        return self.name


IPV4 = Family("IPv4", 4, "iptables", 32)
IPV6 = Family("IPv6", 6, "ip6tables", 128)
FAMILIES = (IPV4, IPV6)

# Python before 3.9.5 reads 010.0.0.1 as 10.0.0.1 where C libraries read 8.0.0.1 (CVE-2021-29921).
_LEADING_ZERO = re.compile(r"(^|\.)0\d")

_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]*)):([0-9]{1,5})")


class _Address6(ipaddress.IPv6Address):
    """One whose hash is another one in each process.

    Python's own is the number modulo 2**61 - 1. Whoever chooses addresses could choose ten thousand
    with the same one, and a mapping would take minutes to tell them apart.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(self.packed)


def parse_address(text: str) -> Address:
    """The address that `text` spells, in one of its usual forms.

    Raises ValueError, with the reason as a sentence's end, for anything that two programs could
    read in two ways: leading zeros, IPv4-mapped IPv6 addresses, zones.
    """
    if not text.isascii() or len(text) > 45 or "%" in text:
        raise ValueError("is not an IP address")
    if ":" not in text and _LEADING_ZERO.search(text):
        raise ValueError("has leading zeros, which some programs read as octal")
    try:
        # The C library is as strict here, and several times as fast as Python.
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise ValueError("is not an IP address") from None
    address = address_of(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError("is an IPv4-mapped IPv6 address; write it as IPv4")
    return address


def address_of(packed: bytes) -> Address:
    """The address in the 4 or 16 bytes that the kernel writes it in. Raises ValueError."""
    return ipaddress.IPv4Address(packed) if len(packed) == 4 else _Address6(packed)


def address_met(text: str) -> Address:
    """The address at the end of a connection, as the C library spells it. Raises ValueError.

    A link-local one has its interface behind it; an IPv4-mapped one is IPv4's on the wire.
    """
    bare = text.partition("%")[0]
    mapped = getattr(ipaddress.ip_address(bare), "ipv4_mapped", None)
    return mapped or parse_address(bare)


def parse_network(text: str, strict: bool = True) -> Network:
    """The prefix that `text` spells as ADDRESS/LENGTH.

    Raises ValueError with the reason. With `strict`, host bits are an error; otherwise they are
    masked off, as the kernel does.
    """
    base, slash, length = text.partition("/")
    if not slash or not length.isascii() or not length.isdigit() or len(length) > 3:
        raise ValueError("is not a CIDR (wanted ADDRESS/LENGTH)")
    address = parse_address(base)
    if int(length) > address.max_prefixlen:
        raise ValueError(f"has a prefix length over {address.max_prefixlen}")
    network = ipaddress.ip_network((address, int(length)), strict=False)
    if strict and network.network_address != address:
        raise ValueError(f"has host bits set (did you mean {show_network(network)}?)")
    return network


def parse_host_port(text: str) -> tuple[str, int]:
    """The host, an IPv6 address without its brackets, and the port that HOST:PORT spells.

    To listen at, no host means every address. Raises ValueError.
    """
    found = _HOST_PORT.fullmatch(text)
    if not found or not 0 < int(found[3]) < 65536:
        raise ValueError("is not HOST:PORT")
    return found[1] or found[2], int(found[3])


def reached_at(host: str) -> str:
    """Where programs of this node reach one that listens at `host`, which may be every address."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def show_address(address: Address) -> str:
    """`address` in the C library's form, which is the one that iptables-save prints."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed)


def show_network(network: Network) -> str:
    """`network` as iptables-save prints it: ADDRESS/LENGTH, also for a single address."""
    return f"{show_address(network.network_address)}/{network.prefixlen}"


def of_family(networks: Iterable[Network], family: Family) -> tuple[Network, ...]:
    """Those of `networks` that belong to `family`, in their order."""
    return tuple(network for network in networks if network.version == family.version)


def contains(network: Network, address: Address) -> bool:
    """Whether `address` is inside `network`; an address of the other family never is."""
    return network.version == address.version and address in network


def is_within(inner: Network, outer: Network) -> bool:
    """Whether all of `inner` is inside `outer`."""
    return contains(outer, inner.network_address) and inner.prefixlen >= outer.prefixlen


def intersection(left: Iterable[Network], right: Iterable[Network]) -> tuple[Network, ...]:
    """The addresses that are in both, as the fewest prefixes, sorted. One family only."""
    right = list(right)
    common: list[Network] = []
    for a in left:
        for b in right:
            # Two prefixes either nest or have nothing in common.
            if a.prefixlen >= b.prefixlen and contains(b, a.network_address):
                common.append(a)
            elif contains(a, b.network_address) and b.prefixlen > a.prefixlen:
                common.append(b)
    return collapse(common)


def collapse(networks: Iterable[Network]) -> tuple[Network, ...]:
    """`networks` of one family as the fewest prefixes that cover the same, sorted."""
    return tuple(ipaddress.collapse_addresses(networks))  # type: ignore[type-var]
