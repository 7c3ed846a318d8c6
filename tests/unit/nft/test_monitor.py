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
    return NftMonitor(ends[1], 4, "nat", lambda chain: chain.startswith("IPVS_"), port=PORT)


NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE = 0, 2, 3, 5, 6, 8
OTHERS, OURS, PORT = 9, 7, 3
# The attribute that names the chain.
NAME = {NEWTABLE: 4, NEWCHAIN: 3, DELCHAIN: 3, NEWRULE: 2, DELRULE: 2}
NOTHING = Heard()
MANY = [f"IPVS_{number}" for number in range(33)]


def about(kind: int, chain: str, table: str = "nat", sender: int = OTHERS) -> bytes:
    """A message about a chain of IPv4's or, by its kind, about a rule in it."""
    body = attribute(1, table.encode() + b"\0")
    body += attribute(NAME[kind], chain.encode() + b"\0") if chain else b""
    return message(10 << 8 | kind, struct.pack("=BBH", socket.AF_INET, 0, 0) + body, sender)


def generation(
    process: int = 1, name: bytes = b"x", sender: int = OTHERS, number: int = 0
) -> bytes:
    """The message that ends a transaction, which comes alone."""
    made_by = attribute(2, process.to_bytes(4, "big")) + attribute(3, name + b"\0")
    counted = attribute(1, number.to_bytes(4, "big"))
    return message(10 << 8 | 15, bytes(4) + counted + made_by, sender)


def test_our_own_transaction_is_in_effect_with_its_last_message_alone(
    told: socket.socket, monitor: NftMonitor
) -> None:
    told.send(about(NEWRULE, "IPVS_OUTPUT", sender=OURS))
    assert monitor.hear(own=OURS) == NOTHING
    told.send(generation())
    assert monitor.hear(own=OURS) == NOTHING
    told.send(generation(sender=OURS))
    assert monitor.hear(own=OURS) == Heard(committed=True)


@pytest.mark.parametrize(
    ("messages", "touched"),
    [
        ([about(NEWRULE, "IPVS_A"), about(DELRULE, "IPVS_A")], {"IPVS_A"}),
        ([about(DELRULE, "IPVS_A"), about(DELCHAIN, "IPVS_B")], {"IPVS_A", "IPVS_B"}),
        ([about(NEWRULE, "THEIRS"), about(DELCHAIN, "THEIRS")], set()),
        ([about(NEWRULE, "IPVS_A", table="filter")], set()),
        # There already, a chain that is declared becomes no other one.
        ([about(NEWCHAIN, "THEIRS")], set()),
        # One that is renamed is told of by its new name alone.
        ([about(NEWCHAIN, "NEW")], None),
        ([about(DELCHAIN, "THEIRS"), about(NEWCHAIN, "THEIRS")], None),
        ([about(NEWRULE, "")], None),
        ([about(NEWTABLE, "")], None),
        ([about(NEWRULE, name) for name in MANY[:32]], {*MANY[:32]}),
        ([about(NEWRULE, name) for name in MANY], None),
        ([about(NEWRULE, "IPVS_A")[:-2]], None),
    ],
)
def test_which_chains_others_touched_is_told_where_they_are_few(
    messages: list[bytes], touched: set[str] | None, told: socket.socket, monitor: NftMonitor
) -> None:
    monitor.knows(["IPVS_A", "IPVS_B", "THEIRS"])
    for each in messages:
        told.send(each)
    assert monitor.hear().touched == (None if touched is None else frozenset(touched))
    # It is told once. Where it may be any, all that follows may be, until somebody has looked.
    for then in (None if touched is None else frozenset({"IPVS_A"}), frozenset({"IPVS_A"})):
        assert monitor.hear() == NOTHING
        told.send(about(NEWRULE, "IPVS_A"))
        assert monitor.hear().touched == then
        monitor.knows(["IPVS_A"])


def test_who_changes_what_matters_is_named(told: socket.socket, monitor: NftMonitor) -> None:
    # What does not matter, what does, in several messages, and who may call himself anything.
    told.send(about(NEWRULE, "THEIRS") + generation(1, b"kube-proxy"))
    told.send(about(NEWRULE, "IPVS_OUTPUT"))
    assert monitor.hear(own=OURS) == Heard(frozenset({"IPVS_OUTPUT"}))
    told.send(about(NEWRULE, "THEIRS"))
    told.send(generation(2, b"iptables") + about(NEWRULE, "IPVS_OUTPUT"))
    told.send(generation(3, b"\x1b[2J\xff"))
    told.send(about(NEWRULE, "IPVS_OUTPUT") + generation(2, b"iptables"))
    told.send(about(NEWRULE, "IPVS_OUTPUT") + message(10 << 8 | 15, bytes(4), sender=OTHERS))
    heard = monitor.hear(own=OURS)
    assert heard.by == ("iptables (pid 2)", "\\x1b[2J\ufffd (pid 3)", "a process (pid 0)")
    assert monitor.hear(own=OURS) == NOTHING


