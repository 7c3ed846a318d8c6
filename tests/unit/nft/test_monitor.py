"""What the kernel's notifications are taken for; tests/kernel/test_monitor.py has real ones."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.nft.monitor import Heard, Lost, NftMonitor, attributes, messages


def message(kind: int, body: bytes = b"", sender: int = 7) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, sender) + body
    return data + bytes(-len(data) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data + bytes(-len(data) % 4)


def test_messages_are_taken_apart() -> None:
    data = message(10 << 8 | 6, b"abcde") + message(10 << 8 | 15, b"x", sender=9)
    assert list(messages(data)) == [(6, 7, b"abcde"), (15, 9, b"x")]


def test_other_subsystems_are_passed_over() -> None:
    assert list(messages(message(1 << 8 | 6, b"ab") + message(3))) == []


def test_attributes_are_read_as_names() -> None:
    data = attribute(1, b"nat\0") + attribute(0x8000 | 2, b"IPVS_OUTPUT\0")
    assert list(attributes(data)) == [(1, "nat"), (2, "IPVS_OUTPUT")]


@pytest.mark.parametrize(
    "data",
    [b"\1", message(10 << 8)[:-2], struct.pack("=IHHII", 8, 0, 0, 0, 0), message(4)],
    ids=["short", "cut off", "a length that is too small", "an overrun"],
)
def test_what_cannot_be_read_is_lost(data: bytes) -> None:
    with pytest.raises(Lost):
        list(messages(data))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    told, hearing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hearing.setblocking(False)
    with told, hearing:
        yield told, hearing


@pytest.fixture
def told(ends: tuple[socket.socket, socket.socket]) -> socket.socket:
    """What is sent here is told by the kernel."""
    return ends[0]


@pytest.fixture
def monitor(ends: tuple[socket.socket, socket.socket]) -> NftMonitor:
    return NftMonitor(ends[1], 4, "nat", lambda chain: chain.startswith("IPVS_"))


def test_our_own_transaction_is_in_effect_with_its_last_message_alone() -> None:
    told, hearing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hearing.setblocking(False)
    monitor = NftMonitor(hearing, 4, "nat", lambda _: True)
    with told, hearing:
        nat = attribute(1, b"nat\0") + attribute(3, b"IPVS_OUTPUT\0")
        body = struct.pack("=BBH", socket.AF_INET, 0, 0) + nat
        told.send(message(10 << 8 | 6, body))
        assert monitor.hear(own=7) == Heard(changed=False, committed=False)
        told.send(message(10 << 8 | 15, sender=9))
        assert monitor.hear(own=7) == Heard(changed=False, committed=False)
        told.send(message(10 << 8 | 15))
        assert monitor.hear(own=7) == Heard(changed=False, committed=True)


def generation(process: int, name: bytes) -> bytes:
    """The message that ends a transaction."""
    made_by = attribute(2, process.to_bytes(4, "big")) + attribute(3, name + b"\0")
    return message(10 << 8 | 15, bytes(4) + attribute(1, bytes(4)) + made_by, sender=9)


def test_who_changes_what_matters_is_named(told: socket.socket, monitor: NftMonitor) -> None:
    def rule(chain: bytes) -> bytes:
        nat = attribute(1, b"nat\0") + attribute(2, chain + b"\0")
        return message(10 << 8 | 6, struct.pack("=BBH", socket.AF_INET, 0, 0) + nat, sender=9)

    # What does not matter, what does, in several messages, and who may call himself anything.
    told.send(rule(b"THEIRS") + generation(1, b"kube-proxy"))
    told.send(rule(b"IPVS_OUTPUT"))
    assert monitor.hear(own=7) == Heard(changed=True, committed=False)
    told.send(rule(b"THEIRS"))
    told.send(generation(2, b"iptables") + rule(b"IPVS_OUTPUT") + generation(3, b"\x1b[2J\xff"))
    told.send(rule(b"IPVS_OUTPUT") + generation(2, b"iptables"))
    told.send(rule(b"IPVS_OUTPUT") + message(10 << 8 | 15, bytes(4), sender=9))
    heard = monitor.hear(own=7)
    assert heard.by == ("iptables (pid 2)", "\\x1b[2J\ufffd (pid 3)", "somebody (pid 0)")
    assert monitor.hear(own=7) == Heard(changed=False, committed=False)


def test_nobody_is_named_for_what_was_lost(told: socket.socket, monitor: NftMonitor) -> None:
    nat = attribute(1, b"nat\0") + attribute(2, b"IPVS_OUTPUT\0")
    rule = message(10 << 8 | 6, struct.pack("=BBH", socket.AF_INET, 0, 0) + nat, sender=9)
    told.send(rule)
    told.send(message(10 << 8)[:-2])
    told.send(generation(3, b"innocent"))
    assert monitor.hear(own=7) == Heard(changed=True, committed=False)


@pytest.mark.parametrize("mark", ["", "KUBE-MARK-MASQ"])
def test_a_rule_that_comes_in_a_chain_without_a_name_counts_as_a_change(mark: str) -> None:
    told, hearing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hearing.setblocking(False)
    monitor = NftMonitor(hearing, 4, "nat", lambda _: False, mark)
    with told, hearing:
        body = struct.pack("=BBH", socket.AF_INET, 0, 0) + attribute(1, b"nat\0")
        # One comes, one goes.
        told.send(message(10 << 8 | 6, body) + message(10 << 8 | 8, body))
        assert monitor.hear(own=9) == Heard(changed=True, committed=False)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_lost(data: bytes) -> None:
    for read in (messages, attributes):
        try:
            list(read(data))
        except Lost:
            pass
