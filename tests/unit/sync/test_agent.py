"""From events to rules: when the agent writes, and what; what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest

from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.config.settings import Chains, Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.model import events
from ipvs_node_agent.model.addresses import (
    FAMILIES,
    IPV4,
    IPV6,
    Address,
    Family,
    parse_address,
    parse_network,
)
from ipvs_node_agent.model.services import Services
from tests.support import agentnode
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    CLUSTER_6,
    EXTERNAL_4,
    EXTERNAL_6,
    OTHER,
    WEB_4,
    WEB_6,
    CheapProgrammer,
    Entry,
    Log,
    Node,
    ipv4_node,
    other,
    running,
    web,
    with_metadata,
)
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node
from tests.support.faketable import FakeTable
from tests.support.living import living

HAND_MADE = "10.1.0.0/16"
AWAY = RefusedError("API server https://10.0.0.1:6443", "cannot be reached: Connection refused")


# 1. The first write


@pytest.mark.parametrize("first", ["services", "node"])
def test_nothing_is_written_before_services_and_node_are_listed(first: str) -> None:
    fresh = Node()
    lists = [
        partial(fresh.list_services, web(EXTERNAL_4)),
        partial(fresh.list_node, node(*POD_CIDRS)),
    ]
    for told in lists if first == "services" else reversed(lists):
        fresh.pass_time(100)
        fresh.holds_nothing()
        told()
    fresh.settle()
    fresh.holds(WEB_4)


def test_rules_stand_until_both_are_listed_and_go_where_their_service_is_gone() -> None:
    again = Node(before=running(web(EXTERNAL_4), other()))
    again.list_node(node(*POD_CIDRS))
    again.pass_time(100)
    again.holds(WEB_4, OTHER)
    # Nothing is repaired either.
    again.tables[IPV4].meddle("-F IPVS_OUTPUT")
    again.pass_time(100)
    assert again.restores == {IPV4: 1, IPV6: 1}
    again.list_services(other())
    again.settle()
    again.holds(OTHER)


def test_a_family_that_the_node_does_not_speak_is_left_alone() -> None:
    fresh = Node()
    fresh.list_node(ipv4_node())
    fresh.list_services(web(EXTERNAL_4))
    fresh.pass_time(100)
    assert fresh.restores == {IPV4: 1, IPV6: 0}


# 2. Waiting for the Node


UNKNOWN = "this Node is not known to the API server yet (see nodeName)"
WITHOUT_CIDR = (
    "Node worker-1 has no pod CIDR yet (if the network plugin assigns pod addresses itself,"
    " set podInterfaces or podCIDRs)"
)


def test_each_reason_to_wait_is_said_once(log: Log) -> None:
    fresh = Node()
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node()
    for _ in range(2):
        fresh.pass_time(100)
        fresh.put(other())
    for _ in range(2):
        fresh.put_node(node())
        fresh.pass_time(100)
    fresh.holds_nothing()
    fresh.put_node(node(POD_CIDRS[0]))
    fresh.settle()
    fresh.holds(WEB_4, OTHER, cidrs=POD_CIDRS[:1])
    assert log.said("waiting") == [
        f"waiting, and leaving all rules as they are: {why}" for why in (UNKNOWN, WITHOUT_CIDR)
    ]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_nothing_is_waited_for_where_the_configuration_has_pod_cidrs(when: str, log: Log) -> None:
    cidrs = (parse_network(HAND_MADE),)
    fresh = Node(Config(pod_cidrs=cidrs if when == "before" else None))
    fresh.list_services(web(EXTERNAL_4))
    fresh.list_node(node())
    if when == "meanwhile":
        fresh.pass_time(10)
        fresh.reload(pod_cidrs=cidrs)
    fresh.settle()
    fresh.holds(WEB_4, cidrs=[HAND_MADE])
    assert len(log.said("waiting")) == (when == "meanwhile")


GONE = "Node worker-1 is gone from the API server; keeping its rules"
LOST = "Node worker-1 lost its pod CIDRs; using the last known ones"
WITHOUT = read_node(node())


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (events.Deleted(events.NODES, "worker-1", 1000), GONE),
        (events.Listed(events.NODES, (), 1000), GONE),
        (events.Changed(events.NODES, WITHOUT, 1000), LOST),
    ],
    ids=["deleted", "not listed", "no pod CIDR"],
)
def test_a_node_that_loses_what_it_had_keeps_its_rules(
    event: events.Event, message: str, log: Log
) -> None:
    started = running(web(EXTERNAL_4))
    for _ in range(3):
        started.agent.take(event)
        started.pass_time(10)
    started.delete("web")
    started.put(other())
    started.settle()
    started.holds(OTHER)
    assert log.said("^Node") == [message]
    started.put_node(node("10.240.9.0/24"))
    started.settle()
    started.holds(OTHER, cidrs=["10.240.9.0/24"])


# 3. Every transition


class Case(NamedTuple):
    """What `web` is before and after (None: not there), and the rules that are wanted then.

    What is written is not in `untouched`.
    """

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    wanted: Sequence[Entry] = ()
    untouched: Sequence[Family] = (IPV6,)


SECOND, THIRD = "10.19.20.202", "10.19.20.203"
SECOND_4: Entry = (SECOND, "web", CLUSTER_4)
PLAIN = web(EXTERNAL_4)
TWO, DUAL = web(EXTERNAL_4, SECOND), web(EXTERNAL_4, EXTERNAL_6)
IGNORED = with_metadata(PLAIN, annotations={"ipvs-node-agent/ignore": "true"})

# What makes a Service claim its external IPs at all is proved in unit/rules/test_claims.py.
TRANSITIONS = {
    "a Service is made": Case(None, PLAIN, [WEB_4]),
    "a Service is deleted": Case(PLAIN, None),
    "an external IP is added": Case(PLAIN, TWO, [WEB_4, SECOND_4]),
    "an external IP is changed": Case(PLAIN, web(SECOND), [SECOND_4]),
    "an external IP is removed": Case(TWO, PLAIN, [WEB_4]),
    "the only external IP is removed": Case(PLAIN, web()),
    "two of three external IPs are removed": Case(
        web(EXTERNAL_4, SECOND, THIRD), web(SECOND), [SECOND_4]
    ),
    "external IPs change places": Case(TWO, web(SECOND, EXTERNAL_4), [WEB_4, SECOND_4], FAMILIES),
    "the type becomes ClusterIP": Case(PLAIN, web(EXTERNAL_4, type="ClusterIP")),
    "the ClusterIP becomes another one": Case(
        PLAIN, web(EXTERNAL_4, cluster_ips=["10.231.9.9"]), [(EXTERNAL_4, "web", "10.231.9.9")]
    ),
    "single-stack becomes dual-stack": Case(
        web(EXTERNAL_4, cluster_ips=[CLUSTER_4]), DUAL, [WEB_4, WEB_6], [IPV4]
    ),
    "dual-stack becomes single-stack": Case(
        DUAL, web(EXTERNAL_6, cluster_ips=[CLUSTER_6]), [WEB_6]
    ),
    "an external IP loses its family's ClusterIP": Case(
        DUAL, web(EXTERNAL_4, EXTERNAL_6, cluster_ips=[CLUSTER_4]), [WEB_4], [IPV4]
    ),
    "the opt-out annotation is set": Case(PLAIN, IGNORED),
    "the opt-out annotation is unset": Case(IGNORED, PLAIN, [WEB_4]),
    "something of no matter changes": Case(
        PLAIN, with_metadata(PLAIN, labels={"app": "web"}, resourceVersion="7"), [WEB_4], FAMILIES
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


@pytest.mark.parametrize(
    "external",
    [
        pytest.param([EXTERNAL_4, EXTERNAL_6], id="both families"),
        pytest.param([EXTERNAL_4], id="a family that is not written"),
    ],
)
def test_what_a_service_was_is_not_kept(external: Sequence[str]) -> None:
    started = running(*(other(f"10.19.9.{n}", f"kept-{n}") for n in range(3)))
    for name in ("kept-0", "kept-1"):
        started.put({**web(*external), "metadata": {"name": name, "namespace": "default"}})
        started.pass_time(2)
    started.delete("kept-2")
    started.pass_time(2)
    assert [len(living(f"default/kept-{n}")) for n in range(3)] == [1, 1, 0]


def test_there_and_back_again_writes_nothing() -> None:
    started = running(web(EXTERNAL_4))
    started.delete("web")
    started.put(web(EXTERNAL_4))
    started.settle()
    started.holds(WEB_4)
    assert started.restores == {IPV4: 1, IPV6: 1}


# 4. When it writes


def test_a_change_is_written_at_once() -> None:
    started = running()
    started.pass_time(0.3)
    started.put(web(EXTERNAL_4))
    started.tick()
    started.holds(WEB_4)


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


def test_an_idle_agent_ticks_only_for_its_checks() -> None:
    started = running(web(EXTERNAL_4))
    assert started.pass_time(100) <= 60


@pytest.mark.parametrize(
    ("seconds", "services", "pause"),
    [
        pytest.param(0.001, 1, 2, id="driftCheckPeriod"),
        pytest.param(0.036, 1, 8, id="half a hundredth of the time at most"),
        pytest.param(1, 10_000, 10, id="every ten seconds"),
        pytest.param(1, 20_000, 20, id="a millisecond for each Service"),
        pytest.param(1, 90_000, 30, id="often enough for a repair within half a minute"),
    ],
)
def test_the_more_a_check_costs_the_less_often_it_comes(
    seconds: float, services: int, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = running(web(EXTERNAL_4))
    monkeypatch.setattr(Services, "__len__", lambda _: services)
    # There is one for each family.
    monkeypatch.setattr(CheapProgrammer, "check_seconds", seconds / 2)
    started.pass_time(10)
    before = started.tables[IPV4].tries
    started.pass_time(120)
    assert started.tables[IPV4].tries - before == pytest.approx(120 / pause, abs=2)


def test_what_nobody_tells_of_is_due_as_soon_as_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    started = running(web(EXTERNAL_4))
    started.tick()
    later = started.agent.due
    assert started.agent.untold
    monkeypatch.setattr(started.tables[IPV4], "changed", lambda *_, **__: Since.CHANGED)
    started.tables[IPV4].meddle("-F IPVS_OUTPUT")
    started.clock.now += 0.5
    assert started.agent.due < min(later, started.clock.now + 0.1)
    started.clock.now = started.agent.due
    started.tick()
    started.holds(WEB_4)


@pytest.mark.parametrize(
    ("proof", "before", "after"),
    [
        pytest.param(Since.CHANGED, 200, 301, id="what was not told shows in five minutes"),
        pytest.param(Since.UNCHANGED, 3500, 3601, id="what does not show is found in an hour"),
    ],
)
def test_the_kernel_is_not_believed_for_ever(
    proof: Since, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Table(agentnode.Table):
        """Tells of nothing, and says how it is when it is asked for a proof."""

        says = Since.UNCHANGED

        def changed(self, closely: bool = False) -> Since:
            self.says = proof if closely else self.says
            return self.says

        def save(self) -> str:
            self.says = Since.UNCHANGED
            return super().save()

        @property
        def told_by(self) -> int | None:
            return 7

    monkeypatch.setattr(agentnode, "Table", Table)
    started = running(web(EXTERNAL_4))
    wanted = started.rules(IPV4)
    started.tables[IPV4].meddle("-F IPVS_OUTPUT")
    started.pass_time(before)
    assert started.rules(IPV4) != wanted
    started.pass_time(after - before)
    assert started.rules(IPV4) == wanted


def test_where_everything_is_told_nothing_but_the_proof_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeTable, "changed", lambda *_, **__: Since.UNCHANGED)
    monkeypatch.setattr(FakeTable, "told_by", 7)
    started = running(web(EXTERNAL_4))
    tries = [table.tries for table in started.tables.values()]
    assert started.pass_time(3000) <= 11
    assert [table.tries for table in started.tables.values()] == tries


# 5. Another configuration


def test_another_configuration_changes_what_differs() -> None:
    started = running(web(EXTERNAL_4))
    started.reload()
    started.pass_time(10)
    assert started.restores == {IPV4: 1, IPV6: 1}
    started.reload(pod_cidrs=(parse_network(HAND_MADE),))
    started.pass_time(10)
    started.holds(WEB_4, cidrs=[HAND_MADE])
    assert started.restores == {IPV4: 2, IPV6: 1}
    assert started.written(IPV4) == ["IPVS_PREROUTING"]


def test_other_chain_names_replace_the_old_ones_in_one_write() -> None:
    started = running(web(EXTERNAL_4))
    started.reload(chains=Chains(prerouting="NEW_PREROUTING", output="NEW_OUTPUT"))
    started.settle()
    assert started.restores == {IPV4: 2, IPV6: 2}
    assert not started.rules(IPV4)
    lines = by_chain(line for line in started.tables[IPV4].lines if "NEW_" in line)
    assert lines == expected_rules([WEB_4], POD_CIDRS[:1], "NEW_PREROUTING", "NEW_OUTPUT")


def test_other_tables_are_written_at_once() -> None:
    """As when the backend becomes another one: the old one's rules go as soon as this is done."""
    started = running(web(EXTERNAL_4), config=Config(drift_check_period=3600))
    started.tables = started.new_tables()
    started.reload()
    assert not started.agent.in_sync
    started.tick()
    started.holds(WEB_4)
    assert started.agent.in_sync


