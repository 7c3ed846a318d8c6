"""Packets and bytes of Services: what is read of a table, what is added up, and when one looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.programmer import Writes
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.observe.counters import HOST, POD, Count, Ledger, Sampler, Seen, found_in
from ipvs_node_agent.sync.state import AgentState, FamilyState, Published
from tests.support.waiting import eventually

WEB_POD, WEB_HOST = ("default/web", POD), ("default/web", HOST)


def rule(
    chain: str, count: str, key: str = "default/web", source: str = "-s 10.240.2.128/25 "
) -> str:
    match = f'{source}-d 10.19.20.201/32 -m comment --comment "{key}"'
    return (
        f"[9:9] -A {chain} {match} -j KUBE-MARK-MASQ\n"
        f"[{count}] -A {chain} {match} -j DNAT --to-destination 10.231.42.164\n"
    )


def saved(*rules: str) -> str:
    return f"*nat\n:IPVS_PREROUTING - [0:0]\n{''.join(rules)}COMMIT\n"


def sums(*rules: str, chains: Chains | None = None) -> Mapping[tuple[str, str], Count]:
    found = found_in("nft IPv4", saved(*rules), chains or Chains())
    return Ledger().take({place: Seen(count, 0) for place, count in found.items()})


# 1. What is read


def test_pods_and_the_host_are_counted_apart() -> None:
    text = (rule("IPVS_PREROUTING", "3:180"), rule("IPVS_OUTPUT", "5:300", source=""))
    assert sums(*text) == {WEB_POD: (3, 180), WEB_HOST: (5, 300)}


def test_all_rules_of_a_service_count_together() -> None:
    split = [rule(f"IPVS_PREROUTING-0a13{part}00/24", "3:180") for part in ("14", "15")]
    assert sums(*split, split[0]) == {WEB_POD: (9, 540)}


def test_a_service_that_nobody_used_has_a_count_too() -> None:
    assert sums(rule("IPVS_PREROUTING", "0:0")) == {WEB_POD: (0, 0)}


def test_chains_may_have_other_names() -> None:
    chains = Chains(prerouting="MY_PRE", output="MY_OUT")
    text = (rule("MY_PRE", "1:60"), rule("MY_OUT-x", "2:120"), rule("IPVS_OUTPUT", "7:7"))
    assert sums(*text, chains=chains) == {WEB_POD: (1, 60), WEB_HOST: (2, 120)}


@pytest.mark.parametrize(
    "foreign",
    [
        rule("KUBE-SERVICES", "7:7"),
        rule("IPVS_PREROUTING2", "7:7"),
        '[7:7] -A POSTROUTING -m comment --comment "a\n[7:7] -A IPVS_OUTPUT '
        '-m comment --comment x/y -j DNAT --to-destination 1.1.1.1" -j ACCEPT\n',
        "[7:7] -A IPVS_OUTPUT -j DNAT --to-destination 1.1.1.1\n",
    ],
)
def test_rules_of_others_are_not_counted(foreign: str) -> None:
    assert sums(foreign, rule("IPVS_PREROUTING", "1:60")) == {WEB_POD: (1, 60)}


# 2. What is added up


class Kernel:
    """A ledger, and the counters it is shown."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def shows(
        self, *rules: str, table: str = "nft IPv4", write: int | None = 0
    ) -> Mapping[tuple[str, str], Count]:
        found = found_in(table, saved(*rules), Chains())
        return self.ledger.take({place: Seen(count, write) for place, count in found.items()})


def test_a_rewritten_chain_takes_nothing_away() -> None:
    kernel = Kernel()
    assert kernel.shows(rule("IPVS_PREROUTING", "100:6000"))[WEB_POD] == (100, 6000)
    assert kernel.shows(rule("IPVS_PREROUTING", "110:6600"))[WEB_POD] == (110, 6600)
    assert kernel.shows(rule("IPVS_PREROUTING", "0:0"))[WEB_POD] == (110, 6600)
    assert kernel.shows(rule("IPVS_PREROUTING", "2:120"))[WEB_POD] == (112, 6720)


def test_a_rewritten_chain_is_one_also_where_its_counters_have_caught_up() -> None:
    kernel = Kernel()
    assert kernel.shows(rule("IPVS_PREROUTING", "3:180"), write=1)[WEB_POD] == (3, 180)
    assert kernel.shows(rule("IPVS_PREROUTING", "3:180"), write=2)[WEB_POD] == (6, 360)
    assert kernel.shows(rule("IPVS_PREROUTING", "5:300"), write=2)[WEB_POD] == (8, 480)


def test_a_chain_that_is_written_during_a_look_counts_with_the_next() -> None:
    kernel = Kernel()
    assert kernel.shows(rule("IPVS_PREROUTING", "3:180"), write=None)[WEB_POD] == (0, 0)
    assert kernel.shows(rule("IPVS_PREROUTING", "3:180"), write=1)[WEB_POD] == (3, 180)
    assert kernel.shows(rule("IPVS_PREROUTING", "1:60"), write=None)[WEB_POD] == (3, 180)
    assert kernel.shows(rule("IPVS_PREROUTING", "4:240"), write=1)[WEB_POD] == (4, 240)
    assert kernel.shows(rule("IPVS_PREROUTING", "1:60"), write=None)[WEB_POD] == (4, 240)
    assert kernel.shows(rule("IPVS_PREROUTING", "2:120"), write=2)[WEB_POD] == (6, 360)


