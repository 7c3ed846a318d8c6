"""From events to rules: when the agent writes, what it writes, and what it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from ipvs_node_agent.config.settings import Chains, Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.iptables.table import Since
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family, parse_network
from ipvs_node_agent.model.events import NODES, SERVICES, Deleted, Recovered, Skipped, Trouble
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    CLUSTER_6,
    EXTERNAL_4,
    EXTERNAL_6,
    OTHER,
    WEB_4,
    WEB_6,
    Entry,
    Node,
    Table,
    other,
    running,
    said,
    web,
    with_ingress,
    with_metadata,
)
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node, service
from tests.support.faketable import FakeTable


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# 1. The first write


def test_nothing_is_written_before_services_and_node_are_listed() -> None:
    fresh = Node()
    fresh.pass_time(100)
    fresh.holds_nothing()
    fresh.list_services(web(EXTERNAL_4))
    fresh.pass_time(100)
    fresh.holds_nothing()
    fresh.list_node(node(*POD_CIDRS))
    fresh.settle()
    fresh.holds(WEB_4)


def test_nothing_is_written_either_while_only_the_node_is_listed() -> None:
    fresh = Node()
    fresh.list_node(node(*POD_CIDRS))
    fresh.pass_time(100)
    fresh.holds_nothing()
    fresh.list_services(web(EXTERNAL_4))
    fresh.settle()
    fresh.holds(WEB_4)


def test_existing_rules_stand_until_both_are_listed() -> None:
    before = running(web(EXTERNAL_4), other())
    again = Node(before=before)
    again.list_node(node(*POD_CIDRS))
    again.pass_time(100)
    again.holds(WEB_4, OTHER)
    again.list_services(other())
    again.settle()
    again.holds(OTHER)


def test_a_restart_with_nothing_to_do_writes_nothing() -> None:
    before = running(web(EXTERNAL_4, EXTERNAL_6), other())
    written = before.restores
    again = Node(before=before)
    again.list_services(other(), web(EXTERNAL_4, EXTERNAL_6))
    again.list_node(node(*POD_CIDRS))
    again.pass_time(100)
    assert again.agent.in_sync
    assert again.restores == written


def test_a_service_that_was_deleted_while_the_agent_was_down_goes_at_the_start() -> None:
    before = running(web(EXTERNAL_4), other())
    again = Node(before=before)
    again.list_node(node(*POD_CIDRS))
    again.list_services(web(EXTERNAL_4))
    again.settle()
    again.holds(WEB_4)


def test_no_service_at_all_still_makes_the_chains() -> None:
    running().holds()


def test_a_family_that_the_node_does_not_speak_is_left_alone() -> None:
    fresh = Node()
    raw = node(POD_CIDRS[0])
    raw["status"]["addresses"] = [{"type": "InternalIP", "address": "192.168.7.11"}]
    fresh.list_node(raw)
    fresh.list_services(web(EXTERNAL_4))
    fresh.pass_time(100)
    assert fresh.restores == {IPV4: 1, IPV6: 0}


# 2. Waiting for the Node


def test_an_unknown_node_is_waited_for_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    fresh = Node()
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node()
    fresh.pass_time(100)
    fresh.put(other())
    fresh.pass_time(100)
    fresh.holds_nothing()
    assert said(caplog, "waiting") == [
        "waiting, and leaving all rules as they are: this Node is not known to the API server yet"
        " (see nodeName)"
    ]
    fresh.put_node(node(*POD_CIDRS))
    fresh.settle()
    fresh.holds(WEB_4, OTHER)


def test_a_node_without_a_pod_cidr_is_waited_for_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fresh = Node()
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node(node())
    fresh.pass_time(100)
    fresh.put_node(node())
    fresh.pass_time(100)
    fresh.holds_nothing()
    (waiting,) = said(caplog, "waiting")
    assert "Node worker-1 has no pod CIDR yet" in waiting
    assert "set podCIDRs" in waiting
    fresh.put_node(node(POD_CIDRS[0]))
    fresh.settle()
    fresh.holds(WEB_4, cidrs=POD_CIDRS[:1])
    assert len(said(caplog, "waiting")) == 1


def test_each_reason_to_wait_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fresh = Node()
    fresh.list_services()
    fresh.list_node()
    fresh.pass_time(10)
    fresh.put_node(node())
    fresh.pass_time(10)
    assert len(said(caplog, "waiting")) == 2


def test_nothing_is_waited_for_where_the_configuration_has_pod_cidrs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fresh = Node(Config(pod_cidrs=(parse_network("10.1.0.0/16"),)))
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node(node())
    fresh.settle()
    fresh.holds(WEB_4, cidrs=["10.1.0.0/16"])
    assert not said(caplog, "waiting")


def test_another_pod_cidr_changes_only_the_pods_chain() -> None:
    started = running(web(EXTERNAL_4))
    started.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    started.settle()
    started.holds(WEB_4, cidrs=["10.240.9.0/24", POD_CIDRS[1]])
    assert started.restores == {IPV4: 2, IPV6: 1}
    assert started.written(IPV4) == ["IPVS_PREROUTING"]


@pytest.mark.parametrize("listed", [False, True], ids=["by a change", "by a list"])
def test_a_node_that_loses_its_pod_cidrs_keeps_its_rules(
    listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    started = running(web(EXTERNAL_4))
    for _ in range(3):
        started.list_node(node()) if listed else started.put_node(node())
        started.pass_time(10)
    started.put(other())
    started.settle()
    started.holds(WEB_4, OTHER)
    assert said(caplog, "lost its pod CIDRs")[0] == (
        "Node worker-1 lost its pod CIDRs; keeping the last ones"
    )
    assert len(said(caplog, "lost its pod CIDRs")) == 1


@pytest.mark.parametrize("listed", [False, True], ids=["by a deletion", "by a list"])
def test_a_node_that_disappears_keeps_its_rules(
    listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    started = running(web(EXTERNAL_4))
    for _ in range(3):
        if listed:
            started.list_node()
        else:
            started.agent.take(Deleted(NODES, "worker-1", started.clock.now))
        started.pass_time(10)
    started.delete("web")
    started.put(other())
    started.settle()
    started.holds(OTHER)
    assert said(caplog, "is gone") == [
        "Node worker-1 is gone from the API server; keeping its rules"
    ]


def test_a_node_that_comes_back_is_used_again() -> None:
    started = running(web(EXTERNAL_4))
    started.agent.take(Deleted(NODES, "worker-1", started.clock.now))
    started.settle()
    started.put_node(node("10.240.9.0/24"))
    started.settle()
    started.holds(WEB_4, cidrs=["10.240.9.0/24"])


# 3. Every transition


class Case(NamedTuple):
    """What `web` is before and after (None: not there), and the rules that are wanted then."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    wanted: Sequence[Entry] = ()
    untouched: Sequence[Family] = ()


