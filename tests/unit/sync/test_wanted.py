"""When the chains that are wanted are split and joined, and what stays the very same object."""

from __future__ import annotations

from typing import Any

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.rules.planner import Basis
from ipvs_node_agent.sync.refused import Refusal
from ipvs_node_agent.sync.wanted import Wanted
from tests.support.agentnode import EXTERNAL_4, Node, other, running, web
from tests.support.cluster import POD_CIDRS, node, service


def services(*raws: Any) -> Services:
    return Services(map(read_service, raws))


def wanted(*raws: Any) -> Wanted:
    made = Wanted(IPV4)
    made.basis = Basis(Config(), read_node(node(*POD_CIDRS)), services(*raws))
    assert made.reconcile(0.0)
    return made


def test_nothing_is_planned_anew_where_nothing_was_learnt() -> None:
    made = wanted(web(EXTERNAL_4))
    before = made.ruleset
    assert made.rules == 4
    assert not made.reconcile(1.0)
    # Another value, out of which the same follows.
    bare = service("bare", ["10.231.1.1"], [])
    made.basis = made.basis._replace(services=services(web(EXTERNAL_4), bare))
    assert made.reconcile(2.0)
    assert made.ruleset is before


def test_what_is_learnt_counts_with_the_next_plan() -> None:
    made = wanted(web(EXTERNAL_4), other())
    made.own_mark = True
    made.refused.add(Refusal(frozenset({"default/web"}), frozenset(), "no"), made.basis.services, 1)
    assert made.reconcile(1.0)
    assert "IPVS_MARK_MASQ" in made.ruleset.chains
    assert made.planner.has_rules("default/other")
    assert not made.planner.has_rules("default/web")
    assert {problem.reason for problem in made.problems} == {"KernelRefused"}


# The shape of the chains


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
    again.list_all(*pool(59))
    again.pass_time(10)
    assert again.restores == before
