"""Which rules are wanted, for a configuration and a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.model.addresses import (
    FAMILIES,
    IPV4,
    IPV6,
    Family,
    parse_address,
    parse_network,
)
from ipvs_node_agent.model.objects import Node, Problem, Snapshot
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.planner import Plan, plan
from ipvs_node_agent.rules.policy import pod_cidrs
from tests.support.cluster import service

POD_CIDR, POD_CIDR_6 = "10.240.2.128/25", "fd00:10:240:2::/64"
NODE_IP, NODE_IP_6 = "192.168.7.11", "fd00:192:168:7::11"
WEB = service("web", ["10.231.0.1"], ["10.19.0.1"])


def node(
    cidrs: Sequence[str] = (POD_CIDR, POD_CIDR_6), ips: Sequence[str] = (NODE_IP, NODE_IP_6)
) -> Node:
    return Node("worker-1", tuple(map(parse_network, cidrs)), tuple(map(parse_address, ips)), ())


def snapshot(*raw: dict[str, Any], of: Node | None = None) -> Snapshot:
    services = [read_service(each) for each in raw]
    return Snapshot({each.key: each for each in services}, of or node())


def aged(created: str, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` made on that day of January."""
    metadata = {**raw["metadata"], "creationTimestamp": f"2026-01-{created}T00:00:00Z"}
    return {**raw, "metadata": metadata}


def with_metadata(raw: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**raw, "metadata": {**raw["metadata"], **fields}}


def options(**services: Any) -> Config:
    """The defaults with other options for Services."""
    return replace(DEFAULTS, services=replace(DEFAULTS.services, **services))


def prerouting(found: Plan) -> tuple[str, ...]:
    return found.ruleset.chains["IPVS_PREROUTING"]


def output(found: Plan) -> tuple[str, ...]:
    return found.ruleset.chains["IPVS_OUTPUT"]


def pod_pair(ip: str, key: str, to: str, source: str = POD_CIDR, ports: str = "") -> list[str]:
    bits = 128 if ":" in ip else 32
    match = f'-s {source} -d {ip}/{bits} {ports}-m comment --comment "{key}"'
    return [f"{match} -j KUBE-MARK-MASQ", f"{match} -j DNAT --to-destination {to}"]


def host_pair(ip: str, key: str, to: str, ports: str = "") -> list[str]:
    bits = 128 if ":" in ip else 32
    match = f'-d {ip}/{bits} {ports}-m comment --comment "{key}" -m addrtype --src-type LOCAL'
    return [f"{match} -j KUBE-MARK-MASQ", f"{match} -j DNAT --to-destination {to}"]


def port(number: int, protocol: str = "tcp") -> str:
    return f"-p {protocol} -m {protocol} --dport {number} "


NOTHING = Ruleset(
    chains={"IPVS_PREROUTING": (), "IPVS_OUTPUT": ()},
    jumps={"PREROUTING": "IPVS_PREROUTING", "OUTPUT": "IPVS_OUTPUT"},
)


# The chains and their jumps.


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_without_services_there_are_empty_chains_and_jumps_to_them(family: Family) -> None:
    assert plan(DEFAULTS, snapshot(), family) == Plan(NOTHING, ())


def test_the_two_chains_have_a_pair_of_rules_for_an_external_ip() -> None:
    found = plan(DEFAULTS, snapshot(WEB), IPV4)
    chains = {
        "IPVS_PREROUTING": tuple(pod_pair("10.19.0.1", "default/web", "10.231.0.1")),
        "IPVS_OUTPUT": tuple(host_pair("10.19.0.1", "default/web", "10.231.0.1")),
    }
    needs = frozenset({"KUBE-MARK-MASQ"})
    assert found == Plan(replace(NOTHING, chains=chains, needs=needs), ())


def test_without_kubernetes_mark_chain_there_is_one_of_our_own() -> None:
    """Marked and masqueraded by the same bit and in the same steps as kube-proxy does it."""
    found = plan(DEFAULTS, snapshot(WEB), IPV4, own_mark=True).ruleset
    theirs = plan(DEFAULTS, snapshot(WEB), IPV4).ruleset
    own = {
        name: tuple(rule.replace("KUBE-MARK-MASQ", "IPVS_MARK_MASQ") for rule in rules)
        for name, rules in theirs.chains.items()
    }
    assert found.chains == {
        **own,
        "IPVS_MARK_MASQ": ("-j MARK --set-xmark 0x4000/0x4000",),
        "IPVS_POSTROUTING": (
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-j MARK --set-xmark 0x4000/0x0",
            "-j MASQUERADE --random-fully",
        ),
    }
    assert found.jumps == {**theirs.jumps, "POSTROUTING": "IPVS_POSTROUTING"}
    for others, kubernetes in ((frozenset[str](), False), (frozenset({"KUBE-MARK-MASQ"}), True)):
        assert (theirs.fits(others), found.fits(others)) == (kubernetes, not kubernetes)