SECOND, THIRD = "10.19.20.202", "10.19.20.203"

TRANSITIONS = {
    "a Service is made": Case(None, web(EXTERNAL_4), [WEB_4], [IPV6]),
    "a Service is deleted": Case(web(EXTERNAL_4), None, [], [IPV6]),
    "an external IP is added": Case(
        web(EXTERNAL_4), web(EXTERNAL_4, SECOND), [WEB_4, (SECOND, "web", CLUSTER_4)], [IPV6]
    ),
    "an external IP is changed": Case(
        web(EXTERNAL_4), web(SECOND), [(SECOND, "web", CLUSTER_4)], [IPV6]
    ),
    "an external IP is removed": Case(web(EXTERNAL_4, SECOND), web(EXTERNAL_4), [WEB_4], [IPV6]),
    "the only external IP is removed": Case(web(EXTERNAL_4), web(), [], [IPV6]),
    "two of three external IPs are removed": Case(
        web(EXTERNAL_4, SECOND, THIRD), web(SECOND), [(SECOND, "web", CLUSTER_4)], [IPV6]
    ),
    "external IPs change places": Case(
        web(EXTERNAL_4, SECOND),
        web(SECOND, EXTERNAL_4),
        [WEB_4, (SECOND, "web", CLUSTER_4)],
        FAMILIES,
    ),
    "the type becomes ClusterIP": Case(
        web(EXTERNAL_4), web(EXTERNAL_4, type="ClusterIP"), [], [IPV6]
    ),
    "the type becomes LoadBalancer again": Case(
        web(EXTERNAL_4, type="NodePort"), web(EXTERNAL_4), [WEB_4], [IPV6]
    ),
    "the ClusterIP becomes another one": Case(
        web(EXTERNAL_4),
        web(EXTERNAL_4, cluster_ips=["10.231.9.9"]),
        [(EXTERNAL_4, "web", "10.231.9.9")],
        [IPV6],
    ),
    "the Service becomes headless": Case(
        web(EXTERNAL_4), web(EXTERNAL_4, cluster_ips=["None"]), [], [IPV6]
    ),
    "single-stack becomes dual-stack": Case(
        web(EXTERNAL_4, cluster_ips=[CLUSTER_4]),
        web(EXTERNAL_4, EXTERNAL_6),
        [WEB_4, WEB_6],
        [IPV4],
    ),
    "dual-stack becomes single-stack": Case(
        web(EXTERNAL_4, EXTERNAL_6),
        web(EXTERNAL_6, cluster_ips=[CLUSTER_6]),
        [WEB_6],
        [IPV6],
    ),
    "an external IP loses its family's ClusterIP": Case(
        web(EXTERNAL_4, EXTERNAL_6),
        web(EXTERNAL_4, EXTERNAL_6, cluster_ips=[CLUSTER_4]),
        [WEB_4],
        [IPV4],
    ),
    "the ingress becomes a host name": Case(
        web(EXTERNAL_4), with_ingress(web(), {"hostname": "lb.example.org"}), [], [IPV6]
    ),
    "a host name becomes an ingress": Case(
        with_ingress(web(), {"hostname": "lb.example.org"}), web(EXTERNAL_4), [WEB_4], [IPV6]
    ),
    "a host name joins the ingress": Case(
        web(EXTERNAL_4),
        with_ingress(web(), {"hostname": "lb.example.org"}, {"ip": EXTERNAL_4}),
        [WEB_4],
        FAMILIES,
    ),
    "ipMode becomes Proxy": Case(
        web(EXTERNAL_4), with_ingress(web(), {"ip": EXTERNAL_4, "ipMode": "Proxy"}), [], [IPV6]
    ),
    "ipMode becomes VIP": Case(
        with_ingress(web(), {"ip": EXTERNAL_4, "ipMode": "Proxy"}),
        with_ingress(web(), {"ip": EXTERNAL_4, "ipMode": "VIP"}),
        [WEB_4],
        [IPV6],
    ),
    "the opt-out annotation is set": Case(
        web(EXTERNAL_4),
        with_metadata(web(EXTERNAL_4), annotations={"ipvs-node-agent/ignore": "true"}),
        [],
        [IPV6],
    ),
    "the opt-out annotation is unset": Case(
        with_metadata(web(EXTERNAL_4), annotations={"ipvs-node-agent/ignore": "true"}),
        web(EXTERNAL_4),
        [WEB_4],
        [IPV6],
    ),
    "another proxy's label is set": Case(
        web(EXTERNAL_4),
        with_metadata(web(EXTERNAL_4), labels={"service.kubernetes.io/service-proxy-name": "x"}),
        [],
        [IPV6],
    ),
    "the headless label is unset": Case(
        with_metadata(web(EXTERNAL_4), labels={"service.kubernetes.io/headless": ""}),
        web(EXTERNAL_4),
        [WEB_4],
        [IPV6],
    ),
    "something of no matter changes": Case(
        web(EXTERNAL_4),
        with_metadata(web(EXTERNAL_4), labels={"app": "web"}, resourceVersion="7"),
        [WEB_4],
        FAMILIES,
    ),
}