def test_a_shorter_time_between_checks_counts_at_once() -> None:
    started = running(web(EXTERNAL_4), config=Config(drift_check_period=3600))
    started.reload(drift_check_period=2.0)
    started.tick()
    started.tables[IPV4].meddle("-F IPVS_OUTPUT")
    started.pass_time(4.1)
    started.holds(WEB_4)


def test_a_retry_does_not_wait_after_another_configuration() -> None:
    started = running()
    started.tables[IPV4].broken = BUSY
    started.put(web(EXTERNAL_4))
    started.pass_time(30)
    started.tables[IPV4].broken = None
    started.reload()
    started.tick()
    started.holds(WEB_4)


# 6. kube-proxy's mode


def test_where_kube_proxy_needs_no_agent_no_service_has_rules(log: Log) -> None:
    site = running(web(EXTERNAL_4), other())
    for mode in (None, "ipvs", "userspace"):
        site.agent.take_proxy_mode(mode)
        site.settle()
        site.holds(WEB_4, OTHER)
    assert site.restores == {IPV4: 1, IPV6: 1}
    for mode in ("iptables", "iptables", "nftables"):
        site.agent.take_proxy_mode(mode)
        site.settle()
        site.holds()
        assert site.agent.in_sync
        assert site.agent.sentence() == (
            f"Not needed: kube-proxy is in {mode} mode; no Service has rules"
        )
        assert site.agent.state().proxy_mode == mode
    assert [text.partition(",")[0] for text in log.said("^kube-proxy")] == [
        "kube-proxy is in iptables mode",
        "kube-proxy is in nftables mode",
    ]


