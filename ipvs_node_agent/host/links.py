"""This node's interfaces, as the kernel tells of them: their addresses, and who is routed to them.

`Links` is told of each change (rtnetlink(7)) and asks for everything once, at the start, and where
it was told too much at once to keep up. Nothing is polled.

kube-proxy binds every ClusterIP and external IP to its own interface, kube-ipvs0: these are no
addresses at which the host would be reached without it, and are left out, as link-local ones are.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import select
import socket
import struct
from time import monotonic, sleep
from typing import Callable, NamedTuple, TypeVar

from ipvs_node_agent.backoff import Backoff, Once
from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost, Message
from ipvs_node_agent.model.addresses import Address, Network, address_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_NETLINK_ROUTE = 0
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
# RTMGRP_LINK, and those of addresses and of routes in both families.
_GROUPS = 0x1 | 0x10 | 0x100 | 0x40 | 0x400
_LINK, _ADDR, _ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=8BI")
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_OIF = 3, 1, 2, 1, 4
_RTA_GATEWAY, _RTA_VIA = 5, 18
# What the kernel makes of an interface's own addresses.
_TABLE_LOCAL, _PROTOCOL_KERNEL = 255, 2
_RTN_UNICAST, _RTN_BLACKHOLE = 1, 6
_NLM_F_REPLACE = 0x100
_IFF_UP = 0x1
_LENGTHS = {socket.AF_INET: 4, socket.AF_INET6: 16}
# rtnetlink(7)'s RTPROT_BIRD, and the one that Calico takes for what it routes itself.
_BLOCK_PROTOCOLS = (12, 80)
_PROXY_INTERFACE = "kube-ipvs0"
# A burst of changes, as a pod that starts makes one, is one piece of news so long after the first.
_TOGETHER = 0.05
_ATTEMPTS = 5
_RESTLESS = "the interfaces of this node change all the time"


class Route(NamedTuple):
    """A route to `destination` by an interface, which a blackhole has not."""

    destination: Network
    interface: str
    is_blackhole: bool


class Links(NamedTuple):
    """The names of the interfaces, the addresses on them, and the routes that tell of pods.

    These lead to a single address without a gateway, or are blackholes of those who route blocks of
    pods' addresses. A node may have a million others. `absent` are the IP versions that the kernel
    lacks, as it does IPv6 with ipv6.disable=1.
    """

    names: frozenset[str] = frozenset()
    addresses: frozenset[tuple[str, Address]] = frozenset()
    routes: frozenset[Route] = frozenset()
    absent: frozenset[int] = frozenset()


class Interfaces:
    """What the kernel has told so far; not safe to use from several threads."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        # In IPv4 with prefix and peer: an interface may have one address with several of these.
        self._addresses: set[tuple[int, Address, bytes]] = set()
        # By table, each with the number of its interface.
        self._routes: dict[tuple[Network, int], frozenset[tuple[Route, int]]] = {}

    @property
    def links(self) -> Links:
        """All of it, as a value."""
        return Links(
            names=frozenset(self._names.values()),
            addresses=frozenset((self._names.get(at, ""), what) for at, what, _ in self._addresses),
            routes=frozenset(
                route._replace(interface=self._names.get(at, ""))
                for routes in self._routes.values()
                for route, at in routes
            ),
            absent=_absent(),
        )

    def take(self, message: Message) -> bool:
        """Takes note of `message`; whether it was news. Raises Lost where it cannot be followed."""
        for read, (new, gone) in (
            (self._link, (_NEWLINK, _DELLINK)),
            (self._address, (_NEWADDR, _DELADDR)),
            (self._route, (_NEWROUTE, _DELROUTE)),
        ):
            if message.kind in (new, gone):
                return read(message, message.kind == new)
        return False

    def _link(self, message: Message, is_there: bool) -> bool:
        _, _, index, flags, _ = _LINK.unpack_from(message.body)
        before = self._names.get(index), len(self._routes)
        if is_there:
            if not flags & _IFF_UP:
                # The kernel drops its IPv4 routes, and tells of none.
                self._drop_routes(index)
            name = netlink.attributes(message.body[_LINK.size :]).get(_IFLA_IFNAME, b"")
            self._names[index] = name.rstrip(b"\0").decode("utf-8", "replace")
            if self._names[index] == _PROXY_INTERFACE:
                # Its first addresses may have been told of before its name.
                self._addresses = {each for each in self._addresses if each[0] != index}
        else:
            # The bridge that a port leaves tells so in the same words, and the port is still there.
            family = message.body[0]
            if family != socket.AF_UNSPEC:
                return False
            self._names.pop(index, None)
            self._addresses = {each for each in self._addresses if each[0] != index}
            self._drop_routes(index)
        return (self._names.get(index), len(self._routes)) != before

    def _drop_routes(self, index: int) -> None:
        self._routes = {
            where: left
            for where, routes in self._routes.items()
            if (left := frozenset(each for each in routes if each[1] != index))
        }

    def _address(self, message: Message, is_there: bool) -> bool:
        family, length, _, _, index = _ADDR.unpack_from(message.body)
        if family not in _LENGTHS or self._names.get(index) == _PROXY_INTERFACE:
            return False
        found = netlink.attributes(message.body[_ADDR.size :])
        # Of a point-to-point interface, the other one is the peer's.
        packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
        if len(packed) != _LENGTHS[family]:
            raise Lost
        address = address_of(packed)
        beside = b""
        if family == socket.AF_INET:
            beside = bytes([length]) + found.get(_IFA_ADDRESS, b"")
        item = index, address, beside
        return not address.is_link_local and _noted(self._addresses, item, is_there)

    def _route(self, message: Message, is_there: bool) -> bool:
        family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(message.body)
        is_own = table == _TABLE_LOCAL or protocol == _PROTOCOL_KERNEL
        if family not in _LENGTHS or is_own or not length:
            return False
        is_block = kind == _RTN_BLACKHOLE and protocol in _BLOCK_PROTOCOLS
        is_pods = kind == _RTN_UNICAST and length == 8 * _LENGTHS[family]
        replaces = is_there and bool(message.flags & _NLM_F_REPLACE)
        if not (is_block or is_pods or replaces):
            return False
        found = netlink.attributes(message.body[_ROUTE.size :])
        packed = found.get(_RTA_DST, b"")
        if len(packed) != _LENGTHS[family]:
            raise Lost
        (index,) = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))
        where = ipaddress.ip_network((packed, length)), table
        before = self._routes.get(where, frozenset())
        is_direct = is_pods and not {_RTA_GATEWAY, _RTA_VIA} & found.keys()
        item = Route(where[0], "", is_block), index
        told = frozenset({item} if is_block or is_direct else ())
        if not is_there:
            after = before - told
        elif replaces and not (told and told <= before):
            # Nobody tells of the one that it takes the place of.
            after = told
        else:
            after = before | told
        self._routes[where] = after
        if not after:
            del self._routes[where]
        return after != before