@pytest.mark.parametrize("how", ["told", "listed", "restarted"])
@pytest.mark.parametrize("case", TRANSITIONS.values(), ids=TRANSITIONS.keys())
def test_every_transition_ends_in_exactly_the_wanted_rules(case: Case, how: str) -> None:
    started = running(*([case.before] if case.before else []), other())
    before = started.restores
    if how == "restarted":
        started = Node(before=started)
        started.list_node(node(*POD_CIDRS))
    if how != "told":
        started.list_services(*([case.after] if case.after else []), other())
    elif case.after:
        started.put(case.after)
    else:
        started.delete("web")
    started.settle()
    started.holds(OTHER, *case.wanted)
    # One write for a change, and none where a family has nothing to do with it.
    for family in FAMILIES:
        writes = started.restores[family] - before[family]
        assert writes == (0 if family in case.untouched else 1)
    assert started.agent.in_sync


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["at once", "later"])
def test_a_service_made_again_with_another_cluster_ip_has_only_its_new_rules(
    seconds: float,
) -> None:
    started = running(web(EXTERNAL_4))
    started.delete("web")
    started.pass_time(seconds)
    started.put(web(EXTERNAL_4, cluster_ips=["10.231.9.9"]))
    started.settle()
    started.holds((EXTERNAL_4, "web", "10.231.9.9"))


def test_there_and_back_again_writes_nothing() -> None:
    started = running(web(EXTERNAL_4))
    started.delete("web")
    started.put(web(EXTERNAL_4))
    started.settle()
    started.holds(WEB_4)
    assert started.restores == {IPV4: 1, IPV6: 1}


def test_a_deletion_of_what_was_never_known_changes_nothing() -> None:
    started = running(web(EXTERNAL_4))
    started.delete("unknown")
    started.settle()
    started.holds(WEB_4)


def test_a_list_replaces_everything_before_it() -> None:
    started = running(web(EXTERNAL_4), other())
    started.list_services(service("third", ["10.231.3.3"], ["10.19.3.3"]))
    started.settle()
    started.holds(("10.19.3.3", "third", "10.231.3.3"))


# 4. One writer


def test_a_change_is_written_at_once() -> None:
    started = running()
    started.pass_time(0.3)
    started.put(web(EXTERNAL_4))
    started.tick()
    started.holds(WEB_4)


def test_a_write_holds_only_the_chains_that_differ() -> None:
    started = running(web(EXTERNAL_4))
    started.agent.reconfigure(replace(started.config, masquerade="HostOnly"), started.programmers())
    started.settle()
    assert started.written(IPV4) == ["IPVS_PREROUTING"]
    assert started.restores == {IPV4: 2, IPV6: 1}


def test_a_write_is_no_flush_and_leaves_the_built_in_chains_alone() -> None:
    started = running(web(EXTERNAL_4))
    started.put(other())
    started.settle()
    assert not re.search("PREROUTING ACCEPT|-F|-P|-I|-D", started.tables[IPV4].last_input)