def test_what_changes_there_counts_when_ipvs_is_back(log: Log) -> None:
    site = Node()
    # Known before the first list, it keeps rules from being made.
    site.agent.take_proxy_mode("iptables")
    site.list_all(web(EXTERNAL_4), other())
    site.settle()
    site.holds()
    log.clear()
    site.put(web(SECOND))
    site.delete("other")
    site.settle()
    site.holds()
    assert log.said() == []
    site.agent.take_proxy_mode("ipvs")
    site.settle()
    site.holds(SECOND_4)
    assert log.said("^kube") == ["kube-proxy is in ipvs mode: Services get their rules"]


# 7. The sentence for an operator


def test_the_sentence_tells_the_way_to_the_first_sync() -> None:
    fresh = Node()
    assert fresh.agent.sentence() == "Waiting: the API server has not answered everything yet"
    fresh.agent.take(events.Trouble(events.SERVICES, AWAY))
    assert fresh.agent.sentence() == f"Waiting: {AWAY}"
    fresh.agent.take(events.Recovered(events.SERVICES))
    fresh.list_services(web(EXTERNAL_4, EXTERNAL_6), other())
    fresh.list_node(node())
    fresh.settle()
    assert fresh.agent.sentence() == (f"Waiting, and leaving all rules as they are: {WITHOUT_CIDR}")
    fresh.put_node(node(*POD_CIDRS))
    assert fresh.agent.sentence() == "Writing changes to the kernel"
    fresh.settle()
    assert fresh.agent.sentence() == "In sync; Services with rules: 2 in IPv4, 1 in IPv6"


