"""The tables and base chains of nftables, asked for over netlink; nothing in them is read.

iptables' own are among them where its backend is nft.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ipvs_node_agent.host import netlink

# linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER, _NFTABLES = 12, 10 << 8
_GETTABLE, _GETCHAIN = _NFTABLES | 1, _NFTABLES | 4
_EVERY_FAMILY = struct.pack("=BBH", 0, 0, 0)
_TABLE_NAME = 1
_ATTEMPTS = 3
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 6, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
# linux/netfilter.h
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
# linux/netfilter_ipv4.h and _ipv6.h: where iptables' nat has PREROUTING and OUTPUT.
NAT_PRIORITY = -100


class BaseChain(NamedTuple):
    """A chain that packets come to by a hook, sooner where its `priority` is lower.

    `kind` is nat, filter or route, and `rules` how many it has.
    """

    family: str
    table: str
    name: str
    kind: str
    hook: str
    priority: int
    rules: int


def tables() -> frozenset[str] | None:
    """The names of all tables; None where the kernel does not tell."""
    found = _told(_GETTABLE)
    if found is None:
        return None
    return frozenset(_text(netlink.attributes(body[4:]), _TABLE_NAME) for body in found)


def base_chains() -> tuple[BaseChain, ...]:
    """All of IPv4, IPv6 and both; none where the kernel does not tell."""
    found = _told(_GETCHAIN)
    try:
        return tuple(chain for body in found or () for chain in _base_chain(body))
    except netlink.Lost:
        return ()


def _told(question: int) -> list[bytes] | None:
    """What the kernel has of a kind; None where it does not tell."""
    for _ in range(_ATTEMPTS):
        try:
            found = netlink.dump(_NETLINK_NETFILTER, question, _EVERY_FAMILY)
            bodies = [each.body for each in found]
            for body in bodies:
                netlink.attributes(body[4:])
            return bodies
        except netlink.Lost:
            pass  # Somebody changed them meanwhile.
        except OSError:
            return None
    return None


def _base_chain(body: bytes) -> Iterator[BaseChain]:
    """The chain of a message, if it is one. Raises Lost."""
    found = netlink.attributes(body[4:])
    hook = netlink.attributes(found.get(_CHAIN_HOOK, b""))
    where = _HOOKS.get(_number(hook, _HOOK_NUMBER, ">I"))
    family = _FAMILIES.get(body[0]) if body else None
    if family is not None and where is not None:
        yield BaseChain(
            family,
            table=_text(found, _CHAIN_TABLE),
            name=_text(found, _CHAIN_NAME),
            kind=_text(found, _CHAIN_TYPE),
            hook=where,
            priority=_number(hook, _HOOK_PRIORITY, ">i"),
            rules=max(_number(found, _CHAIN_USE, ">I"), 0),
        )


def _text(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")


def _number(found: dict[int, bytes], kind: int, form: str) -> int:
    """A number of four bytes; -1 where there is none."""
    value = found.get(kind, b"")
    return int(struct.unpack(form, value)[0]) if len(value) == struct.calcsize(form) else -1