def test_a_burst_becomes_few_writes() -> None:
    started = running()
    before = started.restores[IPV4]
    for index in range(1000):
        started.put(other(f"10.19.{index // 200}.{index % 200 + 1}", f"web-{index}"))
        started.clock.now += 0.001
        started.tick()
    started.settle()
    assert sum("DNAT" in line for line in started.rules(IPV4)) == 1000 * 2
    assert started.restores[IPV4] - before <= 16


def pool(count: int) -> list[dict[str, Any]]:
    """Services enough for chains that are split."""
    return [other(f"10.19.0.{number}", f"web-{number}") for number in range(1, count + 1)]


def longest(started: Node) -> int:
    """How many rules the longest chain of the agent's has."""
    names = [line.split(" ")[1] for line in started.rules(IPV4) if line.startswith("-A ")]
    return max(map(names.count, names))


def test_a_chain_that_becomes_too_long_is_split_a_second_after_the_change() -> None:
    started = running(*pool(15), *(other(f"10.19.9.{n}", f"far-{n}") for n in range(1, 9)))
    assert longest(started) == 30
    before = started.restores[IPV4]
    started.put(other("10.19.0.16", "web-16"), other("10.19.0.17", "web-17"))
    started.tick()
    assert started.restores[IPV4] == before + 1
    assert longest(started) == 34
    started.pass_time(0.9)
    assert started.restores[IPV4] == before + 1
    started.pass_time(0.2)
    assert started.restores[IPV4] == before + 2
    assert longest(started) <= 32
    started.pass_time(20)
    assert started.restores[IPV4] == before + 2


def test_changes_that_go_on_do_not_put_splitting_off() -> None:
    started = running(*pool(17))
    for number in range(18, 80):
        started.put(other(f"10.19.0.{number}", f"web-{number}"))
        started.pass_time(0.15)
    assert longest(started) <= 34


def test_a_burst_is_split_with_its_own_write() -> None:
    started = running(*pool(17))
    before = started.restores[IPV4]
    started.put(*pool(60))
    started.tick()
    assert started.restores[IPV4] == before + 1
    assert longest(started) <= 32
    started.pass_time(10)
    assert started.restores[IPV4] == before + 1


def test_a_restart_after_changes_that_have_settled_writes_nothing() -> None:
    started = running(*pool(30))
    for number in range(31, 60):
        started.put(other(f"10.19.0.{number}", f"web-{number}"))
        started.settle()
    started.pass_time(2)
    before = started.restores
    again = Node(before=started)
    again.list_node(node(*POD_CIDRS))
    again.list_services(*pool(59))
    again.pass_time(10)
    assert again.restores == before


def test_an_idle_agent_ticks_only_for_its_checks() -> None:
    started = running(web(EXTERNAL_4))
    # A busy machine makes a look take long, and the next one come between two of these.
    assert started.pass_time(100) <= 210


# 5. Drift


