"""Which external IPs and pod CIDRs count, and which addresses nobody gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.model.addresses import (
    IPV4,
    IPV6,
    Address,
    address_of,
    parse_address,
    parse_network,
)
from ipvs_node_agent.model.objects import Node, NodeNetwork, PodNetwork, Problem
from ipvs_node_agent.rules.planner import Plan, plan
from ipvs_node_agent.rules.policy import (
    Guard,
    is_one_of,
    lacking,
    pod_cidrs,
    pod_interfaces,
    unneeded_in,
)
from tests.support.cluster import service
from tests.unit.rules.wanted import (
    NODE_IP,
    NOTHING,
    POD_CIDR,
    POD_CIDR_6,
    WEB,
    host_pair,
    node,
    options,
    output,
    pod_pair,
    pods,
    prerouting,
    snapshot,
    with_metadata,
)


@pytest.mark.parametrize("kind", ["LoadBalancer", "ClusterIP", "NodePort"])
def test_external_ips_of_every_type_count_where_they_are_asked_for(kind: str) -> None:
    seen = snapshot(service("web", ["10.231.0.1"], [], type=kind, externalIPs=["10.20.0.1"]))
    assert plan(DEFAULTS, seen, IPV4) == Plan(NOTHING, ())
    assert pods(options(external_ips=True), seen) == pod_pair("10.20.0.1")


def test_an_ip_that_is_listed_in_both_places_has_one_pair() -> None:
    seen = snapshot(service("web", ["10.231.0.1"], ["10.19.0.1"], externalIPs=["10.19.0.1"]))
    assert pods(options(external_ips=True), seen) == pod_pair()


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


def lead(interface: str, *subnets: str) -> PodNetwork:
    return PodNetwork(interface, tuple(map(parse_network, subnets)))


CALI, FLANNEL = PodNetwork("cali+"), lead("cni0", "10.240.2.129/32")


@pytest.mark.parametrize(
    ("found", "interfaces"),
    [
        ([], ()),
        ([CALI], ("cali+",)),
        ([FLANNEL], ()),
        ([lead("br1")], ()),
        ([lead("br1", POD_CIDR, POD_CIDR_6)], ()),
        ([lead("br1", "10.240.2.0/24")], ("br1",)),
        ([lead("br1", POD_CIDR, "fd00:88::/64")], ("br1",)),
        ([CALI, FLANNEL, lead("br1", "10.88.0.0/16")], ("br1", "cali+", "cni0")),
    ],
)
def test_pods_are_known_by_interface_where_some_are_outside_the_pod_cidrs(
    found: list[PodNetwork], interfaces: tuple[str, ...]
) -> None:
    assert pod_interfaces(DEFAULTS, node(), found) == interfaces
    for known, chosen in ((("eth1",), ("eth1",)), ((), ())):
        assert pod_interfaces(replace(DEFAULTS, pod_interfaces=known), node(), found) == chosen
    configured = replace(DEFAULTS, pod_cidrs=(parse_network("10.99.0.0/16"),))
    assert pod_interfaces(configured, node(), found) == ()


@pytest.mark.parametrize(
    ("interface", "known"),
    [("cali12", True), ("cali", True), ("cni0", True), ("cni01", False), ("xcali", False)],
)
def test_a_plus_stands_for_the_rest_of_a_name(interface: str, known: bool) -> None:
    assert is_one_of(interface, ("cali+", "cni0")) is known


@pytest.mark.parametrize(
    ("cidrs", "ips", "interfaces", "said"),
    [
        ([POD_CIDR], [NODE_IP], (), ""),
        ([], [NODE_IP], ("cali+",), ""),
        ([], [NODE_IP], (), "no pod CIDR"),
        ([], [], ("cali+",), "no address"),
    ],
)
def test_where_interfaces_lead_to_pods_no_pod_cidr_is_waited_for(
    cidrs: list[str], ips: list[str], interfaces: tuple[str, ...], said: str
) -> None:
    found = lacking(DEFAULTS, node(cidrs, ips), interfaces)
    assert bool(found) == bool(said)
    assert said in found


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
    assert output(found) == host_pair(good, to=to)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (NodeNetwork(pods=frozenset({parse_address("10.19.0.1")})), "routed to a pod of this node"),
        (
            NodeNetwork(pod_blocks=frozenset({parse_network("10.19.0.0/26")})),
            "inside 10.19.0.0/26, which pods' addresses are from",
        ),
    ],
)
def test_an_address_of_a_pod_is_refused_wherever_it_comes_from(
    network: NodeNetwork, why: str
) -> None:
    found = plan(DEFAULTS, replace(snapshot(WEB), network=network), IPV4)
    text = f"10.19.0.1 is refused: it is {why}"
    assert found.problems == (Problem("default/web", "PodCIDR", text),)


NOWHERE = Node("worker-1", (), (), ())
# What Python's ipaddress says of such an address.
PYTHONS = {
    "Loopback": "is_loopback",
    "Unspecified": "is_unspecified",
    "LinkLocal": "is_link_local",
    "Multicast": "is_multicast",
}
EDGES = [
    address
    for text in (
        *("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "0.0.0.0/32", "10.1.0.0/16"),
        *("::1/128", "::/128", "fe80::/10", "ff00::/8", "fd00::/8"),
    )
    for network in [parse_network(text)]
    for address in (network.network_address, network.broadcast_address)
]


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_whose_an_address_is_goes_by_its_range_to_the_edges(edge: Address) -> None:
    guard = Guard(Config(), NOWHERE, NodeNetwork())
    last = 2**edge.max_prefixlen - 1
    for number in {max(int(edge) - 1, 0), int(edge), min(int(edge) + 1, last)}:
        address = address_of(number.to_bytes(edge.max_prefixlen // 8, "big"))
        by_python = [name for name, asked in PYTHONS.items() if getattr(address, asked)]
        assert guard.reason(address)[0] == (by_python[0] if by_python else "")


@pytest.mark.parametrize(("ip", "last"), [("10.1.255.254", True), ("10.2.0.0", False)])
def test_of_several_ranges_the_widest_is_named(ip: str, last: bool) -> None:
    """So that two processes say the same."""
    blocks = [parse_network(each) for each in ("10.1.255.0/24", "10.0.0.0/15", "10.1.0.0/16")]
    guard = Guard(Config(), NOWHERE, NodeNetwork(pod_blocks=frozenset(blocks)))
    why = "inside 10.0.0.0/15, which pods' addresses are from"
    assert guard.reason(parse_address(ip)) == (("PodCIDR", why) if last else ("", ""))


def test_where_cidrs_are_allowed_an_ip_outside_them_is_refused() -> None:
    config = options(allowed_external_cidrs=(parse_network("10.19.0.0/24"),))
    seen = snapshot(service("web", ["10.231.0.1"], ["10.19.0.1", "10.19.1.1"]))
    found = plan(config, seen, IPV4)
    assert prerouting(found) == pod_pair()
    text = "10.19.1.1 is refused: it is outside services.allowedExternalCIDRs"
    assert found.problems == (Problem("default/web", "NotAllowed", text),)


@pytest.mark.parametrize(
    ("config", "ips", "more", "reasons"),
    [
        pytest.param(
            options(external_ips=True), [], ["127.0.0.1"], ["Loopback"], id="spec.externalIPs"
        ),
        pytest.param(
            options(match_ports="Always"), ["10.240.2.129"], [], ["PodCIDR"], id="by port"
        ),
        pytest.param(
            replace(DEFAULTS, pod_cidrs=(parse_network("10.99.0.0/16"),)),
            ["10.240.2.129", "10.99.0.1"],
            [],
            ["PodCIDR", "PodCIDR"],
            id="the Node's pod CIDR beside the configuration's",
        ),
        pytest.param(
            options(allowed_external_cidrs=(parse_network("0.0.0.0/0"),)),
            ["127.0.0.1"],
            [],
            ["Loopback"],
            id="an allowed CIDR",
        ),
    ],
)
def test_no_configuration_allows_what_is_dangerous(
    config: Config, ips: list[str], more: list[str], reasons: list[str]
) -> None:
    found = plan(config, snapshot(service("web", ["10.231.0.1"], ips, externalIPs=more)), IPV4)
    assert [problem.reason for problem in found.problems] == reasons
    assert not any(found.ruleset.chains.values())


def test_only_the_modes_that_are_known_to_need_no_agent_count() -> None:
    modes = [None, "ipvs", "iptables", "nftables", "userspace", "new"]
    assert [mode for mode in modes if unneeded_in(mode)] == ["iptables", "nftables"]