def test_who_changes_everything_is_named_and_nobody_after_that(
    told: socket.socket, monitor: NftMonitor
) -> None:
    for number in range(40):
        told.send(about(DELRULE, f"IPVS_{number}"))
    told.send(generation(2, b"iptables"))
    told.send(about(NEWRULE, "IPVS_1"))
    told.send(generation(3, b"late"))
    assert monitor.hear() == Heard(None, by=("iptables (pid 2)",))
    # And of our own write it is told that it is in effect.
    told.send(generation(sender=OURS))
    assert monitor.hear(own=OURS) == Heard(None, committed=True)


def test_nobody_is_named_for_what_was_lost(told: socket.socket, monitor: NftMonitor) -> None:
    told.send(about(NEWRULE, "IPVS_OUTPUT"))
    told.send(message(10 << 8)[:-2])
    told.send(generation(3, b"innocent"))
    assert monitor.hear(own=OURS) == Heard(None)


ANY, FEW = None, frozenset[str]()
LAST = (1 << 32) - 1


@pytest.mark.parametrize(
    ("told_of", "touched"),
    [
        pytest.param([("answer", 5), ("end", 6), ("end", 7)], FEW, id="one by one"),
        pytest.param([("answer", 5), ("end", 6), ("end", 8), ("end", 9)], ANY, id="no seventh"),
        pytest.param([("end", 5), ("end", 7)], ANY, id="no sixth, and no answer"),
        pytest.param([("answer", 5), ("end", 6), ("answer", 6)], FEW, id="none after the last"),
        pytest.param([("answer", 5), ("end", 6), ("answer", 7)], ANY, id="one after the last"),
        pytest.param([("end", 4), ("end", 5), ("answer", 5)], FEW, id="before the first answer"),
        # It cannot be told from one that is left out.
        pytest.param([("answer", 5), ("answer", 6), ("end", 6)], ANY, id="still being told of"),
        pytest.param([("answer", LAST - 1), ("end", LAST)], FEW, id="the largest number"),
        pytest.param([("answer", LAST), ("end", 1)], ANY, id="the kernel leaves out nought"),
        pytest.param([("answer", LAST), ("end", 0)], FEW, id="if it did not"),
    ],
)
@pytest.mark.parametrize("sender", [OTHERS, OURS])
def test_a_transaction_that_is_left_out_may_have_changed_any_chain(
    told_of: list[tuple[str, int]],
    touched: frozenset[str] | None,
    sender: int,
    told: socket.socket,
    monitor: NftMonitor,
) -> None:
    for what, number in told_of:
        told.send(generation(sender=PORT if what == "answer" else sender, number=number))
    committed = sender == OURS and any(what == "end" for what, _ in told_of)
    assert monitor.hear(own=OURS) == Heard(touched, committed)


def test_what_was_left_out_is_over_when_somebody_has_looked(
    told: socket.socket, monitor: NftMonitor
) -> None:
    for number in (5, 7):
        told.send(generation(number=number))
    assert monitor.hear().touched is ANY
    monitor.knows(["IPVS_A"])
    told.send(generation(number=8))
    told.send(generation(sender=PORT, number=8))
    assert monitor.hear() == NOTHING


def test_who_is_deaf_still_counts(told: socket.socket, monitor: NftMonitor) -> None:
    told.send(generation(sender=PORT, number=5))
    for each in (*(about(DELRULE, name) for name in MANY), generation(number=6)):
        told.send(each)
    for each in (about(NEWRULE, "THEIRS"), generation(number=7)):
        told.send(each)
    assert monitor.hear().touched is ANY
    monitor.knows(["IPVS_A"])
    told.send(generation(number=8))
    assert monitor.hear().touched == FEW


def test_the_kernel_is_asked_for_the_number_of_the_last_transaction(
    told: socket.socket, monitor: NftMonitor
) -> None:
    monitor.ask()
    length, kind, flags, _, _ = struct.unpack("=IHHII", told.recv(100)[:16])
    assert (length, kind, flags) == (20, 10 << 8 | 16, 1)
    told.send(generation(sender=PORT, number=5))
    assert monitor.hear() == NOTHING
    # It is asked for once.
    assert monitor.hear() == NOTHING