def meddle(table: Table, *lines: str) -> None:
    """Changes a table behind the agent's back."""
    count = table.restores
    table.restore("\n".join(["*nat", *lines, "COMMIT", ""]))
    table.restores = count


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["-F IPVS_OUTPUT"], id="a chain is emptied"),
        pytest.param(["-F PREROUTING", "-F OUTPUT"], id="the built-in chains are emptied"),
        pytest.param(
            ["-F OUTPUT", "-F IPVS_OUTPUT", "-X IPVS_OUTPUT"], id="a chain and its jump are gone"
        ),
        pytest.param(["-A IPVS_PREROUTING -j RETURN"], id="a rule too many"),
        pytest.param(["-A OUTPUT -j IPVS_OUTPUT"], id="a jump too many"),
    ],
)
def test_drift_is_repaired_at_the_next_check(
    lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    started = running(web(EXTERNAL_4))
    meddle(started.tables[IPV4], *lines)
    started.pass_time(2.1)
    started.holds(WEB_4)
    assert started.restores == {IPV4: 2, IPV6: 1}
    assert len(said(caplog, "^IPv4: repaired ")) == 1


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [
        pytest.param(0.001, 2, id="driftCheckPeriod"),
        pytest.param(0.015, 3, id="half a hundredth of the time at most"),
        pytest.param(1, 4, id="often enough for a repair within five seconds"),
    ],
)
def test_the_more_a_check_costs_the_less_often_it_comes(
    seconds: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = running(web(EXTERNAL_4))
    # There is one for each family.
    monkeypatch.setattr(Programmer, "check_seconds", seconds / 2)
    started.pass_time(10)
    before = started.tables[IPV4].tries
    started.pass_time(120)
    assert started.tables[IPV4].tries - before == pytest.approx(120 / pause, abs=2)


def test_the_kernel_is_not_believed_for_longer_than_five_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = running(web(EXTERNAL_4))
    monkeypatch.setattr(FakeTable, "changed", lambda *_: Since.UNCHANGED)
    wanted = started.rules(IPV4)
    meddle(started.tables[IPV4], "-F IPVS_OUTPUT")
    started.pass_time(200)
    assert started.rules(IPV4) != wanted
    started.pass_time(110)
    assert started.rules(IPV4) == wanted


def test_our_jump_comes_first_again_after_somebody_got_ahead() -> None:
    started = running(web(EXTERNAL_4))
    meddle(started.tables[IPV4], "-I PREROUTING 1 -j KUBE-POSTROUTING")
    started.pass_time(2.1)
    jumps = [line for line in started.tables[IPV4].lines if line.startswith("-A PREROUTING")]
    assert jumps == ["-A PREROUTING -j IPVS_PREROUTING", "-A PREROUTING -j KUBE-POSTROUTING"]


def test_a_change_after_unseen_drift_still_ends_in_the_wanted_rules() -> None:
    started = running(web(EXTERNAL_4))
    meddle(started.tables[IPV4], "-F PREROUTING", "-F IPVS_PREROUTING", "-X IPVS_PREROUTING")
    started.put(other())
    started.pass_time(2.1)
    started.holds(WEB_4, OTHER)


def test_a_check_that_finds_nothing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    caplog.clear()
    started.pass_time(100)
    assert not said(caplog)
    assert started.restores == {IPV4: 1, IPV6: 1}


def test_nothing_is_repaired_before_anything_was_listed() -> None:
    before = running(web(EXTERNAL_4))
    again = Node(before=before)
    meddle(again.tables[IPV4], "-F IPVS_OUTPUT")
    again.pass_time(100)
    assert again.restores == {IPV4: 1, IPV6: 1}


# 6. Failures


def test_a_family_that_fails_does_not_hold_up_the_other() -> None:
    fresh = Node()
    fresh.tables[IPV4].broken = BUSY
    fresh.list_node(node(*POD_CIDRS))
    fresh.list_services(web(EXTERNAL_4, EXTERNAL_6))
    fresh.settle()
    assert fresh.restores == {IPV4: 0, IPV6: 1}
    fresh.put(web(EXTERNAL_6))
    fresh.delete("web")
    fresh.settle()
    assert fresh.rules(IPV6) == expected_rules([], POD_CIDRS[1:])
    assert not fresh.agent.in_sync


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
    site.agent.reconfigure(site.config, site.programmers())
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


def test_a_failed_write_is_tried_again_with_growing_delays() -> None:
    started = running()
    started.tables[IPV4].broken = BUSY
    started.put(web(EXTERNAL_4))
    assert gaps(started, 35) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_lock_that_somebody_holds_is_asked_for_again_at_once() -> None:
    """The command has waited for it already, as long as the configuration says."""
    started = running()
    started.tables[IPV4].broken = TableError("iptables-legacy-restore", "busy", locked=True)
    started.put(web(EXTERNAL_4))
    assert set(gaps(started, 30)) == {0.2}


def test_a_failure_and_its_end_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    started.tables[IPV4].broken = BUSY
    started.put(web(EXTERNAL_4))
    started.pass_time(100)
    assert said(caplog, "^IPv4: cannot") == [
        "IPv4: cannot program the kernel, trying again: iptables-nft-restore: Resource temporarily"
        " unavailable"
    ]
    started.tables[IPV4].broken = None
    started.pass_time(11)
    started.holds(WEB_4)
    assert said(caplog, "works again") == ["IPv4: works again"]


def test_another_failure_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    for why in ("busy", "broken"):
        started.tables[IPV4].broken = TableError("iptables-nft-save", why)
        started.pass_time(60)
    assert len(said(caplog, "cannot program")) == 2


def test_delays_start_over_after_a_success() -> None:
    started = running()
    started.tables[IPV4].broken = BUSY
    started.put(web(EXTERNAL_4))
    started.pass_time(60)
    started.tables[IPV4].broken = None
    started.pass_time(11)
    assert started.agent.in_sync
    started.tables[IPV4].broken = BUSY
    started.put(other())
    assert gaps(started, 2) == [0.2, 0.4, 0.8]


def test_a_write_that_fails_once_is_not_even_worth_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running()
    started.tables[IPV4].fail_next(BUSY)
    started.put(web(EXTERNAL_4))
    started.tick()
    started.holds(WEB_4)
    assert not said(caplog, "cannot")


def test_changes_during_a_failure_are_written_when_it_is_over() -> None:
    started = running(web(EXTERNAL_4))
    started.tables[IPV4].broken = BUSY
    started.delete("web")
    started.pass_time(5)
    started.put(other())
    started.pass_time(5)
    started.tables[IPV4].broken = None
    started.pass_time(11)
    started.holds(OTHER)


def test_a_check_that_cannot_read_is_a_failure_too(caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    started.tables[IPV6].broken = TableError("ip6tables-nft-save", "not found")
    started.pass_time(10)
    assert not started.agent.in_sync
    assert len(said(caplog, "^IPv6: cannot")) == 1
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
    raw = node(POD_CIDRS[0])
    raw["status"]["addresses"] = [{"type": "InternalIP", "address": "192.168.7.11"}]
    fresh.list_node(raw)
    fresh.list_services(web(EXTERNAL_4, cluster_ips=[CLUSTER_4]))
    fresh.pass_time(60)
    assert fresh.agent.in_sync
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_change_is_said_also_while_the_other_family_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running()
    started.tables[IPV6].broken = BUSY
    started.pass_time(5)
    started.put(web(EXTERNAL_4))
    started.settle()
    assert said(caplog, f"^default/web: {EXTERNAL_4} to ")


# 7. What is said


def test_a_change_is_said_with_the_time_it_took(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    started.put(web(EXTERNAL_4, EXTERNAL_6))
    started.clock.now += 0.05
    started.settle()
    (line,) = said(caplog, "^default/web: ")
    assert line.startswith(f"default/web: {EXTERNAL_4} {EXTERNAL_6} to {CLUSTER_4} {CLUSTER_6} (")
    assert line.endswith(" ms)")
    started.put(web())
    started.settle()
    gone = f"was {EXTERNAL_4} {EXTERNAL_6} to {CLUSTER_4} {CLUSTER_6} ("
    assert said(caplog, "^default/web: ")[1].startswith(f"default/web: no external IP, {gone}")
    started.put(web(EXTERNAL_4))
    started.settle()
    started.delete("web")
    started.settle()
    last = said(caplog, "^default/web: ")[-1]
    assert last.startswith(f"default/web: deleted, was {EXTERNAL_4} to {CLUSTER_4}")


def test_services_that_never_had_an_external_ip_are_not_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running()
    caplog.clear()
    started.put(web(type="ClusterIP"))
    started.settle()
    started.delete("web")
    started.settle()
    assert not said(caplog)


def test_external_ips_without_rules_are_not_said_to_lead_anywhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running()
    started.put(web("127.0.0.1"))
    started.settle()
    assert said(caplog, "^default/web: 127.0.0.1 without rules \\(")
    started.put(web(EXTERNAL_4, "127.0.0.1"))
    started.settle()
    assert said(caplog, f"^default/web: {EXTERNAL_4} to ")


def test_external_ips_of_the_spec_are_said_where_they_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = service("plain", [CLUSTER_4], [], externalIPs=["10.19.30.1"])
    started = running()
    caplog.clear()
    started.put(raw)
    started.settle()
    assert not said(caplog)
    wanting = replace(started.config, services=replace(started.config.services, external_ips=True))
    counting = running(config=wanting)
    counting.put(raw)
    counting.settle()
    assert said(caplog, f"^default/plain: 10.19.30.1 to {CLUSTER_4} ")


def test_a_change_of_a_service_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    started = running(*(other(f"10.19.1.{n + 1}", f"web-{n}") for n in range(20)))
    caplog.clear()
    started.put(web(EXTERNAL_4, EXTERNAL_6))
    started.pass_time(10)
    (line,) = said(caplog)
    assert line.startswith("default/web: ")


def test_what_the_agent_writes_for_another_reason_is_said(caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    assert [line.partition(" in ")[0] for line in said(caplog, ": wrote ")] == [
        "IPv4: wrote 2 chains, 4 rules, 2 jumps",
        "IPv6: wrote 2 chains, 2 jumps",
    ]
    caplog.clear()
    started.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    started.settle()
    assert [line.partition(" in ")[0] for line in said(caplog)] == ["IPv4: wrote 1 chain, 2 rules"]


def test_on_debug_it_tells_what_was_compared(caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    started.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    started.settle()
    compared, *differences = said(caplog, "^IPv4: (compared|[-+]) ")
    assert compared == (
        "IPv4: compared the table, 2 chains with 4 rules, with 2 chains with"
        " 4 rules as wanted: 4 differences"
    )
    assert [line.split()[1:5] for line in differences] == [
        [sign, "IPVS_PREROUTING", "-s", cidr]
        for sign, cidr in (("-", POD_CIDRS[0]), ("+", "10.240.9.0/24"))
        for _ in range(2)
    ]
    caplog.clear()
    started.pass_time(20)
    # Nothing was looked at that nobody touched.
    assert not said(caplog, "^IPv4")
    started.tables[IPV4].restore("*nat\n-F IPVS_OUTPUT\nCOMMIT\n")
    started.pass_time(3)
    assert said(caplog, "^IPv4: compared the table, 2 chains with 2 rules, with 2 chains with 4 ")


def test_the_first_list_is_not_said_service_by_service(caplog: pytest.LogCaptureFixture) -> None:
    running(web(EXTERNAL_4), other())
    assert not said(caplog, "^default/")


def test_a_burst_is_not_said_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    caplog.clear()
    started.put(*(other(f"10.19.1.{index + 1}", f"web-{index}") for index in range(100)))
    started.settle()
    assert len(said(caplog)) <= 25
    assert said(caplog, "more$") == ["and 80 Services more"]


def test_a_problem_is_said_once_and_again_when_it_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running(web("127.0.0.1"))
    started.put(other())
    started.pass_time(10)
    assert len(said(caplog, "127.0.0.1 is refused")) == 1
    started.put(web(EXTERNAL_4))
    started.pass_time(10)
    started.put(web("127.0.0.1"))
    started.pass_time(10)
    assert len(said(caplog, "127.0.0.1 is refused")) == 2


def test_many_problems_are_not_said_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    running(*(other("127.0.0.1", f"web-{index:03}") for index in range(100)))
    assert len(said(caplog, "127.0.0.1")) == 20
    assert said(caplog, "more$") == ["and 80 problems more"]


def test_what_was_passed_over_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = Node()
    # Each list has it again.
    for _ in range(3):
        made.agent.take(Skipped(SERVICES, "wanted a Service, got 'Pod'"))
    assert said(caplog) == [
        "passed over in the services of the API server: wanted a Service, got 'Pod'"
    ]


AWAY = RefusedError("API server https://10.0.0.1:6443", "cannot be reached: Connection refused")


def test_an_outage_is_said_once_for_both_resources_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running(web(EXTERNAL_4))
    caplog.clear()
    for _ in range(5):
        started.agent.take(Trouble(SERVICES, AWAY))
        started.agent.take(Trouble(NODES, AWAY))
        started.pass_time(30)
    assert said(caplog) == [
        "API server https://10.0.0.1:6443: cannot be reached: Connection refused (trying again;"
        " the rules stay as they are)"
    ]
    started.agent.take(Recovered(SERVICES))
    assert len(said(caplog)) == 1
    started.agent.take(Recovered(NODES))
    started.agent.take(Recovered(NODES))
    assert said(caplog)[1:] == ["the API server answers again"]
    started.holds(WEB_4)
    assert started.restores == {IPV4: 1, IPV6: 1}


def test_each_outage_is_said(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    caplog.clear()
    for _ in range(3):
        started.agent.take(Trouble(SERVICES, AWAY))
        started.agent.take(Recovered(SERVICES))
    assert len(said(caplog)) == 6


def test_another_reason_is_said(caplog: pytest.LogCaptureFixture) -> None:
    started = running()
    caplog.clear()
    started.agent.take(Trouble(SERVICES, AWAY))
    started.agent.take(Trouble(SERVICES, RefusedError("API server", "403 Forbidden")))
    assert len(said(caplog)) == 2


def test_an_answer_without_an_outage_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    Node().agent.take(Recovered(SERVICES))
    assert not said(caplog)


def test_drift_is_repaired_during_an_outage_too() -> None:
    started = running(web(EXTERNAL_4))
    started.agent.take(Trouble(SERVICES, AWAY))
    started.agent.take(Trouble(NODES, AWAY))
    started.pass_time(3600)
    meddle(started.tables[IPV4], "-F IPVS_OUTPUT")
    started.pass_time(2.1)
    started.holds(WEB_4)


# 8. Another configuration


def test_the_same_configuration_again_writes_nothing() -> None:
    started = running(web(EXTERNAL_4))
    started.agent.reconfigure(started.config, started.programmers())
    started.pass_time(10)
    assert started.restores == {IPV4: 1, IPV6: 1}


def test_another_configuration_is_put_to_work_at_once() -> None:
    started = running(web(EXTERNAL_4))
    cidrs = (parse_network("10.1.0.0/16"),)
    started.agent.reconfigure(replace(started.config, pod_cidrs=cidrs), started.programmers())
    started.settle()
    started.holds(WEB_4, cidrs=["10.1.0.0/16"])


def test_other_chain_names_replace_the_old_ones_in_one_write() -> None:
    started = running(web(EXTERNAL_4))
    chains = Chains(prerouting="NEW_PREROUTING", output="NEW_OUTPUT")
    started.agent.reconfigure(replace(started.config, chains=chains), started.programmers())
    started.settle()
    assert started.restores == {IPV4: 2, IPV6: 2}
    assert not started.rules(IPV4)
    lines = by_chain(line for line in started.tables[IPV4].lines if "NEW_" in line)
    assert lines == expected_rules([WEB_4], POD_CIDRS[:1], "NEW_PREROUTING", "NEW_OUTPUT")


def test_other_tables_are_written_at_once() -> None:
    """As when the backend becomes another one: the old one's rules go as soon as this is done."""
    started = running(web(EXTERNAL_4), config=Config(drift_check_period=3600))
    started.tables = started.new_tables()
    started.agent.reconfigure(started.config, started.programmers())
    assert not started.agent.in_sync
    started.tick()
    started.holds(WEB_4)
    assert started.agent.in_sync


def test_a_shorter_time_between_checks_counts_at_once() -> None:
    started = running(web(EXTERNAL_4), config=Config(drift_check_period=3600))
    started.agent.reconfigure(
        replace(started.config, drift_check_period=2.0), started.programmers()
    )
    started.tick()
    meddle(started.tables[IPV4], "-F IPVS_OUTPUT")
    started.pass_time(4.1)
    started.holds(WEB_4)


def test_a_retry_does_not_wait_after_another_configuration() -> None:
    started = running()
    started.tables[IPV4].broken = BUSY
    started.put(web(EXTERNAL_4))
    started.pass_time(30)
    started.tables[IPV4].broken = None
    started.agent.reconfigure(started.config, started.programmers())
    started.tick()
    started.holds(WEB_4)


def test_a_configuration_that_comes_while_waiting_ends_the_wait() -> None:
    fresh = Node()
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node(node())
    fresh.pass_time(10)
    cidrs = (parse_network("10.1.0.0/16"),)
    fresh.agent.reconfigure(Config(pod_cidrs=cidrs), fresh.programmers())
    fresh.settle()
    fresh.holds(WEB_4, cidrs=["10.1.0.0/16"])


# 9. kube-proxy's mode


def test_where_kube_proxy_needs_no_agent_no_service_has_rules(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = running(web(EXTERNAL_4), other())
    for mode in ("iptables", "iptables", "nftables"):
        site.agent.take_proxy_mode(mode)
        site.settle()
        site.holds()
        assert site.agent.in_sync
        assert site.agent.sentence() == (
            f"Not needed: kube-proxy is in {mode} mode; no Service has rules"
        )
        assert site.agent.state().proxy_mode == mode
    assert [text.partition(",")[0] for text in said(caplog, "^kube-proxy")] == [
        "kube-proxy is in iptables mode",
        "kube-proxy is in nftables mode",
    ]


def test_what_changes_there_counts_when_ipvs_is_back(caplog: pytest.LogCaptureFixture) -> None:
    site = running(web(EXTERNAL_4), other())
    site.agent.take_proxy_mode("iptables")
    site.settle()
    caplog.clear()
    site.put(web("10.19.20.202"))
    site.delete("other")
    site.settle()
    site.holds()
    assert said(caplog) == []
    site.agent.take_proxy_mode("ipvs")
    site.settle()
    site.holds(("10.19.20.202", "web", CLUSTER_4))
    assert said(caplog, "^kube") == ["kube-proxy is in ipvs mode: Services get their rules"]
    assert site.agent.state().proxy_mode == "ipvs"


@pytest.mark.parametrize("mode", [None, "ipvs", "userspace"])
def test_any_other_mode_changes_nothing(mode: str | None) -> None:
    site = running(web(EXTERNAL_4))
    before = site.restores
    site.agent.take_proxy_mode(mode)
    site.settle()
    site.holds(WEB_4)
    assert site.restores == before


def test_a_mode_that_is_known_before_the_first_list_keeps_rules_from_being_made() -> None:
    fresh = Node()
    fresh.agent.take_proxy_mode("nftables")
    fresh.list_node(node(*POD_CIDRS))
    fresh.list_services(web(EXTERNAL_4))
    fresh.settle()
    fresh.holds()


# 10. The sentence for an operator


def test_the_sentence_tells_the_way_to_the_first_sync() -> None:
    fresh = Node()
    assert fresh.agent.sentence() == "Waiting: the API server has not told everything yet"
    fresh.agent.take(Trouble(SERVICES, AWAY))
    assert fresh.agent.sentence() == (
        "Waiting: API server https://10.0.0.1:6443: cannot be reached: Connection refused"
    )
    fresh.agent.take(Recovered(SERVICES))
    fresh.list_services(web(EXTERNAL_4, EXTERNAL_6), other())
    fresh.list_node(node())
    fresh.settle()
    assert fresh.agent.sentence().startswith(
        "Waiting, and leaving all rules as they are: Node worker-1 has no pod CIDR yet"
    )
    fresh.put_node(node(*POD_CIDRS))
    assert fresh.agent.sentence() == "Writing changes to the kernel"
    fresh.settle()
    assert fresh.agent.sentence() == "In sync; Services with rules: 2 in IPv4, 1 in IPv6"


def test_the_sentence_tells_what_is_wrong_now_and_not_what_was() -> None:
    started = running(web(EXTERNAL_4))
    in_sync = started.agent.sentence()
    started.agent.take(Trouble(NODES, AWAY))
    assert started.agent.sentence() == f"{in_sync}; not following changes: {AWAY}"
    started.agent.take(Recovered(NODES))
    assert started.agent.sentence() == in_sync
    started.tables[IPV4].broken = BUSY
    started.put(other())
    started.settle()
    assert started.agent.sentence() == (f"Cannot program the kernel, trying again: IPv4: {BUSY}")
    started.tables[IPV4].broken = None
    started.pass_time(20)
    assert started.agent.sentence() == "In sync; Services with rules: 2 in IPv4"
    started.delete("web", "other")
    started.settle()
    assert started.agent.sentence() == "In sync; Services with rules: none"