@pytest.mark.parametrize(("ips", "split"), [(512, False), (513, True)])
def test_one_service_with_many_external_ips_is_no_long_chain_either(ips: int, split: bool) -> None:
    web = service("web", ["10.231.0.1"], [f"10.19.{n // 250}.{n % 250}" for n in range(ips)])
    found = plan(DEFAULTS, snapshot(web), IPV4).ruleset.chains
    assert (max(map(len, found.values())) < 100) == split


def test_without_a_rule_nothing_has_to_be_marked() -> None:
    assert plan(DEFAULTS, snapshot(), IPV4, own_mark=True) == Plan(NOTHING, ())


def test_ipv6_is_the_same() -> None:
    web = service("web", ["fd00:231::1"], ["fd00:19::1"])
    found = plan(DEFAULTS, snapshot(web), IPV6)
    pods = pod_pair("fd00:19::1", "default/web", "fd00:231::1", source=POD_CIDR_6)
    hosts = host_pair("fd00:19::1", "default/web", "fd00:231::1")
    assert found.ruleset.chains == {
        "IPVS_PREROUTING": tuple(pods),
        "IPVS_OUTPUT": tuple(hosts),
    }


def test_the_names_of_the_configuration_are_used() -> None:
    names = replace(DEFAULTS.chains, prerouting="PRE", output="OUT", mark_masquerade="MARK-IT")
    found = plan(replace(DEFAULTS, chains=names), snapshot(WEB), IPV4)
    assert found.ruleset.jumps == {"PREROUTING": "PRE", "OUTPUT": "OUT"}
    assert list(found.ruleset.chains) == ["PRE", "OUT"]
    assert all(rules[0].endswith(" -j MARK-IT") for rules in found.ruleset.chains.values())


def test_a_family_that_the_node_does_not_speak_gets_no_chain() -> None:
    ipv4_only = node([POD_CIDR], [NODE_IP])
    assert plan(DEFAULTS, snapshot(WEB, of=ipv4_only), IPV6) == Plan(Ruleset(), ())


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(node([POD_CIDR_6], [NODE_IP]), id="by-its-pod-CIDR"),
        pytest.param(node([POD_CIDR], [NODE_IP_6]), id="by-its-address"),
    ],
)
def test_a_node_speaks_a_family_by_its_pod_cidrs_or_its_addresses(of: Node) -> None:
    assert plan(DEFAULTS, snapshot(of=of), IPV6) == Plan(NOTHING, ())


def test_rules_are_sorted_by_external_ip_as_a_number() -> None:
    ips = ["10.19.0.10", "10.19.0.9", "9.9.9.9"]
    services = [service(f"s{n}", ["10.231.0.1"], [ip]) for n, ip in enumerate(ips)]
    rules = prerouting(plan(DEFAULTS, snapshot(*services), IPV4))
    assert [rule.split()[3] for rule in rules[::2]] == [
        "9.9.9.9/32",
        "10.19.0.9/32",
        "10.19.0.10/32",
    ]


# Which Services, and which of their IPs.


def test_every_ip_of_the_load_balancer_counts() -> None:
    web = service("web", ["10.231.0.1"], ["10.19.0.2", "10.19.0.1"])
    assert prerouting(plan(DEFAULTS, snapshot(web), IPV4)) == (
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1"),
        *pod_pair("10.19.0.2", "default/web", "10.231.0.1"),
    )


def test_a_dual_stack_service_has_a_pair_in_each_family() -> None:
    seen = snapshot(service("web", ["fd00:231::1", "10.231.0.1"], ["10.19.0.1", "fd00:19::1"]))
    assert output(plan(DEFAULTS, seen, IPV4)) == (
        *host_pair("10.19.0.1", "default/web", "10.231.0.1"),
    )
    assert output(plan(DEFAULTS, seen, IPV6)) == (
        *host_pair("fd00:19::1", "default/web", "fd00:231::1"),
    )


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


