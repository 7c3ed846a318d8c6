"""What nft has besides iptables, as the kernel tells it; and bytes that are none of its."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from ipvs_node_agent.host import netlink
from ipvs_node_agent.host.netlink import Lost, Message
from ipvs_node_agent.nft.listing import BaseChain, base_chains, tables


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def chain(family: int = 2, hook: int | None = 0, kind: bytes = b"nat") -> Message:
    where = attribute(1, struct.pack(">I", hook or 0)) + attribute(2, struct.pack(">i", -150))
    found = attribute(1, b"firewall\0") + attribute(3, b"pre\0") + attribute(6, b"\0\0\0\2")
    found += attribute(7, kind + b"\0")
    found += attribute(4 | 0x8000, where) if hook is not None else b""
    return Message(0xA03, 0, struct.pack("=BBH", family, 0, 0) + found)


def told(monkeypatch: pytest.MonkeyPatch, *messages: Message) -> None:
    monkeypatch.setattr(netlink, "dump", lambda *_: iter(messages))


def test_base_chains_are_those_with_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, chain(), chain(1, 3), chain(hook=None), chain(7), chain(hook=99))
    ip = BaseChain("ip", "firewall", "pre", "nat", "prerouting", -150, 2)
    assert base_chains() == (ip, ip._replace(family="inet", hook="output"))
    assert tables() == frozenset({"firewall"})


@pytest.mark.parametrize("body", [b"", b"\x02", b"\x02\0\0\0\x01", b"\x02\0\0\0\x08\0\x04\0abcd"])
def test_bytes_that_say_nothing_are_nothing(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, Message(0xA03, 0, body))
    assert base_chains() == ()


@pytest.mark.parametrize("error", [Lost(), OSError(1, "no")])
def test_of_a_kernel_that_does_not_tell_nobody_knows_the_tables(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dump(*_: object) -> None:
        raise error

    monkeypatch.setattr(netlink, "dump", dump)
    assert (base_chains(), tables()) == ((), None)


def test_a_list_that_changed_meanwhile_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, None, chain()])

    def dump(*_: object) -> Iterator[Message]:
        answer = next(answers)
        if answer is None:
            raise Lost
        yield answer

    monkeypatch.setattr(netlink, "dump", dump)
    assert tables() == frozenset({"firewall"})
