"""What is known of the cluster, and what an event changes of it."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.agent import NODES, SERVICES
from ipvs_node_agent.cluster import Cluster, ServiceChange
from ipvs_node_agent.model import Service, read_node, read_service
from ipvs_node_agent.watch import Changed, Deleted, Listed
from tests.support.agentnode import web, with_ingress
from tests.support.cluster import POD_CIDRS, node

KEY = "default/web"


def seen(*raws: Any) -> list[Service]:
    return [read_service(raw) for raw in raws]


def listed(*raws: Any) -> Listed:
    return Listed(SERVICES, tuple(seen(*raws)), 0.0)


def changed(raw: Any) -> Changed:
    return Changed(SERVICES, read_service(raw), 0.0)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    assert list(made.take_services(listed(web("10.19.20.201")))) == []
    return made


def test_each_event_gives_what_a_service_was_and_is(cluster: Cluster) -> None:
    first, second = seen(web("10.19.20.201"), web("10.19.20.202"))
    change = changed(web("10.19.20.202"))
    assert list(cluster.take_services(change)) == [ServiceChange(KEY, first, second)]
    gone = Deleted(SERVICES, KEY, 0.0)
    assert list(cluster.take_services(gone)) == [ServiceChange(KEY, second, None)]
    assert cluster.services == {}


def test_what_is_told_again_is_no_change(cluster: Cluster) -> None:
    assert list(cluster.take_services(changed(web("10.19.20.201")))) == []
    assert list(cluster.take_services(listed(web("10.19.20.201")))) == []
    assert list(cluster.take_services(Deleted(SERVICES, "default/other", 0.0))) == []


def test_a_later_list_gives_what_changed_meanwhile(cluster: Cluster) -> None:
    (first,) = seen(web("10.19.20.201"))
    assert list(cluster.take_services(listed())) == [ServiceChange(KEY, first, None)]


def test_a_change_before_the_first_list_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        list(Cluster().take_services(changed(web("10.19.20.201"))))


def test_a_problem_goes_with_its_cause(cluster: Cluster) -> None:
    broken = with_ingress(web(), {"ip": "no address"})
    for event in (changed(broken), listed(broken)):
        list(cluster.take_services(event))
        assert {problem.service for problem in cluster.problems} == {KEY}
    list(cluster.take_services(changed(web("10.19.20.201"))))
    assert cluster.problems == frozenset()


def test_both_have_to_be_listed_before_there_is_anything_to_go_by(cluster: Cluster) -> None:
    assert not cluster.listed
    assert not cluster.take_node(Listed(NODES, (), 0.0))
    assert (cluster.listed, cluster.snapshot()) == (True, None)
    own = read_node(node(*POD_CIDRS))
    assert cluster.take_node(Changed(NODES, own, 0.0))
    assert not cluster.take_node(Changed(NODES, own, 0.0))
    snapshot = cluster.snapshot()
    assert snapshot is not None
    assert snapshot.node == own


def test_a_node_that_is_gone_or_bare_leaves_what_was_known(cluster: Cluster) -> None:
    own = read_node(node(*POD_CIDRS))
    cluster.take_node(Listed(NODES, (own,), 0.0))
    for event in (Listed(NODES, (), 0.0), Changed(NODES, own._replace(pod_cidrs=()), 0.0)):
        assert not cluster.take_node(event)
        assert cluster.node == own