@pytest.mark.parametrize("answer", [b"", message(2, bytes(4)), message(10 << 8 | 15)[:-2]])
def test_a_kernel_that_does_not_answer_is_not_believed(
    answer: bytes, told: socket.socket, monitor: NftMonitor
) -> None:
    monitor.ask()
    if answer:
        told.send(answer)
    assert monitor.hear() == Heard(ANY)
    monitor.knows(["IPVS_A"])
    assert monitor.hear() == NOTHING


def test_a_socket_that_takes_no_question_is_not_believed(
    told: socket.socket, monitor: NftMonitor
) -> None:
    told.close()
    monitor.ask()
    assert monitor.hear() == Heard(ANY)


@pytest.mark.parametrize("mark", ["", "KUBE-MARK-MASQ"])
def test_a_rule_that_comes_in_a_chain_without_a_name_counts_as_a_change(
    mark: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    monitor = NftMonitor(ends[1], 4, "nat", lambda _: False, mark)
    # One comes, one goes.
    ends[0].send(about(NEWRULE, "") + about(DELRULE, ""))
    assert monitor.hear(own=OTHERS + 1).touched is None


@pytest.mark.parametrize(
    ("seen", "before", "after", "heard"),
    [
        (1, [], [[-1]], True),
        (1, [], [[-1, 1]], False),
        (1, [], [[-1, 1], [-1, 1]], False),
        (1, [], [[1], [1], [-1], [-1]], False),
        (1, [], [[1], [-1], [-1]], True),
        (0, [], [[1]], True),
        (0, [], [[1, -1]], False),
        (3, [], [[-1], [-1]], False),
        (3, [], [[-1], [-1], [-1]], True),
        # What comes while it is counted may be in the count already.
        (2, [[1]], [], True),
        (1, [[-1, 1]], [[1]], False),
    ],
)
def test_of_the_chain_that_marks_it_is_told_whether_it_has_rules(
    seen: int,
    before: list[list[int]],
    after: list[list[int]],
    heard: bool,
    ends: tuple[socket.socket, socket.socket],
) -> None:
    told, monitor = ends[0], NftMonitor(ends[1], 4, "nat", lambda _: False, "MARKS")

    def send(transactions: list[list[int]]) -> None:
        for rules in transactions:
            for each in rules:
                told.send(about(NEWRULE if each > 0 else DELRULE, "MARKS"))
                # A message that is late makes no difference.
                assert monitor.hear().touched == frozenset()
            told.send(generation(2, b"kube-proxy"))

    monitor.knows(["MARKS"], seen)
    if before:
        # All of it before anybody hears.
        told.send(b"".join(about(NEWRULE if e > 0 else DELRULE, "MARKS") for e in before[0]))
        told.send(generation(2, b"kube-proxy"))
    first = monitor.hear()
    send(after)
    last = monitor.hear()
    assert (None in (first.touched, last.touched)) == heard
    assert (first.by + last.by)[-1:] == (("kube-proxy (pid 2)",) if heard else ())


@pytest.mark.parametrize(
    ("news", "moves"),
    [
        pytest.param(about(NEWTABLE, "", table="kube-proxy"), 1, id="nftables mode begins"),
        pytest.param(about(DELTABLE, "", table="kube-proxy"), 1, id="nftables mode ends"),
        pytest.param(about(NEWTABLE, "", table="firewalld"), 0, id="another table"),
        pytest.param(about(NEWCHAIN, "KUBE-SVC-A"), 1, id="iptables mode begins"),
        pytest.param(about(DELCHAIN, "KUBE-SERVICES"), 1, id="iptables mode ends"),
        pytest.param(about(NEWCHAIN, "KUBE-SERVICES"), 0, id="a chain that was there"),
        pytest.param(about(NEWRULE, "KUBE-SERVICES"), 0, id="a sync"),
        pytest.param(about(NEWCHAIN, "DOCKER"), 0, id="another one's chain"),
        pytest.param(about(NEWCHAIN, "KUBE-SVC-A", sender=OURS), 0, id="our own doing"),
    ],
)
def test_what_kube_proxy_makes_and_removes_with_its_mode_is_told(
    news: bytes, moves: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    told: list[None] = []
    monitor = NftMonitor(ends[1], 4, "nat", lambda _: False, "", lambda: told.append(None))
    monitor.knows(["KUBE-SERVICES"])
    ends[0].send(news)
    monitor.hear(own=OURS)
    assert len(told) == moves


def test_where_something_was_left_out_it_may_be_kube_proxys_mode(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    told: list[None] = []
    monitor = NftMonitor(ends[1], 4, "nat", lambda _: False, "", lambda: told.append(None))
    for number, moves in ((5, 0), (6, 0), (8, 1)):
        ends[0].send(generation(number=number))
        monitor.hear()
        assert len(told) == moves


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_lost(data: bytes) -> None:
    for read in (messages, attributes):
        try:
            list(read(data))
        except Lost:
            pass
