"""One family's table: failures and retries, the chain that marks, UDP flows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Misfit, Programmer
from ipvs_node_agent.model.addresses import (
    FAMILIES,
    IPV4,
    IPV6,
    Address,
    Family,
    parse_address,
    parse_network,
)
from ipvs_node_agent.nat.flows import Flows
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    EXTERNAL_4,
    EXTERNAL_6,
    OTHER,
    WEB_4,
    Log,
    Node,
    Table,
    ipv4_node,
    other,
    running,
    web,
)
from tests.support.cluster import POD_CIDRS, service
from tests.support.faketable import FakeTable
from tests.support.tables import EMPTY_MARK_MASQ, MARK_MASQ

# 1. Failures


class Hanging(Table):
    """A table whose commands end at their time limit only."""

    LIMIT = 35.0

    def __init__(self, site: Node) -> None:
        super().__init__()
        self._site = site
        # When each attempt began, and what the tables had been restored by then.
        self.began: list[tuple[float, dict[Family, int]]] = []

    def save(self) -> str:
        self.began.append((self._site.clock.now, self._site.restores))
        self._site.clock.now += self.LIMIT
        raise TableError("iptables-nft-save", "did not end within 35 s")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_hangs_comes_last_and_leaves_the_other_half_of_the_time(
    family: Family,
) -> None:
    site = running(web(EXTERNAL_4, EXTERNAL_6))
    hanging = site.tables[family] = Hanging(site)
    works = IPV4 if family is IPV6 else IPV6
    site.reload()
    site.agent.tick()
    for n in range(1, 5):
        before = site.restores[works]
        # Seen at the very moment of the next attempt.
        site.clock.now += Hanging.LIMIT
        site.put(web(f"10.19.20.{n}", f"fd00:10:19::{n}"))
        site.agent.tick()
        assert hanging.began[n][1][works] == before + 1
    while len(hanging.began) < 10:
        site.clock.now = max(site.clock.now, site.agent.tick())
    moments = [moment for moment, _ in hanging.began]
    assert min(late - early for early, late in zip(moments, moments[1:])) >= 2 * Hanging.LIMIT


def gaps(started: Node, seconds: float) -> list[float]:
    """The seconds between the attempts at the IPv4 table."""
    attempts, end = [], started.clock.now + seconds
    while started.clock.now < end:
        before = started.tables[IPV4].tries
        due = started.tick()
        if started.tables[IPV4].tries > before:
            attempts.append(started.clock.now)
        started.clock.now = due
    return [round(later - sooner, 3) for sooner, later in zip(attempts, attempts[1:])]


LOCKED = TableError("iptables-legacy-restore", "busy", locked=True)


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        pytest.param(BUSY, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0], id="failing"),
        # The command has waited for it already, as long as the configuration says.
        pytest.param(LOCKED, [0.2] * 8, id="locked"),
    ],
)
def test_a_failed_write_is_tried_again_with_growing_delays_that_start_over_after_a_success(
    error: TableError, delays: list[float]
) -> None:
    started = running()
    for raw in (web(EXTERNAL_4), other()):
        started.tables[IPV4].broken = error
        started.put(raw)
        assert gaps(started, 35)[: len(delays)] == delays
        started.tables[IPV4].broken = None
        started.pass_time(11)
        assert started.agent.in_sync


def test_a_failure_and_its_end_are_said_once_and_another_one_again(log: Log) -> None:
    started = running(web(EXTERNAL_4))
    started.delete("web")
    for error in (BUSY, TableError("iptables-nft-save", "broken")):
        started.tables[IPV4].broken = error
        started.pass_time(60)
        started.put(other())
    started.tables[IPV4].broken = None
    started.pass_time(11)
    started.holds(OTHER)
    assert log.said("^IPv4: (cannot|works)") == [
        f"IPv4: cannot program the kernel, trying again: {BUSY}",
        "IPv4: cannot program the kernel, trying again: iptables-nft-save: broken",
        "IPv4: works again",
    ]


def test_a_check_that_cannot_read_is_a_failure_too(log: Log) -> None:
    started = running(web(EXTERNAL_4))
    started.tables[IPV6].broken = TableError("ip6tables-nft-save", "not found")
    started.pass_time(10)
    assert not started.agent.in_sync
    assert len(log.said("^IPv6: cannot")) == 1
    failures = {family: each.failures for family, each in started.agent.state().families.items()}
    assert failures[IPV6] > failures[IPV4] == 0
    started.tables[IPV6].broken = None
    started.pass_time(11)
    assert started.agent.in_sync
    assert started.restores == {IPV4: 1, IPV6: 1}


def test_a_family_in_which_nothing_is_wanted_and_nothing_works_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a kernel without IPv6."""
    fresh = Node()
    fresh.tables[IPV6].broken = TableError("ip6tables-nft-save", "Protocol not supported")
    fresh.list_node(ipv4_node())
    fresh.list_services(web(EXTERNAL_4, cluster_ips=[CLUSTER_4]))
    fresh.pass_time(60)
    assert fresh.agent.in_sync
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# 2. The chain that marks


OWN_MARK = ["IPVS_MARK_MASQ", "IPVS_POSTROUTING"]


def chains(made: Node) -> list[str]:
    """The agent's chains in the IPv4 table."""
    return sorted(line[1:].split()[0] for line in made.tables[IPV4].lines if line[:5] == ":IPVS")


def targets(made: Node) -> set[str]:
    """Which chains mark, as the IPv4 rules have it."""
    lines = made.tables[IPV4].lines
    return {line.split()[-1] for line in lines if line.endswith(("-MASQ", "_MASQ"))}