@pytest.mark.parametrize("kind", ["LoadBalancer", "ClusterIP", "NodePort"])
def test_external_ips_of_every_type_count_where_they_are_asked_for(kind: str) -> None:
    seen = snapshot(service("web", ["10.231.0.1"], [], type=kind, externalIPs=["10.20.0.1"]))
    assert plan(DEFAULTS, seen, IPV4) == Plan(NOTHING, ())
    assert prerouting(plan(options(external_ips=True), seen, IPV4)) == (
        *pod_pair("10.20.0.1", "default/web", "10.231.0.1"),
    )


def test_an_ip_that_is_listed_in_both_places_has_one_pair() -> None:
    seen = snapshot(service("web", ["10.231.0.1"], ["10.19.0.1"], externalIPs=["10.19.0.1"]))
    assert prerouting(plan(options(external_ips=True), seen, IPV4)) == (
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1"),
    )


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


# Pod CIDRs.


def test_there_is_one_pair_for_each_pod_cidr() -> None:
    of = node(["10.240.3.0/24", "10.240.2.128/25", "10.240.3.0/24"])
    assert prerouting(plan(DEFAULTS, snapshot(WEB, of=of), IPV4)) == (
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1", source="10.240.2.128/25"),
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1", source="10.240.3.0/24"),
    )


def test_pod_cidrs_of_the_configuration_are_taken_instead_of_the_nodes() -> None:
    config = replace(DEFAULTS, pod_cidrs=(parse_network("10.99.0.0/16"),))
    assert prerouting(plan(config, snapshot(WEB), IPV4)) == (
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1", source="10.99.0.0/16"),
    )


def test_without_a_pod_cidr_of_the_family_the_host_still_has_its_rules() -> None:
    found = plan(DEFAULTS, snapshot(WEB, of=node([POD_CIDR_6])), IPV4)
    assert prerouting(found) == ()
    assert output(found) == (*host_pair("10.19.0.1", "default/web", "10.231.0.1"),)


@pytest.mark.parametrize(
    ("configured", "of_node", "known"),
    [
        (None, [], None),
        (None, [POD_CIDR], [POD_CIDR]),
        ([], [POD_CIDR], []),
        (["10.99.0.0/16"], [], ["10.99.0.0/16"]),
    ],
)
def test_pod_cidrs_are_unknown_until_somebody_says_them(
    configured: list[str] | None, of_node: list[str], known: list[str] | None
) -> None:
    cidrs = None if configured is None else tuple(map(parse_network, configured))
    found = pod_cidrs(replace(DEFAULTS, pod_cidrs=cidrs), node(of_node))
    assert found == (None if known is None else tuple(map(parse_network, known)))


# Masquerading.


def test_with_host_only_pods_keep_their_address_and_the_host_does_not() -> None:
    found = plan(replace(DEFAULTS, masquerade="HostOnly"), snapshot(WEB), IPV4)
    assert prerouting(found) == (*pod_pair("10.19.0.1", "default/web", "10.231.0.1")[1:],)
    assert output(found) == (*host_pair("10.19.0.1", "default/web", "10.231.0.1"),)


# IPs that Services share.


def sharing(name: str, number: int, *ports: dict[str, Any]) -> dict[str, Any]:
    return service(name, [f"10.231.0.{number}"], ["10.19.0.1"], ports=list(ports))


HTTP, HTTPS, DNS = {"port": 80}, {"port": 443}, {"port": 53, "protocol": "UDP"}


def test_services_that_share_an_ip_are_told_apart_by_protocol_and_port() -> None:
    found = plan(DEFAULTS, snapshot(sharing("b", 2, DNS, HTTPS), sharing("a", 1, HTTP)), IPV4)
    assert prerouting(found) == (
        *pod_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(80)),
        *pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(443)),
        *pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(53, "udp")),
    )
    assert output(found) == (
        *host_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(80)),
        *host_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(443)),
        *host_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(53, "udp")),
    )
    assert found.problems == ()


def test_sctp_is_matched_too() -> None:
    only = sharing("a", 1, {"port": 9, "protocol": "SCTP"})
    assert prerouting(plan(options(match_ports="Always"), snapshot(only), IPV4)) == (
        *pod_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(9, "sctp")),
    )


