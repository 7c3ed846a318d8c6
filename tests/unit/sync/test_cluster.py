"""What is known of the cluster, and what an event makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.model.events import NODES, SERVICES, Changed, Deleted, Listed
from ipvs_node_agent.model.objects import Service, read_node, read_service
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.sync.cluster import Cluster
from tests.support.agentnode import web, with_ingress
from tests.support.cluster import POD_CIDRS, node

KEY = "default/web"
GONE = Deleted(SERVICES, KEY, 0.0)


def seen(*raws: Any) -> list[Service]:
    return [read_service(raw) for raw in raws]


def listed(*raws: Any) -> Listed:
    return Listed(SERVICES, tuple(seen(*raws)), 0.0)


def changed(raw: Any) -> Changed:
    return Changed(SERVICES, read_service(raw), 0.0)


def services(cluster: Cluster) -> dict[str, Service]:
    assert cluster.services is not None
    return dict(cluster.services)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster().with_services(listed(web("10.19.20.201")))


def test_each_event_makes_another_value_and_leaves_the_one_before(cluster: Cluster) -> None:
    first, second = seen(web("10.19.20.201"), web("10.19.20.202"))
    later = cluster.with_services(changed(web("10.19.20.202")))
    assert services(later) == {KEY: second}
    assert services(later.with_services(GONE)) == {}
    assert services(later.with_services(listed())) == {}
    assert services(cluster) == {KEY: first}


def test_what_is_told_again_makes_no_other_value(cluster: Cluster) -> None:
    assert cluster.with_services(changed(web("10.19.20.201"))) is cluster
    assert cluster.with_services(listed(web("10.19.20.201"))) is cluster
    assert cluster.with_services(Deleted(SERVICES, "default/other", 0.0)) is cluster


def test_a_change_before_the_first_list_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        Cluster().with_services(changed(web("10.19.20.201")))


def test_a_problem_goes_with_its_cause(cluster: Cluster) -> None:
    broken = with_ingress(web(), {"ip": "no address"})
    for event in (changed(broken), listed(broken)):
        ill = cluster.with_services(event)
        assert {problem.service for problem in ill.problems} == {KEY}
        for cure in (changed(web("10.19.20.201")), GONE, listed()):
            assert ill.with_services(cure).problems == frozenset()
    assert cluster.problems == frozenset()


def test_both_have_to_be_listed_before_there_is_anything_to_go_by(cluster: Cluster) -> None:
    assert not cluster.listed
    nobody = cluster.with_node(Listed(NODES, (), 0.0))
    assert (nobody.listed, nobody.node) == (True, None)
    own = read_node(node(*POD_CIDRS))
    there = nobody.with_node(Changed(NODES, own, 0.0))
    assert there.node == own
    assert there.with_node(Changed(NODES, own, 0.0)) is there


def test_what_a_node_lost_is_kept() -> None:
    own = read_node(node(*POD_CIDRS))
    there = Cluster().with_node(Listed(NODES, (own,), 0.0))
    for event, told in (
        (Listed(NODES, (), 0.0), None),
        (Deleted(NODES, own.name, 0.0), None),
        (Changed(NODES, bare := own._replace(pod_cidrs=()), 0.0), bare),
        (Changed(NODES, bare := own._replace(addresses=()), 0.0), bare),
    ):
        after = there.with_node(event)
        assert (after.node, after.told_node) == (own, told)


# Services as a value


def many(count: int) -> Services:
    (one,) = seen(web("10.19.20.201"))
    return Services(one._replace(key=f"default/{number}") for number in range(count))


def test_another_value_shares_what_did_not_change() -> None:
    before = many(2000)
    after = before.with_changes({"default/7": None, "default/9": before["default/1"]})
    assert len(before) == 2000
    assert len(after) == 1999
    assert {*after.differing(before)} == {"default/7", "default/9"} == {*before.differing(after)}
    assert "default/7" not in after
    shared = sum(ours is theirs for ours, theirs in zip(before._shards, after._shards))
    assert shared >= len(before._shards) - 2


def test_values_that_share_what_they_have_are_equal_without_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = many(2000)
    after = before.with_changes({"default/7": None})
    same = after.with_changes({"default/7": before["default/7"]})
    monkeypatch.setattr(Services, "__getitem__", None)
    monkeypatch.setattr(Services, "__iter__", None)
    assert before == same
    assert before != after


def test_a_list_keeps_the_very_objects_that_it_has_again() -> None:
    before = many(100)
    again = [service._replace() for service in before.values()]
    assert before.listed(again) is before
    fewer = before.listed(again[1:])
    assert {*fewer.differing(before)} == {again[0].key}
