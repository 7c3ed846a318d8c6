"""Packets and bytes of Services: what is read of a table, what is added up, and when one looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Made, Writes
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.observe import counters
from ipvs_node_agent.observe.counters import HOST, POD, Count, Ledger, Sampler, Seen, found_in
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.sync.state import AgentState, FamilyState, Published
from tests.support.waiting import eventually

MADE = Made()
WEB_POD, WEB_HOST = ("default/web", POD), ("default/web", HOST)


PRE, PART, OUT = "IPVS_PREROUTING", "IPVS_PREROUTING-0a131400/24", "IPVS_OUTPUT"


def rule(chain: str, packets: int, key: str = "default/web") -> str:
    """The rules of a Service, the second of which has seen so many packets of 60 bytes."""
    match = f'-s 10.240.2.128/25 -d 10.19.20.201/32 -m comment --comment "{key}"'
    return (
        f"[9:9] -A {chain} {match} -j KUBE-MARK-MASQ\n"
        f"[{packets}:{60 * packets}] -A {chain} {match} -j DNAT --to-destination 10.231.42.164\n"
    )


def saved(*rules: str) -> str:
    return f"*nat\n:IPVS_PREROUTING - [0:0]\n{''.join(rules)}COMMIT\n"


class Kernel:
    """A ledger, and the counters it is shown."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def shows(
        self,
        *rules: str,
        table: str = "nft IPv4",
        made: Made | None = MADE,
        chains: Chains | None = None,
    ) -> dict[tuple[str, str], int]:
        """The sums of packets after a look."""
        found = found_in(table, saved(*rules), chains or Chains())
        sums = self.ledger.take({p: seen._replace(made=made) for p, seen in found.items()})
        assert all(count.bytes == 60 * count.packets for count in sums.values())
        return {series: count.packets for series, count in sums.items()}


# 1. What is read

IN_A_COMMENT = (
    '[7:420] -A POSTROUTING -m comment --comment "a\n[7:420] -A IPVS_OUTPUT '
    '-m comment --comment x/y -j DNAT --to-destination 1.1.1.1" -j ACCEPT\n'
)
NO_SERVICES = "[7:420] -A IPVS_OUTPUT -j DNAT --to-destination 1.1.1.1\n"


@pytest.mark.parametrize(
    ("rules", "sums"),
    [
        ([rule(PRE, 3), rule(OUT, 5)], {WEB_POD: 3, WEB_HOST: 5}),
        ([rule(PART, 3), rule(f"{PRE}-0a131500/24", 3), rule(PART, 3)], {WEB_POD: 9}),
        ([rule(PRE, 0)], {WEB_POD: 0}),
        ([rule("KUBE-SERVICES", 7), rule(f"{PRE}2", 7), IN_A_COMMENT, NO_SERVICES], {}),
    ],
    ids=["pods and the host apart", "all rules together", "unused", "nobody else's"],
)
def test_the_packets_of_services_are_counted(
    rules: list[str], sums: dict[tuple[str, str], int]
) -> None:
    assert Kernel().shows(*rules) == sums


def test_chains_may_have_other_names() -> None:
    chains = Chains(prerouting="MY_PRE", output="MY_OUT")
    rules = (rule("MY_PRE", 1), rule("MY_OUT-x", 2), rule(OUT, 7))
    assert Kernel().shows(*rules, chains=chains) == {WEB_POD: 1, WEB_HOST: 2}


# 2. What is added up


class Look(NamedTuple):
    """What the rule of a Service has counted when one looks, and what that adds up to."""

    seen: int
    total: int
    made: Made | None = MADE
    chain: str = PRE
    table: str = "nft IPv4"


LOOKS = {
    "a chain is rewritten": [Look(100, 100), Look(110, 110), Look(0, 110), Look(2, 112)],
    "counters have caught up": [Look(3, 3, Made(1)), Look(3, 6, Made(2)), Look(5, 8, Made(2))],
    "what is written during a look counts with the next": [
        Look(3, 0, None),
        Look(3, 3, Made(1)),
        Look(1, 3, None),
        Look(4, 4, Made(1)),
        Look(1, 4, None),
        Look(2, 6, Made(2)),
    ],
    "rules of another Service are written in its chain": [
        Look(3, 3, Made(1)),
        Look(5, 5, Made(1, {"default/other": 2})),
        Look(6, 6, Made(1, {"default/other": 3})),
    ],
    "its own rules are written in its chain, and have caught up": [
        Look(3, 3, Made(1)),
        Look(3, 6, Made(1, {"default/web": 2})),
        Look(4, 7, Made(1, {"default/web": 2, "default/other": 3})),
        Look(4, 11, Made(1, {"default/web": 4})),
        Look(4, 15, Made(5)),
    ],
    "a rule moves to another chain": [Look(100, 100), Look(1, 101, chain=PART), Look(1, 102)],
    "the backend changes": [Look(100, 100), Look(100, 200, table="legacy IPv4")],
}


@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS.keys())
def test_sums_never_go_back(looks: list[Look]) -> None:
    kernel = Kernel()
    for look in looks:
        sums = kernel.shows(rule(look.chain, look.seen), table=look.table, made=look.made)
        assert sums == {WEB_POD: look.total}


def test_a_service_without_rules_is_left_out_and_counts_on_when_it_has_some_again() -> None:
    kernel = Kernel()
    kernel.shows(rule(PRE, 100))
    assert kernel.shows() == {}
    assert kernel.shows(rule(PRE, 1)) == {WEB_POD: 101}


