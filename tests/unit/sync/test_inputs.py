"""What rules depend on, as one value: what is planned of it, and what it still lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.events import NODES, SERVICES, Listed
from ipvs_node_agent.model.objects import NodeNetwork, PodNetwork
from ipvs_node_agent.rules.coverage import Coverage
from ipvs_node_agent.rules.here import ADDRESSES, Here
from ipvs_node_agent.sync.cluster import Cluster
from ipvs_node_agent.sync.inputs import Inputs
from tests.support.agentnode import EXTERNAL_4, web
from tests.support.cluster import POD_CIDRS, node

CIDRS = tuple(map(parse_network, POD_CIDRS))
CALI = PodNetwork("cali+")


def told(*nodes: Any) -> Cluster:
    """A cluster with one Service, and this Node where one is given."""
    listed = Cluster().with_services(Listed(SERVICES, (read_service(web(EXTERNAL_4)),), 0.0))
    return listed.with_node(Listed(NODES, tuple(map(read_node, nodes)), 0.0))


def inputs(**fields: Any) -> Inputs:
    """A node that knows everything, but for `fields`."""
    return Inputs(**{"config": Config(), "cluster": told(node(*POD_CIDRS)), **fields})


# Which Services get rules


def test_all_services_get_rules_where_kube_proxy_runs_in_ipvs_mode_or_in_none_that_is_known() -> (
    None
):
    for mode in ("ipvs", None):
        assert set(inputs(proxy_mode=mode).to_program) == {"default/web"}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_no_service_gets_rules_where_kube_proxy_needs_no_help(mode: str) -> None:
    unneeded = inputs(proxy_mode=mode)
    assert not unneeded.to_program
    assert unneeded.coverage is None
    # What was told stays, for when the mode changes back.
    assert set(replace(unneeded, proxy_mode="ipvs").to_program) == {"default/web"}


def test_before_the_first_list_there_are_no_services() -> None:
    assert dict(Inputs(Config()).to_program) == {}


# What is lacking, and what is awaited


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "this Node is not known to the API server yet"),
        ([node()], "Node worker-1 has no pod CIDR yet"),
        ([{**node(*POD_CIDRS), "status": {}}], "Node worker-1 has no address yet"),
    ],
)
def test_what_the_node_lacks_is_said(nodes: list[Any], words: str) -> None:
    assert words in inputs(cluster=told(*nodes)).lacking


def test_nothing_is_lacking_of_a_node_with_pod_cidrs_and_addresses() -> None:
    assert inputs().lacking == ""


def test_rules_can_be_made_where_all_is_told_and_nothing_lacking() -> None:
    assert inputs().suffice
    for fields in ({"cluster": told(node())}, {"here": Here(frozenset({ADDRESSES}))}):
        assert not inputs(**fields).suffice


def test_a_node_without_pod_cidrs_lacks_nothing_where_pods_are_known_by_interface() -> None:
    bare = told(node())
    assert inputs(cluster=bare, here=Here(pod_networks=frozenset({CALI}))).lacking == ""
    assert inputs(cluster=bare, config=Config(pod_interfaces=("cali+",))).lacking == ""


def test_everything_is_told_with_both_lists_and_all_that_is_awaited() -> None:
    assert inputs().told
    assert not inputs(here=Here(frozenset({ADDRESSES}))).told
    assert not inputs(cluster=Cluster()).told


# Which packets are a pod's


def test_pods_are_known_by_pod_cidr_unless_a_network_plugin_has_others() -> None:
    assert inputs().coverage == Coverage((), CIDRS)
    by_interface = inputs(here=Here(pod_networks=frozenset({CALI})))
    assert by_interface.pod_interfaces == ("cali+",)
    assert by_interface.coverage == Coverage(("cali+",), CIDRS)


@pytest.mark.parametrize(
    "fields", [{"cluster": told()}, {"here": Here(frozenset({ADDRESSES}))}], ids=["Node", "node"]
)
def test_which_packets_are_a_pods_is_not_known_before_everything_is_told(
    fields: dict[str, Any],
) -> None:
    assert inputs(**fields).coverage is None


# What of this node counts


def test_what_counts_of_the_node_is_what_rules_can_depend_on() -> None:
    pod, own = parse_address("10.240.9.9"), parse_address("192.168.7.11")
    block = parse_network("10.240.9.0/26")
    here = Here(
        frozenset({ADDRESSES}),
        frozenset({own}),
        routed=frozenset({("cali123", pod)}),
        pod_blocks=frozenset({block}),
    )
    plain = NodeNetwork(frozenset({own}))
    assert inputs(here=here).of_node == (plain, (), here.awaited)
    # Routes to pods are nobody's business where pods are matched by pod CIDR.
    by_interface = plain._replace(pods=frozenset({pod}), pod_blocks=frozenset({block}))
    config = Config(pod_interfaces=("cali+",))
    assert inputs(here=here, config=config).of_node == (by_interface, ("cali+",), here.awaited)