def starting(*services: Any) -> Node:
    """A node without Kubernetes' chain that marks."""
    made = Node()
    made.tables[IPV4]._chains = FakeTable()._chains
    made.list_all(*services)
    made.settle()
    return made


def test_ours_is_there_until_kubernetes_is_there_and_filled_and_goes_in_one_write() -> None:
    made = starting(web(EXTERNAL_4))
    assert made.agent.in_sync
    assert set(OWN_MARK) < set(chains(made))
    assert targets(made) == {"IPVS_MARK_MASQ"}
    assert "-A POSTROUTING -j IPVS_POSTROUTING" in made.tables[IPV4].lines
    made.tables[IPV4].restore(EMPTY_MARK_MASQ)
    made.pass_time(3)
    assert targets(made) == {"IPVS_MARK_MASQ"}
    made.tables[IPV4].restore(MARK_MASQ)
    before = made.tables[IPV4].restores
    made.pass_time(3)
    assert made.tables[IPV4].restores == before + 1
    assert targets(made) == {"KUBE-MARK-MASQ"}
    assert chains(made) == ["IPVS_OUTPUT", "IPVS_PREROUTING"]


@pytest.mark.parametrize(
    ("changes", "writes"),
    [
        pytest.param([], 1, id="with the next look"),
        # The first of them jumps to what is gone.
        pytest.param([other()], 2, id="with the next change"),
    ],
)
def test_ours_comes_back_when_kubernetes_is_flushed_with_all_that_jumped_to_it(
    changes: list[Any], writes: int, log: Log
) -> None:
    made = running(web(EXTERNAL_4))
    made.tables[IPV4]._chains = FakeTable()._chains
    before = made.tables[IPV4].restores
    made.put(*changes)
    made.pass_time(3)
    assert made.tables[IPV4].restores == before + writes
    assert targets(made) == {"IPVS_MARK_MASQ"}
    assert made.agent.in_sync
    assert not log.said("cannot")


def test_without_a_service_nothing_marks() -> None:
    made = starting()
    assert chains(made) == ["IPVS_OUTPUT", "IPVS_PREROUTING"]
    made.put(web(EXTERNAL_4))
    made.settle()
    assert set(OWN_MARK) < set(chains(made))
    made.delete("web")
    made.pass_time(3)
    assert chains(made) == ["IPVS_OUTPUT", "IPVS_PREROUTING"]


def test_who_keeps_making_and_removing_it_is_waited_for_like_any_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = running(web(EXTERNAL_4))
    tries: list[bool] = []

    def apply(self: Programmer, wanted: Ruleset) -> Change:
        tries.append("IPVS_MARK_MASQ" in wanted.chains)
        raise Misfit

    with monkeypatch.context() as unsteady:
        unsteady.setattr(Programmer, "apply", apply)
        made.put(other())
        made.tick()
        # Each try is for the other case.
        assert tries == [False, True, False, True, False]
        assert made.agent.sentence().endswith(
            "another program keeps creating and removing the chain for masquerading"
        )
    made.pass_time(1)
    made.holds(WEB_4, OTHER)


# 3. UDP flows


class Conntrack:
    """Notes what it is to forget."""

    def __init__(self) -> None:
        self.forgotten: list[Flows] = []

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        self.forgotten += flows

    def taken(self) -> set[str]:
        """The addresses of what was to be forgotten since the last call."""
        forgotten, self.forgotten = self.forgotten, []
        assert {each.source for each in forgotten} <= {None, *map(parse_network, POD_CIDRS)}
        return {str(each.address) for each in forgotten}


def udp(external: str, cluster_ip: str = "10.231.5.3", name: str = "dns") -> dict[str, Any]:
    ports = [{"protocol": "UDP", "port": 53}]
    return service(name, [cluster_ip], [external], ports=ports)


def flowing(before: Node | None = None) -> tuple[Node, Conntrack]:
    """A node with a UDP Service, and what its agent had forgotten at its start."""
    conntrack = Conntrack()
    made = Node(before=before, conntrack=conntrack)
    made.list_all(udp("10.19.9.9"), web(EXTERNAL_4))
    made.settle()
    return made, conntrack


def test_flows_start_anew_when_their_rule_is_made_changed_removed_or_back() -> None:
    made, conntrack = flowing()
    assert conntrack.taken() == {"10.19.9.9"}
    made.tables[IPV4].meddle("-F IPVS_OUTPUT")
    made.pass_time(3)
    address = parse_address("10.19.9.9")
    assert conntrack.forgotten == [Flows("default/dns", None, address, None, local=True)]
    conntrack.taken()
    # While the jump is missing, packets pass by rules that are all there.
    for gone in ("-D PREROUTING -j IPVS_PREROUTING", "-F OUTPUT"):
        made.tables[IPV4].meddle(gone)
        made.pass_time(3)
        assert conntrack.taken() == {"10.19.9.9"}
    for raw, taken in (
        (udp("10.19.9.9", cluster_ip="10.231.5.4"), {"10.19.9.9"}),
        (udp("10.19.9.10", cluster_ip="10.231.5.4"), {"10.19.9.9", "10.19.9.10"}),
        (None, {"10.19.9.10"}),
    ):
        made.put(raw) if raw else made.delete("dns")
        made.settle()
        assert conntrack.taken() == taken


def test_flows_go_on_over_a_restart_and_beside_changes_of_others() -> None:
    before, _ = flowing()
    again, conntrack = flowing(before)
    again.put(web("10.19.20.202"), udp("10.19.9.10", "10.231.5.5", "more"))
    again.settle()
    assert conntrack.taken() == {"10.19.9.10"}
