"""What is known of the cluster, and what an event makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.model.events import NODES, SERVICES, Changed, Deleted, Listed
from ipvs_node_agent.model.objects import Service
from ipvs_node_agent.sync.cluster import WHOLE, Cluster, Told
from tests.support.agentnode import other, web, with_ingress
from tests.support.cluster import POD_CIDRS, node, service

KEY = "default/web"
GONE = Deleted(SERVICES, KEY, 0.0)
OWN = read_node(node(*POD_CIDRS))


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
    there = nobody.with_node(Changed(NODES, OWN, 0.0))
    assert there.node == OWN
    assert there.with_node(Changed(NODES, OWN, 0.0)) is there


@pytest.mark.parametrize(
    ("event", "lost"),
    [
        (Listed(NODES, (), 0.0), WHOLE),
        (Deleted(NODES, OWN.name, 0.0), WHOLE),
        (Changed(NODES, OWN._replace(pod_cidrs=()), 0.0), "pod CIDRs"),
        (Changed(NODES, OWN._replace(addresses=()), 0.0), "addresses"),
    ],
)
def test_what_a_node_lost_is_kept(event: Told, lost: str) -> None:
    assert Cluster().lost == frozenset()
    there = Cluster().with_node(Listed(NODES, (OWN,), 0.0))
    assert there.lost == frozenset()
    after = there.with_node(event)
    assert (after.node, after.lost) == (OWN, frozenset({lost}))
    assert after.with_node(Changed(NODES, OWN, 0.0)).lost == frozenset()


def test_another_node_has_nothing_of_the_last_one() -> None:
    another = OWN._replace(name="worker-2", pod_cidrs=(), addresses=())
    for event in (Listed(NODES, (another,), 0.0), Changed(NODES, another, 0.0)):
        after = Cluster().with_node(Listed(NODES, (OWN,), 0.0)).with_node(event)
        assert (after.node, after.lost) == (another, frozenset())


def test_changes_are_those_of_services_that_have_or_had_external_ips(cluster: Cluster) -> None:
    (web_4,) = seen(web("10.19.20.201"))
    bare = service("bare", ["10.231.1.1"], [])
    for event, changes in (
        (listed(web("10.19.20.201"), bare), {}),
        (listed(web(), bare), {KEY: web_4}),
        (listed(bare), {KEY: web_4}),
        (listed(web("10.19.20.201"), other()), {"default/other": None}),
    ):
        assert dict(cluster.with_services(event).changes(cluster)) == changes
    # The first list is no change to anybody.
    assert not [*cluster.changes(Cluster())]
