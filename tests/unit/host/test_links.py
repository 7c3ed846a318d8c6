"""What the kernel's messages of interfaces mean, one by one; tests/kernel has a real kernel's."""

from __future__ import annotations

import errno
import os
import queue
import socket
import struct
import threading
from ipaddress import ip_address
from typing import Any

import pytest

from ipvs_node_agent.host import links, netlink
from ipvs_node_agent.host.links import Interfaces, LinkFollower, Links
from ipvs_node_agent.host.netlink import Lost, Message
from tests.support.growth import grows_no_faster_than_linear

NEWLINK, NEWADDR, NEWROUTE = 16, 20, 24
BIRD, REPLACE = 12, 0x100


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link(index: int, name: str) -> Message:
    header = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    return Message(NEWLINK, 0, header + attribute(3, name.encode() + b"\0"))


def address(index: int, text: str) -> Message:
    packed = ip_address(text).packed
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    header = struct.pack("=BBBBI", family, 8 * len(packed), 0, 0, index)
    return Message(NEWADDR, 0, header + attribute(1, packed))


def route(
    text: str, index: int, flags: int = 0, length: int = 32, kind: int = 1, by: str = ""
) -> Message:
    """A route of bird's; `by` is its gateway, and `kind` RTN_UNICAST or another one."""
    header = struct.pack("=8BI", socket.AF_INET, length, 0, 0, 254, BIRD, 0, kind, 0)
    to = attribute(1, ip_address(text).packed) + attribute(4, struct.pack("=I", index))
    return Message(
        NEWROUTE, flags, header + to + (attribute(5, ip_address(by).packed) if by else b"")
    )


def told(*messages: Message) -> Links:
    interfaces = Interfaces()
    for message in messages:
        interfaces.take(message)
    return interfaces.links


EXTERNAL = ("10.19.20.201", "fd00:19::201")


@pytest.mark.parametrize("external", EXTERNAL)
@pytest.mark.parametrize("named_first", [True, False])
def test_what_kube_proxy_binds_counts_no_sooner_than_its_interface_has_a_name(
    external: str, named_first: bool
) -> None:
    """An interface that is made while all are asked for is named after its addresses."""
    first, second = (link(7, "kube-ipvs0"), address(7, external))[:: 1 if named_first else -1]
    assert told(first, second, address(1, "192.0.2.1")).addresses == {("", ip_address("192.0.2.1"))}


def test_all_routes_of_a_router_are_taken_in_in_a_time_that_grows_with_them() -> None:
    def take(size: int) -> None:
        told(*(route(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 7) for n in range(size)))

    grows_no_faster_than_linear(take, 1000)


BLACKHOLE = 6


@pytest.mark.parametrize(
    "other",
    [
        {"by": "192.0.2.9"},
        {"by": "192.0.2.9", "length": 24},
        {"length": 24},
        {"kind": 7},
        {"kind": 7, "length": 24},
    ],
    ids=["gateway", "network by a gateway", "network", "unreachable", "unreachable network"],
)
def test_routes_that_tell_of_no_pod_are_not_kept_and_take_the_place_of_one_that_does(
    other: dict[str, Any],
) -> None:
    length = other.get("length", 32)
    is_news = Interfaces()
    assert not is_news.take(route("10.0.0.0", 7, REPLACE, **other))
    assert is_news.take(route("10.0.0.0", 7, length=length, kind=1 if length == 32 else BLACKHOLE))
    assert not is_news.take(route("10.0.0.0", 7, **other))
    assert len(is_news.links.routes) == 1
    assert is_news.take(route("10.0.0.0", 7, REPLACE, **other))
    assert not is_news.links.routes


@pytest.mark.parametrize(
    ("number", "absent"), [(errno.EAFNOSUPPORT, {6}), (errno.EMFILE, set()), (0, set())]
)
def test_a_family_that_the_kernel_lacks_is_told(
    number: int, absent: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def made(family: int, *options: Any) -> socket.socket:
        if family == socket.AF_INET6 and number:
            raise OSError(number, os.strerror(number))
        return real(family, *options)

    monkeypatch.setattr("ipvs_node_agent.host.links.socket.socket", made)
    assert Interfaces().links.absent == absent


def test_a_route_that_is_told_again_is_no_news() -> None:
    interfaces = Interfaces()
    assert interfaces.take(route("10.0.0.1", 7))
    assert not interfaces.take(route("10.0.0.1", 7))
    assert interfaces.take(route("10.0.0.1", 8, REPLACE))
    assert not interfaces.take(route("10.0.0.1", 8, REPLACE))
    assert len(interfaces.links.routes) == 1


@pytest.mark.parametrize("size", range(0, 16, 3))
def test_what_is_cut_short_is_asked_for_again(size: int) -> None:
    whole = address(1, "192.0.2.1")
    with pytest.raises((Lost, struct.error)):
        told(whole._replace(body=whole.body[:size] if size < 16 else whole.body))


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "no files"), TimeoutError("timed out")])
def test_a_kernel_that_tells_nothing_for_a_while_takes_no_address_away(
    error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: queue.Queue[Links] = queue.Queue()
    known = told(link(1, "eth0"), address(1, "192.0.2.1"))
    follows: list[Any] = [error, known, error, error, known]

    class Following(LinkFollower):
        def _follow(self, heard: socket.socket) -> None:
            if not follows:
                return
            step = follows.pop(0)
            if isinstance(step, OSError):
                raise step
            self._pass_on(step)
            raise Lost

    monkeypatch.setattr(netlink, "connect", lambda *_: socket.socket())
    monkeypatch.setattr(links._Pauses, "FIRST", 0.001)
    thread = threading.Thread(target=Following(heard.put).run, daemon=True)
    thread.start()
    thread.join(10)
    assert [heard.get(timeout=10) for _ in range(3)] == [Links(), known, known]
    assert heard.empty()
    assert len(caplog.messages) == 1


def test_interfaces_that_cannot_be_followed_are_said_and_hold_up_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> Interfaces:
        raise Lost

    monkeypatch.setattr(links, "_all", lost)
    monkeypatch.setattr(links._Pauses, "CAP", 0.01)
    monkeypatch.setattr(links._Pauses, "FIRST", 0.01)
    heard: queue.Queue[Links] = queue.Queue()
    follower = LinkFollower(heard.put)
    thread = threading.Thread(target=follower.run, daemon=True)
    thread.start()
    assert heard.get(timeout=5) == Links()
    follower.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert caplog.text.count("the interfaces of this node change all the time") == 1
