"""`dropInvalidInput` in the agent: its chain comes and goes, and filter is left alone otherwise."""

from __future__ import annotations

import pytest

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family
from ipvs_node_agent.rules.invalid import DROP_INVALID
from tests.support.agentnode import BUSY, EXTERNAL_4, Node, Table, ipv4_node, running, web
from tests.support.faketable import FakeTable

ON = Config(drop_invalid_input=True)
OURS = [":IPVS_INPUT -", "-A INPUT -j IPVS_INPUT", f"-A IPVS_INPUT {DROP_INVALID}"]


def held(site: Node, family: Family = IPV4) -> list[str]:
    """Our lines in the filter table; to look at them is no try."""
    table = site.filters[family]
    tries, lines = table.tries, table.lines
    table.tries = tries
    return [line for line in lines if "IPVS_INPUT" in line]


def test_by_default_filter_is_read_once_and_left_alone() -> None:
    site = running(web(EXTERNAL_4))
    site.pass_time(700)
    for table in site.filters.values():
        assert (table.tries, table.restores, table.closed) == (1, 0, 1)
    # It holds nobody up either.
    assert site.agent.state().families[IPV4].synced > site.clock.now - 10


@pytest.mark.parametrize(
    ("read_ahead", "config", "first"),
    [(True, Config(), "filter"), (False, Config(), "nat"), (True, ON, "nat")],
)
def test_nat_comes_first_but_for_what_was_read_ahead_and_wants_nothing(
    read_ahead: bool, config: Config, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, looked = Node(config), list[str]()
    for table in (*site.tables.values(), *site.filters.values()):
        table.read_ahead = read_ahead

        def save(table: Table = table) -> str:
            looked.append(table.name)
            return FakeTable.save(table)

        monkeypatch.setattr(table, "save", save)
    site.list_all(web(EXTERNAL_4))
    site.settle()
    assert looked[0] == first
    assert site.agent.in_sync


def test_a_reload_turns_it_on_and_off_and_writes_nothing_in_nat() -> None:
    site = running(web(EXTERNAL_4))
    before = site.restores
    for dropping in (True, False, True, False):
        site.reload(drop_invalid_input=dropping)
        site.settle()
        assert [held(site, family) for family in FAMILIES] == [OURS if dropping else []] * 2
        assert site.agent.in_sync
    assert site.restores == before
    tries = [table.tries for table in site.filters.values()]
    site.pass_time(400)
    assert [table.tries for table in site.filters.values()] == tries


def test_what_an_earlier_run_left_goes() -> None:
    site = running(config=ON)
    assert held(site) == OURS
    again = Node(before=site)
    again.list_all()
    again.settle()
    assert held(again) == []


def test_a_restart_writes_nothing() -> None:
    again = Node(ON, before=running(config=ON))
    written = [table.restores for table in again.filters.values()]
    again.list_all()
    again.settle()
    assert again.agent.in_sync
    assert [table.restores for table in again.filters.values()] == written


def test_it_is_repaired_and_counted_like_the_nat_chains() -> None:
    site = running(web(EXTERNAL_4), config=ON)
    plain = running(web(EXTERNAL_4)).agent.state().families[IPV4]
    state = site.agent.state().families[IPV4]
    assert (state.rules, state.chains) == (plain.rules + 1, plain.chains + 1)
    site.filters[IPV4].meddle("-F IPVS_INPUT")
    site.pass_time(3)
    assert held(site) == OURS
    assert site.agent.state().repairs["ChainFlushed"] == 1


def test_a_filter_table_that_cannot_be_used_matters_where_the_key_is_true() -> None:
    site = Node()
    site.filters[IPV4].broken = BUSY
    site.list_all(web(EXTERNAL_4))
    site.pass_time(3)
    assert site.agent.in_sync
    site.reload(drop_invalid_input=True)
    site.pass_time(70)
    assert (site.agent.in_sync, site.agent.serves) == (False, True)
    assert "IPv4 filter: iptables-nft-restore" in site.agent.sentence()
    state = site.agent.state()
    assert state.waiting_since <= site.clock.now - 70
    assert state.families[IPV4].failures > 3
    assert held(site, IPV6) == OURS
    # A Service does not wait for it.
    site.put(web("10.19.20.7"))
    site.settle()
    assert any("10.19.20.7" in line for line in site.rules(IPV4))
    site.filters[IPV4].broken = None
    site.pass_time(11)
    assert site.agent.in_sync
    assert held(site) == OURS


@pytest.mark.parametrize("dropping", [True, False])
def test_what_has_failed_is_counted_for_ever(dropping: bool) -> None:
    """For Prometheus, a counter that goes back is one that began anew."""
    site = Node(Config(drop_invalid_input=dropping))
    site.filters[IPV4].broken = TableError("iptables-nft-save", "did not end", hung=True)
    site.list_all(web(EXTERNAL_4))
    site.pass_time(60)
    failures = site.agent.state().families[IPV4].failures
    assert failures > 0
    site.filters[IPV4].broken = None
    site.pass_time(60)
    site.reload(drop_invalid_input=False)
    site.settle()
    assert site.agent.in_sync
    assert site.agent.state().families[IPV4].failures >= failures


def test_another_table_may_be_out_of_reach_where_nothing_of_ours_was() -> None:
    site = running(web(EXTERNAL_4))
    site.filters[IPV4].broken = BUSY
    site.filters[IPV4].broken = TableError("iptables-legacy-save", "is locked", locked=True)
    site.reload(masquerade="HostOnly")
    site.settle()
    # What passes is said, and waited for.
    assert "IPv4 filter: iptables-legacy-save: is locked" in site.agent.sentence()
    site.pass_time(3)
    assert not site.agent.in_sync
    site.filters[IPV4].broken = BUSY
    site.pass_time(3)
    assert site.agent.in_sync
    # Nobody tries for ever, even where a lock was waited for before.
    tries = site.filters[IPV4].tries
    site.pass_time(60)
    assert site.filters[IPV4].tries == tries


def test_what_is_to_go_goes_however_often_the_configuration_is_read_meanwhile() -> None:
    site = running(web(EXTERNAL_4), config=ON)
    site.filters[IPV4].broken = BUSY
    site.reload(drop_invalid_input=False)
    site.pass_time(20)
    site.reload(drop_invalid_input=False, masquerade="HostOnly")
    site.pass_time(20)
    site.filters[IPV4].broken = None
    site.pass_time(11)
    assert held(site) == []
    assert site.agent.in_sync


def test_what_an_earlier_run_left_goes_although_the_first_look_fails() -> None:
    again = Node(before=running(config=ON))
    again.filters[IPV4].fail_next(BUSY)
    again.list_all()
    again.pass_time(3)
    assert held(again) == []


@pytest.mark.parametrize("config", [ON, Config()])
def test_a_family_that_the_node_has_not_is_not_touched(config: Config) -> None:
    site = Node(config)
    site.list_node(ipv4_node())
    site.list_services()
    site.settle()
    assert site.agent.in_sync
    assert held(site, IPV6) == []
