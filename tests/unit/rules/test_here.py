"""What the node's kernel told, and what of it counts at which time."""

from __future__ import annotations

from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import PodNetwork
from ipvs_node_agent.rules.here import ADDRESSES, API_SERVERS, LINGER, Here

OWN, VIP = parse_address("192.0.2.1"), parse_address("192.0.2.77")
ALONE, BOTH = frozenset({OWN}), frozenset({OWN, VIP})


def counted(here: Here) -> frozenset[object]:
    return frozenset(here.network([]).addresses)


def test_an_address_counts_at_once_and_for_a_minute_after_it_is_gone() -> None:
    here = Here().with_addresses(ALONE, 0).with_addresses(BOTH, 1)
    assert counted(here) == BOTH
    here = here.with_addresses(ALONE, 100)
    assert here.due == 100 + LINGER
    assert counted(here.at(159.9)) == BOTH
    assert counted(here.at(160)) == ALONE


def test_one_that_comes_back_counts_as_long_as_it_is_there() -> None:
    here = Here().with_addresses(BOTH, 0).with_addresses(ALONE, 1).with_addresses(BOTH, 2)
    assert here.due == float("inf")
    assert counted(here.at(1000)) == BOTH


def test_each_departure_has_its_own_minute() -> None:
    here = Here().with_addresses(BOTH, 0).with_addresses(ALONE, 10).with_addresses(frozenset(), 30)
    assert counted(here.at(70)) == ALONE
    assert counted(here.at(90)) == frozenset()


def test_where_nothing_is_due_it_is_the_same() -> None:
    here = Here().with_addresses(BOTH, 0)
    assert here.at(1000) is here


def test_what_network_plugins_told_of_stays() -> None:
    calico, bridge = PodNetwork("cali+"), PodNetwork("br1", ())
    moved = PodNetwork("br1", (parse_network("10.88.0.0/16"),))
    here = Here().with_pod_networks(frozenset({calico, bridge}))
    assert here.with_pod_networks(frozenset()).pod_networks == {calico, bridge}
    assert here.with_pod_networks(frozenset({moved})).pod_networks == {calico, moved}


def test_pods_are_those_behind_the_interfaces_that_lead_to_them() -> None:
    here = Here().with_routes(frozenset({("cali1", OWN), ("br1", VIP)}), frozenset())
    assert here.network(["cali+"]).pods == {OWN}
    assert here.network([]).pods == set()


def test_blackholes_are_of_pods_where_pods_are_known_by_interface() -> None:
    block = parse_network("10.233.90.0/26")
    here = Here().with_routes(frozenset(), frozenset({block}))
    assert here.network(["cali+"]).pod_blocks == {block}
    assert here.network([]).pod_blocks == set()


def test_where_the_api_server_is_known_in_part_the_last_known_stays() -> None:
    here = Here().with_api_servers(frozenset({(OWN, 6443)}), complete=True)
    here = here.with_api_servers(frozenset({(VIP, 6443)}), complete=False)
    assert here.network([]).api_servers == {(OWN, 6443), (VIP, 6443)}
    here = here.with_api_servers(frozenset({(VIP, 6443)}), complete=True)
    assert here.network([]).api_servers == {(VIP, 6443)}


def test_what_was_awaited_has_been_told() -> None:
    here = Here(awaited=frozenset({ADDRESSES, API_SERVERS})).with_addresses(ALONE, 0)
    assert here.awaited == {API_SERVERS}
    assert here.with_api_servers(frozenset(), complete=False).awaited == {API_SERVERS}
    assert not here.with_api_servers(frozenset(), complete=True).awaited