def test_a_rule_that_moves_to_another_chain_counts_on() -> None:
    kernel = Kernel()
    kernel.shows(rule("IPVS_PREROUTING", "100:6000"))
    assert kernel.shows(rule("IPVS_PREROUTING-0a131400/24", "1:60"))[WEB_POD] == (101, 6060)
    assert kernel.shows(rule("IPVS_PREROUTING", "1:60"))[WEB_POD] == (102, 6120)


def test_a_table_of_another_backend_counts_on() -> None:
    kernel = Kernel()
    kernel.shows(rule("IPVS_PREROUTING", "100:6000"))
    found = kernel.shows(rule("IPVS_PREROUTING", "100:6000"), table="legacy IPv4")
    assert found[WEB_POD] == (200, 12000)


def test_a_service_without_rules_is_left_out_and_counts_on_when_it_has_some_again() -> None:
    kernel = Kernel()
    kernel.shows(rule("IPVS_PREROUTING", "100:6000"))
    assert kernel.shows() == {}
    assert kernel.shows(rule("IPVS_PREROUTING", "1:60"))[WEB_POD] == (101, 6060)


def test_what_was_given_stays_as_it_was() -> None:
    kernel = Kernel()
    first = kernel.shows(rule("IPVS_PREROUTING", "100:6000"))
    kernel.shows(rule("IPVS_PREROUTING", "200:12000"), rule("IPVS_OUTPUT", "1:60"))
    kernel.shows()
    assert first == {WEB_POD: (100, 6000)}


def test_of_services_that_went_only_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ipvs_node_agent.observe.counters._MAX_GONE", 2)
    kernel = Kernel()
    for name in "abc":
        kernel.shows(rule("IPVS_OUTPUT", "5:5", f"default/{name}"))
    kernel.shows()
    again = kernel.shows(*(rule("IPVS_OUTPUT", "1:1", f"default/{name}") for name in "abc"))
    assert [again[f"default/{name}", HOST].packets for name in "abc"] == [1, 6, 6]


# 3. When one looks


class Tables:
    """Tables that are as slow, and fail as often, as a test wants."""

    def __init__(self) -> None:
        self.looks = 0
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
        return saved(rule("IPVS_OUTPUT", f"{self.looks}:{self.looks}"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr("ipvs_node_agent.observe.counters._PERIOD", 0.0)
    monkeypatch.setattr("ipvs_node_agent.observe.counters._REST", 0.0)
    return Tables()


@pytest.fixture
def sampler(tables: Tables) -> Iterator[Sampler]:
    families = {IPV4: FamilyState(services=1), IPV6: FamilyState()}
    published = Published(0.0, agent=AgentState(families), backend="nft")
    made = Sampler(lambda: published, {IPV4: tables.writes}, Launcher({}), tables.save)
    yield made
    tables.release.set()
    made.stop()


def test_nobody_looks_unless_asked(sampler: Sampler, tables: Tables) -> None:
    assert tables.looks == 0
    assert sampler.sums(5)[WEB_HOST] == (1, 1)
    assert sampler.sums(5)[WEB_HOST] == (2, 2)
    assert tables.looks == 2


def test_who_asks_waits_no_longer_than_he_wants(sampler: Sampler, tables: Tables) -> None:
    sampler.sums(5)
    tables.release.clear()
    started = time.monotonic()
    assert sampler.sums(0.05)[WEB_HOST] == (1, 1)
    assert time.monotonic() - started < 2
    tables.release.set()
    eventually(lambda: sampler.sums(0)[WEB_HOST].packets > 1)


def test_a_look_that_fails_leaves_the_last_sums(sampler: Sampler, tables: Tables) -> None:
    sampler.sums(5)
    tables.broken = True
    assert sampler.sums(5)[WEB_HOST] == (1, 1)
    tables.broken = False
    assert sampler.sums(5)[WEB_HOST] == (2, 2)


def test_a_look_waits_for_the_end_of_a_write_and_who_asks_does_not(
    sampler: Sampler, tables: Tables
) -> None:
    sampler.sums(5)
    with tables.writes.under_way(Change({"IPVS_OUTPUT": ()})):
        tables.starts.clear()
        assert sampler.sums(0.05)[WEB_HOST] == (1, 1)
        assert tables.starts.wait(5)
    # What it found of that chain may be of before or after, and counts later.
    eventually(lambda: sampler.sums(5)[WEB_HOST].packets == 1 + tables.looks)


def test_what_a_look_waits_for_a_write_keeps_nobody_from_the_next(
    sampler: Sampler, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_node_agent.observe.counters._REST", 100.0)
    with tables.writes.under_way(Change({"IPVS_OUTPUT": ()})):
        sampler.sums(0.5)
    # Not by asking, which would be for another look.
    eventually(lambda: sampler._sums)
    eventually(lambda: sampler.sums(0) and tables.looks > 1)


def test_who_asks_again_and_again_is_shown_the_same(
    sampler: Sampler, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_node_agent.observe.counters._PERIOD", 60.0)
    for _ in range(5):
        assert sampler.sums(5)[WEB_HOST] == (1, 1)
    assert tables.looks == 1