def test_an_ip_is_not_shared_with_a_service_that_does_not_count() -> None:
    ignored = with_metadata(sharing("b", 2, HTTP), annotations={"ipvs-node-agent/ignore": "true"})
    assert prerouting(plan(DEFAULTS, snapshot(sharing("a", 1, HTTP), ignored), IPV4)) == (
        *pod_pair("10.19.0.1", "default/a", "10.231.0.1"),
    )


def test_an_ip_that_one_service_has_is_matched_by_port_where_that_is_asked_for() -> None:
    seen = snapshot(sharing("a", 1, HTTPS, HTTP))
    assert output(plan(options(match_ports="Always"), seen, IPV4)) == (
        *host_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(80)),
        *host_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(443)),
    )


def test_the_oldest_service_has_a_port_that_two_want_and_the_other_is_reported() -> None:
    young, old = aged("02", sharing("a", 1, HTTP, HTTPS)), aged("01", sharing("b", 2, HTTP))
    found = plan(DEFAULTS, snapshot(young, old), IPV4)
    assert prerouting(found) == (
        *pod_pair("10.19.0.1", "default/a", "10.231.0.1", ports=port(443)),
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
    assert prerouting(found) == (*pod_pair("10.19.0.1", "default/b", "10.231.0.2", ports=port(80)),)


# Source ranges.


def ranged(*ranges: str, **fields: Any) -> dict[str, Any]:
    return service(
        "web", ["10.231.0.1"], ["10.19.0.1"], loadBalancerSourceRanges=list(ranges), **fields
    )


@pytest.mark.parametrize(
    ("ranges", "sources"),
    [
        pytest.param(["10.240.0.0/16"], [POD_CIDR], id="around"),
        pytest.param(["10.240.2.192/26"], ["10.240.2.192/26"], id="a-part"),
        pytest.param(
            ["10.240.2.130/32", "10.240.2.160/27"],
            ["10.240.2.130/32", "10.240.2.160/27"],
            id="two-parts",
        ),
        pytest.param(["10.240.2.128/26", "10.240.2.192/26"], [POD_CIDR], id="two-halves"),
        pytest.param(["192.0.2.0/24"], [], id="elsewhere"),
        pytest.param(["::/0"], [], id="the-other-family"),
        pytest.param(["junk"], [], id="unreadable"),
    ],
)
def test_pods_get_a_rule_for_their_part_of_the_source_ranges(
    ranges: list[str], sources: list[str]
) -> None:
    assert prerouting(plan(DEFAULTS, snapshot(ranged(*ranges)), IPV4)) == tuple(
        rule
        for source in sources
        for rule in pod_pair("10.19.0.1", "default/web", "10.231.0.1", source=source)
    )


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        (["192.168.7.11/32"], True),
        (["192.168.0.0/16", "192.0.2.0/24"], True),
        (["10.240.0.0/16"], False),
        (["::/0"], False),
        (["junk"], False),
    ],
)
def test_the_host_gets_a_rule_if_one_of_its_addresses_is_in_the_source_ranges(
    ranges: list[str], allowed: bool
) -> None:
    assert bool(output(plan(DEFAULTS, snapshot(ranged(*ranges)), IPV4))) is allowed


def test_overlapping_pod_cidrs_have_one_pair_for_a_source_range() -> None:
    of = node(["10.240.0.0/16", POD_CIDR])
    found = plan(DEFAULTS, snapshot(ranged("10.240.2.192/26"), of=of), IPV4)
    assert prerouting(found) == (
        *pod_pair("10.19.0.1", "default/web", "10.231.0.1", source="10.240.2.192/26"),
    )


def test_source_ranges_do_not_limit_external_ips() -> None:
    seen = snapshot(ranged("192.0.2.0/24", externalIPs=["10.20.0.1"]))
    assert prerouting(plan(options(external_ips=True), seen, IPV4)) == (
        *pod_pair("10.20.0.1", "default/web", "10.231.0.1"),
    )


# What is refused.


