"""Who has which external IP and port, of those who ask for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family, parse_address
from ipvs_node_agent.model.objects import Node, NodeNetwork, Problem
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.rules.claims import _ByAddress
from ipvs_node_agent.rules.planner import Basis, Plan, Replanner, plan
from tests.support.cluster import service
from tests.unit.rules.wanted import (
    DNS,
    HERE,
    HTTP,
    HTTPS,
    NOTHING,
    WEB,
    aged,
    host,
    host_pair,
    node,
    options,
    output,
    pod_pair,
    pods,
    port,
    prerouting,
    sharing,
    snapshot,
    with_metadata,
)


@pytest.mark.parametrize(
    "gone", [(), *itertools.permutations("abc", 2), *itertools.permutations("abc")]
)
def test_what_is_at_an_address_stays_in_its_order_whoever_goes(gone: Sequence[str]) -> None:
    here, elsewhere = (parse_address(f"10.19.20.{last}") for last in (1, 2))
    index = _ByAddress[str]()
    for item in "abc":
        index.add(here, item)
    index.add(elsewhere, "a")
    for item in gone:
        index.drop(here, item)
    left = tuple(item for item in "abc" if item not in gone)
    assert index.at(here) == left
    assert (here in index, {*index}) == (bool(left), {elsewhere, *([here] if left else [])})
    for item in {*gone, "d"}:
        with pytest.raises(ValueError, match="0 times, not once"):
            index.drop(here, item)
    assert (index.at(here), index.at(elsewhere)) == (left, ("a",))


def test_every_ip_of_the_load_balancer_counts() -> None:
    web = service("web", ["10.231.0.1"], ["10.19.0.2", "10.19.0.1"])
    assert pods(DEFAULTS, snapshot(web)) == (*pod_pair(), *pod_pair("10.19.0.2"))


def test_a_dual_stack_service_has_a_pair_in_each_family() -> None:
    seen = snapshot(service("web", ["fd00:231::1", "10.231.0.1"], ["10.19.0.1", "fd00:19::1"]))
    assert host(DEFAULTS, seen) == host_pair()
    assert output(plan(DEFAULTS, seen, IPV6)) == host_pair("fd00:19::1", to="fd00:231::1")


@pytest.mark.parametrize(
    ("cluster_ips", "ips"),
    [
        pytest.param(["10.231.0.1"], ["fd00:19::1"], id="external-IPv6-only"),
        pytest.param(["fd00:231::1"], ["10.19.0.1"], id="cluster-IPv6-only"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_family_needs_an_external_ip_and_a_cluster_ip(
    cluster_ips: list[str], ips: list[str], family: Family
) -> None:
    found = plan(DEFAULTS, snapshot(service("web", cluster_ips, ips)), family)
    assert found.ruleset == NOTHING
    text = f"{ips[0]} gets no rules: there is no ClusterIP of its family"
    missing = (Problem("default/web", "NoClusterIP", text),)
    assert found.problems == (missing if family.version == parse_address(ips[0]).version else ())


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(service("web", ["10.231.0.1"], []), id="no-IP-yet"),
        pytest.param(service("web", ["10.231.0.1"], [""]), id="an-empty-IP"),
        pytest.param(service("web", ["None"], [], externalIPs=["10.19.0.1"]), id="headless"),
        pytest.param(
            {**WEB, "status": {"loadBalancer": {"ingress": [{"hostname": "a.b"}]}}}, id="a-hostname"
        ),
        pytest.param(
            {
                **WEB,
                "status": {"loadBalancer": {"ingress": [{"ip": "10.19.0.1", "ipMode": "Proxy"}]}},
            },
            id="ipMode-Proxy",
        ),
        pytest.param(
            service("web", ["10.231.0.1"], ["10.19.0.1"], type="ClusterIP"), id="ClusterIP"
        ),
        pytest.param(service("web", ["10.231.0.1"], ["10.19.0.1"], type="NodePort"), id="NodePort"),
        pytest.param(
            with_metadata(WEB, labels={"service.kubernetes.io/service-proxy-name": "x"}),
            id="another-proxys",
        ),
        pytest.param(
            with_metadata(WEB, labels={"service.kubernetes.io/headless": ""}), id="headless-label"
        ),
        pytest.param(
            with_metadata(WEB, annotations={"ipvs-node-agent/ignore": "true"}), id="ignored"
        ),
    ],
)
def test_a_service_that_does_not_count_has_no_rule(raw: dict[str, Any]) -> None:
    assert plan(DEFAULTS, snapshot(raw), IPV4) == Plan(NOTHING, ())


@pytest.mark.parametrize(
    ("wanted", "policy", "counts"),
    [
        ("Any", "Local", True),
        ("Any", "Cluster", True),
        ("Any", None, True),
        ("Local", "Local", True),
        ("Local", "Cluster", False),
        ("Local", None, False),
    ],
)
def test_the_traffic_policy_can_be_asked_for(wanted: str, policy: str | None, counts: bool) -> None:
    seen = snapshot(service("web", ["10.231.0.1"], ["10.19.0.1"], externalTrafficPolicy=policy))
    found = plan(options(external_traffic_policy=wanted), seen, IPV4)
    assert bool(prerouting(found)) is counts


# IPs that Services share.


def test_services_that_share_an_ip_are_told_apart_by_protocol_and_port() -> None:
    found = plan(DEFAULTS, snapshot(sharing("b", 2, DNS, HTTPS), sharing("a", 1, HTTP)), IPV4)
    assert prerouting(found) == (
        *pod_pair(key="default/a", ports=port(80)),
        *pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(443)),
        *pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(53, "udp")),
    )
    assert output(found) == (
        *host_pair(key="default/a", ports=port(80)),
        *host_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(443)),
        *host_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(53, "udp")),
    )
    assert found.problems == ()


PROXY = {"loadBalancer": {"ingress": [{"ip": "10.19.0.1", "ipMode": "Proxy"}]}}
WITHOUT_RULES = [
    pytest.param(
        with_metadata(sharing("b", 2, HTTP), annotations={"ipvs-node-agent/ignore": "true"}),
        DEFAULTS,
        id="ignored",
    ),
    pytest.param(
        with_metadata(
            sharing("b", 2, HTTP), labels={"service.kubernetes.io/service-proxy-name": "x"}
        ),
        DEFAULTS,
        id="another proxy's",
    ),
    pytest.param({**sharing("b", 2, HTTP), "status": PROXY}, DEFAULTS, id="ipMode Proxy"),
    pytest.param(
        sharing("b", 2, HTTP, policy="Cluster"),
        options(external_traffic_policy="Local"),
        id="the other traffic policy",
    ),
]


@pytest.mark.parametrize(("other", "config"), WITHOUT_RULES)
def test_a_service_without_rules_keeps_its_ports_and_the_rest_is_matched_by_port(
    other: dict[str, Any], config: Config
) -> None:
    found = plan(
        config, snapshot(aged("02", sharing("a", 1, HTTP, HTTPS)), aged("01", other)), IPV4
    )
    assert prerouting(found) == pod_pair(key="default/a", ports=port(443))
    conflict = Problem("default/a", "PortConflict", "10.19.0.1 tcp 80 belongs to default/b")
    assert found.problems == (conflict,)


def test_a_service_that_the_kernel_refuses_keeps_its_ports() -> None:
    services = snapshot(sharing("a", 1, HTTPS), sharing("b", 2, HTTP)).services.values()
    basis = Basis(DEFAULTS, node(), Services().listed(services), frozenset({"default/b"}))
    found = Replanner(IPV4, basis).planner.plan()
    assert prerouting(found) == pod_pair(key="default/a", ports=port(443))


@pytest.mark.parametrize("cluster_ip", ["None", "", "fd00:231::2"])
def test_a_service_without_a_cluster_ip_of_the_family_names_nothing(cluster_ip: str) -> None:
    other = service("b", [cluster_ip], ["10.19.0.1"], ports=[HTTP])
    assert pods(DEFAULTS, snapshot(sharing("a", 1, HTTP), other)) == pod_pair(key="default/a")


@pytest.mark.parametrize("age", ["01", "03"])
@pytest.mark.parametrize(("asked_for", "losers"), [(True, ["default/b"]), (False, [])])
def test_a_port_goes_to_the_one_for_whom_a_controller_wrote_the_address(
    age: str, asked_for: bool, losers: list[str]
) -> None:
    by_author = service("b", ["10.231.0.2"], [], ports=[HTTP], externalIPs=["10.19.0.1"])
    seen = snapshot(aged("02", sharing("a", 1, HTTP, HTTPS)), aged(age, by_author))
    found = plan(options(external_ips=asked_for), seen, IPV4)
    assert prerouting(found) == (
        *pod_pair(key="default/a", ports=port(80)),
        *pod_pair(key="default/a", ports=port(443)),
    )
    assert [problem.service for problem in found.problems] == losers


# Addresses at which the host itself is reached.


@pytest.mark.parametrize(
    ("of", "network"),
    [
        pytest.param(node(ips=["10.19.0.1"]), NodeNetwork(), id="the Node's"),
        pytest.param(node(), NodeNetwork(addresses=frozenset({HERE})), id="the kernel's"),
        pytest.param(
            node(), NodeNetwork(api_servers=frozenset({(HERE, 6443)})), id="the API server's"
        ),
    ],
)
def test_a_service_has_no_more_than_its_ports_there(of: Node, network: NodeNetwork) -> None:
    seen = replace(snapshot(sharing("a", 1, HTTP), of=of), network=network)
    assert pods(DEFAULTS, seen) == pod_pair(key="default/a", ports=port(80))
    assert host(DEFAULTS, seen) == host_pair(key="default/a", ports=port(80))


@pytest.mark.parametrize("match_ports", ["Shared", "Always"])
def test_nobody_has_the_port_of_the_api_server(match_ports: str) -> None:
    network = NodeNetwork(api_servers=frozenset({(HERE, 443), (parse_address("10.19.0.2"), 80)}))
    seen = replace(snapshot(sharing("a", 1, HTTP, HTTPS)), network=network)
    found = plan(options(match_ports=match_ports), seen, IPV4)
    assert prerouting(found) == pod_pair(key="default/a", ports=port(80))
    why = "10.19.0.1 tcp 443 is refused: this node reaches the API server there"
    assert found.problems == (Problem("default/a", "APIServer", why),)


def test_the_api_servers_port_of_another_protocol_is_anybodys() -> None:
    udp = {"port": 443, "protocol": "UDP"}
    network = NodeNetwork(api_servers=frozenset({(HERE, 443)}))
    seen = replace(snapshot(sharing("a", 1, udp)), network=network)
    assert pods(DEFAULTS, seen) == pod_pair(key="default/a", ports=port(443, "udp"))


def test_an_ip_that_one_service_has_is_matched_by_port_where_that_is_asked_for() -> None:
    seen = snapshot(sharing("a", 1, HTTPS, HTTP))
    assert host(options(match_ports="Always"), seen) == (
        *host_pair(key="default/a", ports=port(80)),
        *host_pair(key="default/a", ports=port(443)),
    )


def test_the_oldest_service_has_a_port_that_two_want_and_the_other_is_reported() -> None:
    young, old = aged("02", sharing("a", 1, HTTP, HTTPS)), aged("01", sharing("b", 2, HTTP))
    found = plan(DEFAULTS, snapshot(young, old), IPV4)
    assert prerouting(found) == (
        *pod_pair(key="default/a", ports=port(443)),
        *pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(80)),
    )
    conflict = Problem("default/a", "PortConflict", "10.19.0.1 tcp 80 belongs to default/b")
    assert found.problems == (conflict,)


def test_of_two_services_of_one_age_the_first_by_name_has_the_port() -> None:
    found = plan(DEFAULTS, snapshot(sharing("b", 2, HTTP), sharing("a", 1, HTTP)), IPV4)
    assert [problem.service for problem in found.problems] == ["default/b"]


def test_the_same_port_of_another_protocol_is_no_conflict() -> None:
    dns_by_tcp = sharing("a", 1, {"port": 53})
    found = plan(DEFAULTS, snapshot(dns_by_tcp, sharing("b", 2, DNS)), IPV4)
    assert found.problems == ()
    assert len(prerouting(found)) == 4


def test_a_service_that_shares_an_ip_and_has_no_port_has_no_rule() -> None:
    found = plan(DEFAULTS, snapshot(sharing("a", 1), sharing("b", 2, HTTP)), IPV4)
    assert prerouting(found) == pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(80))
    text = "10.19.0.1 gets no rules: they match by port, and no port is known"
    assert found.problems == (Problem("default/a", "NoPorts", text),)


def test_a_service_that_is_ignored_still_guards_its_cluster_ip() -> None:
    ignored = service("dns", ["10.231.0.53"], [])
    ignored = with_metadata(ignored, annotations={"ipvs-node-agent/ignore": "true"})
    found = plan(DEFAULTS, snapshot(service("web", ["10.231.0.1"], ["10.231.0.53"]), ignored), IPV4)
    assert [problem.reason for problem in found.problems] == ["ClusterIP"]


def test_a_refused_claim_does_not_make_an_ip_shared() -> None:
    config = replace(DEFAULTS, pod_cidrs=())
    seen = snapshot(service("a", ["10.231.0.1"], ["10.231.0.2"]), service("b", ["10.231.0.2"], []))
    assert plan(config, seen, IPV4).ruleset == NOTHING
