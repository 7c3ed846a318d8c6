"""Who has which external IP and port, of those who ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family
from ipvs_node_agent.model.objects import Problem
from ipvs_node_agent.rules.planner import Plan, plan
from tests.support.cluster import service
from tests.unit.rules.wanted import (
    DNS,
    HTTP,
    HTTPS,
    NOTHING,
    WEB,
    aged,
    host,
    host_pair,
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
    seen = snapshot(service("web", cluster_ips, ips))
    assert plan(DEFAULTS, seen, family) == Plan(NOTHING, ())


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(service("web", ["10.231.0.1"], []), id="no-IP-yet"),
        pytest.param(service("web", ["10.231.0.1"], [""]), id="an-empty-IP"),
        pytest.param(service("web", ["None"], ["10.19.0.1"]), id="headless"),
        pytest.param(service("web", [""], ["10.19.0.1"]), id="no-ClusterIP-yet"),
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


def test_an_ip_is_not_shared_with_a_service_that_does_not_count() -> None:
    ignored = with_metadata(sharing("b", 2, HTTP), annotations={"ipvs-node-agent/ignore": "true"})
    assert pods(DEFAULTS, snapshot(sharing("a", 1, HTTP), ignored)) == pod_pair(key="default/a")


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
    conflict = Problem("default/a", "PortConflict", "10.19.0.1 tcp 80 is default/b's")
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


def test_a_service_that_is_ignored_still_guards_its_cluster_ip() -> None:
    ignored = service("dns", ["10.231.0.53"], [])
    ignored = with_metadata(ignored, annotations={"ipvs-node-agent/ignore": "true"})
    found = plan(DEFAULTS, snapshot(service("web", ["10.231.0.1"], ["10.231.0.53"]), ignored), IPV4)
    assert [problem.reason for problem in found.problems] == ["ClusterIP"]


def test_a_refused_claim_does_not_make_an_ip_shared() -> None:
    config = replace(DEFAULTS, pod_cidrs=())
    seen = snapshot(service("a", ["10.231.0.1"], ["10.231.0.2"]), service("b", ["10.231.0.2"], []))
    assert plan(config, seen, IPV4).ruleset == NOTHING
