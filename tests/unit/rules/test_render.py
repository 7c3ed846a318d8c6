"""The rules of one claim: for which pods, for the host, by which ports, marked or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import IPV4, IPV6, parse_network
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.rules.planner import Basis, Replanner, plan
from tests.support.cluster import service
from tests.unit.rules.wanted import (
    NODE_IP,
    POD_CIDR,
    POD_CIDR_6,
    WEB,
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
)


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


def test_ipv6_is_the_same() -> None:
    web = service("web", ["fd00:231::1"], ["fd00:19::1"])
    found = plan(DEFAULTS, snapshot(web), IPV6)
    pods = pod_pair("fd00:19::1", to="fd00:231::1", source=POD_CIDR_6)
    hosts = host_pair("fd00:19::1", to="fd00:231::1")
    assert found.ruleset.chains == {"IPVS_PREROUTING": tuple(pods), "IPVS_OUTPUT": tuple(hosts)}


def test_there_is_one_pair_for_each_pod_cidr() -> None:
    of = node(["10.240.3.0/24", "10.240.2.128/25", "10.240.3.0/24"])
    assert pods(DEFAULTS, snapshot(WEB, of=of)) == (
        *pod_pair(source="10.240.2.128/25"),
        *pod_pair(source="10.240.3.0/24"),
    )


def test_pod_cidrs_of_the_configuration_are_taken_instead_of_the_nodes() -> None:
    config = replace(DEFAULTS, pod_cidrs=(parse_network("10.99.0.0/16"),))
    assert pods(config, snapshot(WEB)) == pod_pair(source="10.99.0.0/16")


def test_without_a_pod_cidr_of_the_family_the_host_still_has_its_rules() -> None:
    found = plan(DEFAULTS, snapshot(WEB, of=node([POD_CIDR_6])), IPV4)
    assert prerouting(found) == ()
    assert output(found) == host_pair()


def test_with_host_only_pods_keep_their_address_and_the_host_does_not() -> None:
    found = plan(replace(DEFAULTS, masquerade="HostOnly"), snapshot(WEB), IPV4)
    assert prerouting(found) == pod_pair()[1:]
    assert output(found) == host_pair()


def test_sctp_is_matched_too() -> None:
    only = sharing("a", 1, {"port": 9, "protocol": "SCTP"})
    assert pods(options(match_ports="Always"), snapshot(only)) == pod_pair(
        key="default/a", ports=port(9, "sctp")
    )


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
        pytest.param(["::/0", "2001:db8::/32"], [POD_CIDR], id="the-other-family"),
        pytest.param(["192.0.2.0/24", "0.0.0.0/0"], [POD_CIDR], id="any"),
        pytest.param(["junk"], [], id="unreadable"),
        pytest.param(["junk", "2001:db8::/32"], [], id="unreadable-and-the-other-family"),
        pytest.param(["junk", "0.0.0.0/0"], [POD_CIDR], id="unreadable-and-any"),
    ],
)
def test_pods_get_a_rule_for_their_part_of_the_source_ranges(
    ranges: list[str], sources: list[str]
) -> None:
    assert pods(DEFAULTS, snapshot(ranged(*ranges))) == tuple(
        rule for source in sources for rule in pod_pair(source=source)
    )


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        (["192.168.7.11/32"], True),
        (["192.168.0.0/16", "192.0.2.0/24"], True),
        (["198.51.100.0/24"], False),
        (["10.240.0.0/16"], False),
        (["::/0"], True),
        (["junk"], False),
    ],
)
def test_the_host_gets_a_rule_if_its_first_address_is_in_the_source_ranges(
    ranges: list[str], allowed: bool
) -> None:
    of = node(ips=[NODE_IP, "198.51.100.7"])
    assert bool(host(DEFAULTS, snapshot(ranged(*ranges), of=of))) is allowed


def test_a_dual_stack_service_with_ranges_of_one_family_is_limited_in_that_one() -> None:
    web = service(
        "web",
        ["10.231.0.1", "fd00:231::1"],
        ["10.19.0.1", "fd00:19::1"],
        loadBalancerSourceRanges=["192.0.2.0/24"],
    )
    assert pods(DEFAULTS, snapshot(web)) == host(DEFAULTS, snapshot(web)) == ()
    found = plan(DEFAULTS, snapshot(web), IPV6)
    assert prerouting(found) == pod_pair("fd00:19::1", to="fd00:231::1", source=POD_CIDR_6)
    assert output(found) == host_pair("fd00:19::1", to="fd00:231::1")


# Pods that are known by interface.


@pytest.mark.parametrize(
    ("interfaces", "ranges", "matches"),
    [
        (["cali+"], [], ["-d 10.19.0.1/32 -i cali+ "]),
        (["cali+", "cni0"], [], ["-d 10.19.0.1/32 -i cali+ ", "-d 10.19.0.1/32 -i cni0 "]),
        (["cali+"], ["0.0.0.0/0"], ["-d 10.19.0.1/32 -i cali+ "]),
        (["cali+"], ["2001:db8::/32"], ["-d 10.19.0.1/32 -i cali+ "]),
        (
            ["cali+"],
            ["10.233.0.0/25", "10.233.0.128/25", "192.0.2.1/32"],
            [
                "-s 10.233.0.0/24 -d 10.19.0.1/32 -i cali+ ",
                "-s 192.0.2.1/32 -d 10.19.0.1/32 -i cali+ ",
            ],
        ),
        (["cali+"], ["junk"], []),
    ],
)
def test_pods_have_a_pair_for_each_interface_and_source_range(
    interfaces: list[str], ranges: list[str], matches: list[str]
) -> None:
    services = Services().listed(snapshot(ranged(*ranges)).services.values())
    basis = Basis(DEFAULTS, node(), services, pod_interfaces=tuple(interfaces))
    found = prerouting(Replanner(IPV4, basis).planner.plan())
    rest = '-m comment --comment "default/web" -j'
    assert list(found) == [
        f"{match}{rest} {target}"
        for match in matches
        for target in ("KUBE-MARK-MASQ", "DNAT --to-destination 10.231.0.1")
    ]


def test_overlapping_pod_cidrs_have_one_pair_for_a_source_range() -> None:
    of = node(["10.240.0.0/16", POD_CIDR])
    found = plan(DEFAULTS, snapshot(ranged("10.240.2.192/26"), of=of), IPV4)
    assert prerouting(found) == pod_pair(source="10.240.2.192/26")


def test_source_ranges_do_not_limit_external_ips() -> None:
    seen = snapshot(ranged("192.0.2.0/24", externalIPs=["10.20.0.1"]))
    assert pods(options(external_ips=True), seen) == pod_pair("10.20.0.1")
