"""From Services to chains and jumps: what is wanted in a table, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import (
    FAMILIES,
    IPV4,
    IPV6,
    Address,
    Family,
    parse_address,
    parse_network,
)
from ipvs_node_agent.model.objects import NO_NETWORK, Node, NodeNetwork, Problem, Snapshot
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.nat.ruletext import read
from ipvs_node_agent.rules.claims import Claim, Claims
from ipvs_node_agent.rules.planner import Basis, Plan, Plans, Replanner, plan
from tests.support.cluster import service
from tests.unit.rules.wanted import (
    HERE,
    NODE_IP,
    NODE_IP_6,
    NOTHING,
    POD_CIDR,
    POD_CIDR_6,
    WEB,
    host_pair,
    node,
    options,
    pod_pair,
    pods,
    port,
    prerouting,
    sharing,
    snapshot,
)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_without_services_there_are_empty_chains_and_jumps_to_them(family: Family) -> None:
    assert plan(DEFAULTS, snapshot(), family) == Plan(NOTHING, ())


def test_the_two_chains_have_a_pair_of_rules_for_an_external_ip() -> None:
    found = plan(DEFAULTS, snapshot(WEB), IPV4)
    chains = {"IPVS_PREROUTING": pod_pair(), "IPVS_OUTPUT": host_pair()}
    needs = frozenset({"KUBE-MARK-MASQ"})
    addresses = frozenset(read_service(WEB).load_balancer_ips)
    assert found == Plan(replace(NOTHING, chains=chains, needs=needs, addresses=addresses), ())


def many_ips(count: int) -> dict[str, Any]:
    return service("web", ["10.231.0.1"], [f"10.19.0.{n}" for n in range(count)])


def many_ports(count: int) -> dict[str, Any]:
    shared = [{"port": 2 * n + 1, "protocol": "TCP"} for n in range(count)]
    return service("web", ["10.231.0.1"], [NODE_IP], ports=shared)


@pytest.mark.parametrize("of_so_many", [many_ips, many_ports])
@pytest.mark.parametrize(("count", "split"), [(16, False), (17, True)])
def test_one_service_with_many_rules_is_no_long_chain_either(
    of_so_many: Callable[[int], dict[str, Any]], count: int, split: bool
) -> None:
    found = plan(DEFAULTS, snapshot(of_so_many(count)), IPV4).ruleset.chains
    assert (len(found) > 2) == split
    assert max(map(len, found.values())) <= 32


@pytest.mark.parametrize(
    ("ports", "written"),
    [
        (["80", "81", "82"], ["tcp 80:82"]),
        (["80", "82", "83", "443"], ["tcp 80", "tcp 82:83", "tcp 443"]),
        (["53/UDP", "53", "54", "55/UDP"], ["tcp 53:54", "udp 53", "udp 55"]),
        (["65535", "1/UDP", "2/UDP"], ["tcp 65535", "udp 1:2"]),
        ([str(n) for n in range(1, 10_001)], ["tcp 1:10000"]),
    ],
    ids=["a run", "gaps", "protocols", "the last port", "ten thousand"],
)
def test_consecutive_ports_of_a_service_are_one_rule(ports: list[str], written: list[str]) -> None:
    asked = [each.partition("/") for each in ports]
    raw = [{"port": int(number), "protocol": kind or "TCP"} for number, _, kind in asked]
    found = plan(DEFAULTS, snapshot(service("web", ["10.231.0.1"], [NODE_IP], ports=raw)), IPV4)
    rules = [read(rule) for rule in prerouting(found)[1::2]]
    assert [f"{rule.protocol} {rule.ports}" for rule in rules if rule] == written


def test_consecutive_ports_of_two_services_are_a_rule_for_each() -> None:
    one, other = sharing("a", 1, {"port": 80}, {"port": 81}), sharing("b", 2, {"port": 82})
    assert pods(DEFAULTS, snapshot(one, other)) == (
        *pod_pair(key="default/a", ports=port("80:81")),
        *pod_pair(key="default/b", to="10.231.0.2", ports=port(82)),
    )


# The node's network.


def test_a_network_that_changes_leaves_no_trace() -> None:
    """From a Service alone at its address to one among others there, and back."""
    services = Services().listed(snapshot(WEB, sharing("b", 2, {"port": 53})).services.values())
    block = frozenset({parse_network("10.19.0.0/24")})
    networks = [
        NodeNetwork(addresses=frozenset({HERE})),
        NodeNetwork(api_servers=frozenset({(HERE, 80)})),
        NodeNetwork(pods=frozenset({HERE})),
        NodeNetwork(pod_blocks=block),
        NodeNetwork(),
    ]
    replanner = Replanner(IPV4, Basis(DEFAULTS, node(), services))
    for network in (*networks, *networks[::-1]):
        basis = Basis(DEFAULTS, node(), services, network=network)
        replanner.become(basis)
        assert replanner.planner.plan() == Replanner(IPV4, basis).planner.plan()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_family_that_the_kernel_lacks_nothing_is_wanted(family: Family) -> None:
    """Its commands would fail for ever, and no packet would meet the rules."""
    both = service("web", ["10.231.0.1", "fd00:231::1"], ["10.19.0.1", "fd00:19::1"])
    services = Services().listed(snapshot(both).services.values())
    there = Basis(DEFAULTS, node(), services)
    lacking = there._replace(network=NodeNetwork(absent=frozenset({family.version})))
    replanner = Replanner(family, there)
    assert replanner.planner.services == 1
    replanner.become(lacking)
    assert replanner.planner.plan().ruleset == Ruleset()
    assert replanner.planner.services == 0
    replanner.become(there)
    assert replanner.planner.services == 1


def test_an_address_that_comes_is_planned_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many Services there are."""
    many = [service(f"s{n}", [f"10.231.1.{n}"], [f"10.19.1.{n}"]) for n in range(200)]
    services = Services().listed(snapshot(WEB, *many).services.values())
    replanner = Replanner(IPV4, Basis(DEFAULTS, node(), services))
    asked: list[Address] = []
    awarded = Claims.awarded

    def noted(claims: Claims, address: Address) -> tuple[list[Claim], list[Problem]]:
        asked.append(address)
        return awarded(claims, address)

    monkeypatch.setattr(Claims, "awarded", noted)
    for network in (
        NodeNetwork(addresses=frozenset({HERE, parse_address("192.0.2.7")})),
        NO_NETWORK,
    ):
        replanner.become(Basis(DEFAULTS, node(), services, network=network))
        assert asked == [HERE]
        asked.clear()


def test_without_a_rule_nothing_has_to_be_marked() -> None:
    assert plan(DEFAULTS, snapshot(), IPV4, own_mark=True) == Plan(NOTHING, ())


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
    rules = pods(DEFAULTS, snapshot(*services))
    assert [rule.split()[3] for rule in rules[::2]] == [
        "9.9.9.9/32",
        "10.19.0.9/32",
        "10.19.0.10/32",
    ]


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
    # None is the next one's neighbour, as those would be one rule.
    raw["spec"]["ports"] = [{"port": 2 * n} for n in range(1, ports + 1)]
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
    assert prerouting(found) == pod_pair(
        "fd00:20::1", "default/web", "fd00:231::2", POD_CIDR_6, port(80)
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


def test_each_plan_is_made_once() -> None:
    """With 50,000 Services, one takes seconds."""
    plans = Plans(DEFAULTS, Snapshot({}, node()))
    made = {key: plans.of(*key) for key in ((IPV4, False), (IPV4, True), (IPV6, False))}
    assert all(plans.of(*key) is made[key] for key in made)
    assert made == {key: plan(DEFAULTS, Snapshot({}, node()), *key) for key in made}