def _absent() -> frozenset[int]:
    found = set()
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                found.add(version)
    return frozenset(found)


def _noted(known: set[T], item: T, is_there: bool) -> bool:
    """Whether `known` had to change so that `item` is there, or is not."""
    if (item in known) == is_there:
        return False
    (known.add if is_there else known.discard)(item)
    return True


class _Pauses(Backoff):
    # A VIP that comes meanwhile has to be known soon.
    CAP = 2.0


class LinkFollower:
    """Tells how the interfaces are, and tells anew after each change."""

    def __init__(self, tell: Callable[[Links], None]) -> None:
        self._tell, self._told = tell, False
        # How often in a row the kernel could not be followed.
        self._losses = 0
        self._stopping, self._stop = socket.socketpair()

    def run(self) -> None:
        """Tells until `stop`; where the kernel has told nothing at all, that there is nothing."""
        backoff, said = _Pauses(), Once()
        while not _is_readable(self._stopping, 0.0):
            try:
                with netlink.connect(_NETLINK_ROUTE, _GROUPS) as heard:
                    self._follow(heard)
                return
            except Lost:
                # All of it is asked for again.
                self._losses += 1
                if self._losses > _ATTEMPTS:
                    self._failed(OSError(errno.EAGAIN, _RESTLESS), said)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._failed(error, said)
            _is_readable(self._stopping, backoff.next())

    def stop(self) -> None:
        """Has `run` end."""
        self._stop.close()

    def _follow(self, heard: socket.socket) -> None:
        known = _all()
        self._pass_on(known.links)
        while self._stopping not in select.select([heard, self._stopping], [], [])[0]:
            end = math.inf
            # kube-proxy may bind its addresses for many seconds without a pause, and has no news.
            while monotonic() < end and _is_readable(heard, _left(end)):
                news = [known.take(message) for message in netlink.receive(heard)]
                if any(news):
                    end = min(end, monotonic() + _TOGETHER)
            if end < math.inf:
                self._pass_on(known.links)

    def _failed(self, error: OSError, said: Once) -> None:
        if said.new(str(error)):
            log.warning(
                "cannot read this node's addresses from the kernel, using the last known ones: %s",
                error,
            )
        if not self._told:
            self._pass_on(Links())

    def _pass_on(self, links: Links) -> None:
        self._told, self._losses = True, 0
        self._tell(links)


def _left(end: float) -> float:
    """How long to wait for more where what came is told at `end`; where nothing did, not at all."""
    return 0.0 if end == math.inf else max(0.0, end - monotonic())


def _is_readable(source: socket.socket, seconds: float) -> bool:
    """Whether something comes within so many seconds, or the other end is closed."""
    return bool(select.select([source], [], [], seconds)[0])


def ask() -> Links:
    """How the interfaces are now. Raises OSError."""
    for _ in range(_ATTEMPTS):
        try:
            return _all().links
        except Lost:
            sleep(_TOGETHER)  # They changed meanwhile.
    raise OSError(errno.EAGAIN, _RESTLESS)


def _all() -> Interfaces:
    known = Interfaces()
    for kind, size in ((_GETLINK, _LINK.size), (_GETADDR, _ADDR.size), (_GETROUTE, _ROUTE.size)):
        for message in netlink.dump(_NETLINK_ROUTE, kind, bytes(size)):
            known.take(message)
    return known