def test_the_sentence_tells_what_is_wrong_now_and_not_what_was() -> None:
    started = running(web(EXTERNAL_4))
    in_sync = started.agent.sentence()
    started.agent.take(events.Trouble(events.NODES, AWAY))
    known = in_sync.replace("In sync;", "In sync with what was last known;")
    assert started.agent.sentence() == f"{known}; not following changes: {AWAY}"
    started.agent.take(events.Recovered(events.NODES))
    assert started.agent.sentence() == in_sync
    started.tables[IPV4].broken = BUSY
    started.put(other())
    started.settle()
    assert started.agent.sentence() == f"Cannot program the kernel, trying again: IPv4: {BUSY}"
    started.tables[IPV4].broken = None
    started.pass_time(20)
    assert started.agent.sentence() == "In sync; Services with rules: 2 in IPv4"
    started.delete("web", "other")
    started.settle()
    assert started.agent.sentence() == "In sync; Services with rules: none"


# The node's own addresses


def test_an_address_that_moves_away_and_back_costs_nobody_anything() -> None:
    """Narrowed to ports at once when it comes, and wide again a minute after it is gone."""
    here = running(web(EXTERNAL_4), other())
    vip = frozenset({parse_address(EXTERNAL_4)})

    def hold(addresses: frozenset[Address]) -> None:
        here.agent.take_here(lambda known, now: known.with_addresses(addresses, now))
        here.tick()

    hold(vip)
    narrowed = here.rules(IPV4)
    assert all("--dport 80" in line for line in narrowed if EXTERNAL_4 in line)
    since, restores = here.agent.view().since, here.restores
    for _ in range(5):
        for addresses in (frozenset[Address](), vip):
            hold(addresses)
            here.pass_time(10)
            assert (here.agent.view().since, here.restores) == (since, restores)
    hold(frozenset())
    here.pass_time(59)
    assert here.rules(IPV4) == narrowed
    here.pass_time(2)
    here.holds(WEB_4, OTHER)