@pytest.mark.parametrize("table", ["nft IPv4", "legacy IPv4"])
def test_what_was_not_found_for_a_moment_is_not_counted_twice(table: str) -> None:
    """As while a reload renames the chains, or the backend moves, and that is taken back."""
    kernel = Kernel()
    kernel.shows(rule(PRE, 100))
    for _ in range(2):
        assert kernel.shows(table=table) == {}
    assert kernel.shows(rule(PRE, 100)) == {WEB_POD: 100}
    assert kernel.shows(rule(PRE, 103)) == {WEB_POD: 103}
    # What was written since counts from nothing.
    kernel.shows(table=table)
    assert kernel.shows(rule(PRE, 103), made=Made(9)) == {WEB_POD: 206}


def test_however_many_there_were_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_MAX_GONE", 2)
    kernel, names = Kernel(), "abcde"
    kernel.shows(*(rule(OUT, 5, f"default/{name}") for name in names))
    for _ in range(2):
        kernel.shows()
    again = kernel.shows(*(rule(OUT, 1, f"default/{name}") for name in names))
    assert [again[f"default/{name}", HOST] for name in names] == [6] * 5


def test_what_was_given_stays_as_it_was() -> None:
    ledger = Ledger()
    place, (key, origin) = ("nft IPv4", PRE), WEB_POD
    first = ledger.take({place: Seen(origin, {key: Count(100, 6000)}, Made())})
    ledger.take({place: Seen(origin, {key: Count(200, 12000)}, Made())})
    assert first == {WEB_POD: (100, 6000)}


def test_of_services_that_went_only_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters, "_MAX_GONE", 2)
    kernel = Kernel()
    for name in "abc":
        kernel.shows(rule(OUT, 5, f"default/{name}"))
    kernel.shows()
    again = kernel.shows(*(rule(OUT, 1, f"default/{name}") for name in "abc"))
    assert [again[f"default/{name}", HOST] for name in "abc"] == [1, 6, 6]


# 3. When one looks


class Tables:
    """Tables that are as slow, and fail as often, as a test wants."""

    def __init__(self) -> None:
        self.looks, self.services = 0, 1
        self.release = threading.Event()
        self.release.set()
        self.broken = False
        self.writes = Writes()
        self.starts = threading.Event()

    def save(self, launcher: Launcher, family: Family, backend: str) -> str:
        assert (family, backend) == (IPV4, "nft")
        self.starts.set()
        self.release.wait()
        if self.broken:
            raise TableError("iptables-nft-save", "no")
        self.looks += 1
        return saved(rule(OUT, self.looks))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr(counters, "_PERIOD", 0.0)
    monkeypatch.setattr(counters, "_REST", 0.0)
    return Tables()


@pytest.fixture
def sampler(tables: Tables) -> Iterator[Sampler]:
    def published() -> Published:
        families = {IPV4: FamilyState(services=tables.services), IPV6: FamilyState()}
        return Published(0.0, agent=AgentState(families), backend="nft")

    made = Sampler(published, {IPV4: tables.writes}, Launcher({}), tables.save)
    yield made
    tables.release.set()
    made.stop()


def test_nobody_looks_unless_asked_and_a_look_that_fails_leaves_the_last_sums(
    sampler: Sampler, tables: Tables
) -> None:
    assert tables.looks == 0
    for broken, packets in ((False, 1), (True, 1), (False, 2)):
        tables.broken = broken
        assert sampler.sums(5)[WEB_HOST].packets == packets


def test_rules_that_cannot_be_removed_yet_count_on(sampler: Sampler, tables: Tables) -> None:
    for services, packets in ((1, 1), (0, 2), (1, 3)):
        tables.services = services
        assert sampler.sums(5)[WEB_HOST].packets == packets


def test_nobody_looks_where_there_is_nothing_to_count(sampler: Sampler, tables: Tables) -> None:
    tables.services = 0
    assert not sampler.sums(5)
    assert tables.looks == 0


def test_without_room_for_a_thread_the_last_sums_are_told(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    sampler.sums(5)
    with monkeypatch.context() as crowded:
        crowded.setattr("ipvs_node_agent.observe.counters.threading.Thread", full)
        assert sampler.sums(5)[WEB_HOST].packets == 1
    assert sampler.sums(5)[WEB_HOST].packets == 2


def test_who_asks_waits_no_longer_than_he_wants(sampler: Sampler, tables: Tables) -> None:
    sampler.sums(5)
    tables.release.clear()
    started = time.monotonic()
    assert sampler.sums(0.05)[WEB_HOST].packets == 1
    assert time.monotonic() - started < 2
    tables.release.set()
    eventually(lambda: sampler.sums(0)[WEB_HOST].packets > 1)


def test_a_look_waits_for_the_end_of_a_write_and_who_asks_does_not(
    sampler: Sampler, tables: Tables
) -> None:
    sampler.sums(5)
    with tables.writes.under_way(Change({OUT: ()})):
        tables.starts.clear()
        assert sampler.sums(0.05)[WEB_HOST].packets == 1
        assert tables.starts.wait(5)
    # What it found of that chain may be of before or after, and counts later.
    eventually(lambda: sampler.sums(5)[WEB_HOST].packets == 1 + tables.looks)


def test_what_a_look_waits_for_a_write_keeps_nobody_from_the_next(
    sampler: Sampler, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_REST", 100.0)
    with tables.writes.under_way(Change({OUT: ()})):
        sampler.sums(0.5)
    # Not by asking, which would be for another look.
    eventually(lambda: sampler._sums)
    eventually(lambda: sampler.sums(0) and tables.looks > 1)


def test_who_asks_again_and_again_is_shown_the_same(
    sampler: Sampler, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_PERIOD", 60.0)
    for _ in range(5):
        assert sampler.sums(5)[WEB_HOST].packets == 1
    assert tables.looks == 1
