"""Messages of the kernel are taken apart, and what is no message is never taken for one."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost, Message, attributes, messages
from tests.support.examples import examples

ROUTE, NEWLINK, GETLINK, OVERRUN = 0, 16, 18, 4


def message(kind: int, body: bytes, length: int | None = None) -> bytes:
    size = 16 + len(body) if length is None else length
    return struct.pack("=IHHII", size, kind, 2, 0, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes, length: int | None = None) -> bytes:
    size = 4 + len(value) if length is None else length
    return struct.pack("=HH", size, kind) + value + bytes(-len(value) % 4)


def test_a_datagram_has_several_messages_and_a_body_several_attributes() -> None:
    data = message(16, b"abcde") + message(17, b"")
    assert list(messages(data)) == [Message(16, 2, b"abcde"), Message(17, 2, b"")]
    # The two highest bits of a type say what is in it.
    assert attributes(attribute(3, b"eth0\0") + attribute(0x8001, b"x")) == {3: b"eth0\0", 1: b"x"}


@pytest.mark.parametrize(
    "data",
    [
        message(16, b"")[:-1],
        message(16, b"", length=15),
        message(16, b"", length=17),
        message(OVERRUN, b""),
    ],
    ids=["cut off", "shorter than its head", "longer than it is", "some were lost"],
)
def test_what_is_no_whole_message_is_lost(data: bytes) -> None:
    with pytest.raises(Lost):
        list(messages(data))


@pytest.mark.parametrize("data", [b"abc", attribute(1, b"", 3), attribute(1, b"", 5)])
def test_what_is_no_whole_attribute_is_lost(data: bytes) -> None:
    with pytest.raises(Lost):
        attributes(data)


@given(st.binary(max_size=64))
@examples(200)
def test_no_bytes_do_more_than_get_lost(data: bytes) -> None:
    for read in (lambda: list(messages(data)), lambda: attributes(data)):
        try:
            read()
        except Lost:
            pass


def test_the_kernel_tells_of_the_loopback_interface() -> None:
    found = [attributes(each.body[16:])[3] for each in netlink.dump(ROUTE, GETLINK, bytes(16))]
    assert b"lo\0" in found


def test_a_kind_that_there_is_not_is_an_error() -> None:
    with pytest.raises(OSError, match="refuses to tell"):
        list(netlink.dump(ROUTE, 0x3FF0, bytes(16)))
    with pytest.raises(OSError, match="refuses to tell"):
        netlink.ask(ROUTE, 0x3FF0, bytes(16))


def test_who_cannot_tell_at_the_end_of_a_dump_told_nothing_true() -> None:
    # sock_diag(7), of a protocol that nobody has sockets of.
    question = struct.pack("=BBBxI48x", socket.AF_INET, 253, 0, 0xFFFF)
    with pytest.raises(OSError, match="refuses to tell"):
        list(netlink.dump(4, 20, question))


def test_a_question_about_one_thing_has_one_answer() -> None:
    # An interface by its number.
    answer = netlink.ask(ROUTE, GETLINK, struct.pack("=BxHiII", 0, 0, 1, 0, 0))
    assert (answer.kind, attributes(answer.body[16:])[3]) == (NEWLINK, b"lo\0")


def test_only_the_kernel_is_believed() -> None:
    with netlink.connect(ROUTE) as hearing, netlink.connect(ROUTE) as lying:
        hearing.settimeout(0.2)
        address = hearing.getsockname()
        lying.sendto(message(NEWLINK, bytes(16)), address)
        with pytest.raises(socket.timeout):
            netlink.receive(hearing)