@pytest.mark.parametrize(
    ("ip", "reason", "why"),
    [
        ("127.0.0.1", "Loopback", "a loopback address"),
        ("127.9.9.9", "Loopback", "a loopback address"),
        ("::1", "Loopback", "a loopback address"),
        ("0.0.0.0", "Unspecified", "an unspecified address"),
        ("::", "Unspecified", "an unspecified address"),
        ("169.254.169.254", "LinkLocal", "a link-local address"),
        ("fe80::1", "LinkLocal", "a link-local address"),
        ("224.0.0.1", "Multicast", "a multicast address"),
        ("ff02::1", "Multicast", "a multicast address"),
        ("255.255.255.255", "Broadcast", "a broadcast address"),
        ("10.231.0.1", "ClusterIP", "the ClusterIP of default/web"),
        ("10.231.0.53", "ClusterIP", "the ClusterIP of kube-system/dns"),
        ("fd00:231::53", "ClusterIP", "the ClusterIP of kube-system/dns"),
        ("10.240.2.129", "PodCIDR", "inside the pod CIDR 10.240.2.128/25"),
        ("fd00:10:240:2::7", "PodCIDR", "inside the pod CIDR fd00:10:240:2::/64"),
        (NODE_IP, "NodeAddress", "this node's own (services.matchPorts: Always would allow it)"),
        (NODE_IP_6, "NodeAddress", "this node's own (services.matchPorts: Always would allow it)"),
    ],
)
def test_an_ip_that_would_hijack_traffic_is_refused_and_the_others_count(
    ip: str, reason: str, why: str
) -> None:
    dns = service("dns", ["10.231.0.53", "fd00:231::53"], [], type="ClusterIP")
    ips = [ip, "10.19.0.1", "fd00:19::1"]
    seen = snapshot(
        service("web", ["10.231.0.1", "fd00:231::1"], ips),
        with_metadata(dns, namespace="kube-system"),
    )
    family = IPV6 if ":" in ip else IPV4
    found = plan(DEFAULTS, seen, family)
    assert found.problems == (Problem("default/web", reason, f"{ip} is refused: it is {why}"),)
    good, to = ("fd00:19::1", "fd00:231::1") if family is IPV6 else ("10.19.0.1", "10.231.0.1")
    assert output(found) == (*host_pair(good, "default/web", to),)


def test_an_external_ip_of_the_spec_is_refused_likewise() -> None:
    seen = snapshot(service("web", ["10.231.0.1"], [], externalIPs=["127.0.0.1"]))
    found = plan(options(external_ips=True), seen, IPV4)
    assert [problem.reason for problem in found.problems] == ["Loopback"]
    assert found.ruleset == NOTHING


def test_a_service_that_is_ignored_still_guards_its_cluster_ip() -> None:
    ignored = service("dns", ["10.231.0.53"], [])
    ignored = with_metadata(ignored, annotations={"ipvs-node-agent/ignore": "true"})
    found = plan(DEFAULTS, snapshot(service("web", ["10.231.0.1"], ["10.231.0.53"]), ignored), IPV4)
    assert [problem.reason for problem in found.problems] == ["ClusterIP"]


def test_the_nodes_own_address_may_be_had_by_port() -> None:
    seen = snapshot(service("web", ["10.231.0.1"], [NODE_IP]))
    assert prerouting(plan(options(match_ports="Always"), seen, IPV4)) == (
        *pod_pair(NODE_IP, "default/web", "10.231.0.1", ports=port(80)),
    )


@pytest.mark.parametrize("match_ports", ["Shared", "Always"])
def test_a_pods_address_may_not_be_had_even_by_port(match_ports: str) -> None:
    seen = snapshot(service("web", ["10.231.0.1"], ["10.240.2.129"]))
    found = plan(options(match_ports=match_ports), seen, IPV4)
    assert [problem.reason for problem in found.problems] == ["PodCIDR"]


def test_the_nodes_pod_cidr_is_guarded_beside_the_configurations() -> None:
    config = replace(DEFAULTS, pod_cidrs=(parse_network("10.99.0.0/16"),))
    seen = snapshot(service("web", ["10.231.0.1"], ["10.240.2.129", "10.99.0.1"]))
    found = plan(config, seen, IPV4)
    assert [problem.reason for problem in found.problems] == ["PodCIDR", "PodCIDR"]


def test_where_cidrs_are_allowed_an_ip_outside_them_is_refused() -> None:
    config = options(allowed_external_cidrs=(parse_network("10.19.0.0/24"),))
    seen = snapshot(service("web", ["10.231.0.1"], ["10.19.0.1", "10.19.1.1"]))
    found = plan(config, seen, IPV4)
    assert prerouting(found) == (*pod_pair("10.19.0.1", "default/web", "10.231.0.1"),)
    text = "10.19.1.1 is refused: it is outside services.allowedExternalCIDRs"
    assert found.problems == (Problem("default/web", "NotAllowed", text),)


def test_an_allowed_cidr_does_not_allow_what_is_dangerous() -> None:
    config = options(allowed_external_cidrs=(parse_network("0.0.0.0/0"),))
    found = plan(config, snapshot(service("web", ["10.231.0.1"], ["127.0.0.1"])), IPV4)
    assert [problem.reason for problem in found.problems] == ["Loopback"]


def test_a_refused_claim_does_not_make_an_ip_shared() -> None:
    config = replace(DEFAULTS, pod_cidrs=())
    seen = snapshot(service("a", ["10.231.0.1"], ["10.231.0.2"]), service("b", ["10.231.0.2"], []))
    assert plan(config, seen, IPV4).ruleset == NOTHING


# Determinism.


def test_the_order_of_the_services_does_not_matter() -> None:
    twins = [
        service(name, ["10.231.0.1"], ["127.0.0.1", "10.19.0.1", "10.231.0.1"])
        for name in ("a", "b", "c")
    ]
    assert plan(DEFAULTS, snapshot(*twins), IPV4) == plan(DEFAULTS, snapshot(*twins[::-1]), IPV4)


# What a Service may cost.


def costly(name: str, addresses: int, ports: int, ranges: int = 0) -> dict[str, Any]:
    """A Service with so many addresses, ports and parts of the pod CIDR."""
    raw = service(name, ["fd00:231::1"], [f"fd00:19::{n:x}" for n in range(1, addresses + 1)])
    raw["spec"]["ports"] = [{"port": n} for n in range(1, ports + 1)]
    if ranges:
        clients = [f"fd00:10:240:2::{2 * n:x}/128" for n in range(ranges)]
        raw["spec"]["loadBalancerSourceRanges"] = clients
    return raw


ALWAYS = options(match_ports="Always")


@pytest.mark.parametrize(
    ("addresses", "ports", "ranges"),
    [
        pytest.param(1, 16_385, 0, id="ports"),
        pytest.param(200, 100, 0, id="addresses and ports"),
        pytest.param(1, 1000, 40, id="ports and ranges"),
        pytest.param(300, 1, 300, id="addresses and ranges"),
        pytest.param(16_385, 1, 0, id="addresses"),
        # Their product alone would take minutes to work out.
        pytest.param(5000, 1, 5000, id="many addresses and ranges"),
    ],
)
def test_a_service_with_too_many_rules_has_none_and_others_keep_theirs(
    addresses: int, ports: int, ranges: int
) -> None:
    web = service("web", ["fd00:231::2"], ["fd00:20::1"])
    web["spec"]["ports"] = [{"port": 80}]
    found = plan(ALWAYS, snapshot(costly("greedy", addresses, ports, ranges), web), IPV6)
    assert prerouting(found) == tuple(
        pod_pair("fd00:20::1", "default/web", "fd00:231::2", POD_CIDR_6, port(80))
    )
    assert len(found.problems) == addresses
    said = "fd00:19::1 is refused: over 65536 rules for one Service"
    assert Problem("default/greedy", "TooManyRules", said) in found.problems


@pytest.mark.parametrize(
    ("addresses", "ports", "ranges"), [(1, 16_384, 0), (16_384, 1, 0), (100, 80, 3)]
)
def test_a_service_may_have_many_rules(addresses: int, ports: int, ranges: int) -> None:
    found = plan(ALWAYS, snapshot(costly("big", addresses, ports, ranges)), IPV6)
    assert not found.problems
    chains = found.ruleset.chains.items()
    pods = [rule for name, rules in chains if name.startswith("IPVS_PREROUTING") for rule in rules]
    translations = sum(" -j DNAT " in rule for rule in pods)
    assert translations == addresses * ports * max(1, ranges)


def test_ports_count_only_where_they_are_matched() -> None:
    found = plan(DEFAULTS, snapshot(costly("big", 4, 16_385)), IPV6)
    assert not found.problems
    assert len(prerouting(found)) == 8


def test_external_ips_of_the_spec_count_where_they_are_asked_for() -> None:
    raw = costly("greedy", 1, 1)
    raw["spec"]["externalIPs"] = [f"fd00:21::{n:x}" for n in range(16_384)]
    assert not plan(DEFAULTS, snapshot(raw), IPV6).problems
    assert len(plan(options(external_ips=True), snapshot(raw), IPV6).problems) == 16_385
