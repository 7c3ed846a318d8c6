"""Chains that dispatch by prefix: short, the same whatever happened before, and never wrong."""

from __future__ import annotations

import ipaddress
import random
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.config.settings import DEFAULTS, Chains, Config
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Address, Family, parse_address
from ipvs_node_agent.model.objects import Port, Service, Snapshot
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat.chains import MAX_CHAIN_NAME, owner
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.packed import together
from ipvs_node_agent.nat.ruleset import Found, applied, difference
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.nat.trace import Walk, trace
from ipvs_node_agent.rules.destinations import Entry, destination
from ipvs_node_agent.rules.dispatch import Tree
from ipvs_node_agent.rules.planner import Basis, Planner, plan
from tests.support.examples import examples
from tests.support.fleet import LAYOUTS, NODE, fleet, service, snapshot

PODS, HOST = "IPVS_PREROUTING", "IPVS_OUTPUT"
POD = {4: "10.240.2.130", 6: "fd00:10:240:2::130"}
STRANGER = {4: "203.0.113.9", 6: "2001:db8:ffff::9"}
MARK = "KUBE-MARK-MASQ"
FLAT = replace(DEFAULTS, chains=Chains(services_per_chain=1 << 30))
MOST_RULES = 64

POOL = LAYOUTS["one dense pool"]
Chain = Mapping[str, Rules]


def chains(services: Mapping[str, Service], family: Family, config: Config = DEFAULTS) -> Chain:
    return plan(config, Snapshot(services, NODE), family).ruleset.chains


def target(rule: str) -> str:
    return rule.rpartition(" -j ")[2]


def holds_jumps(rules: Rules, among: Chain) -> bool:
    return bool(rules) and all(target(rule) in among for rule in rules)


def packets(address: Address, port: Port) -> Iterable[tuple[str, Packet]]:
    """From a pod, from a stranger and from the host, to one destination."""
    to = (str(address), port.protocol, port.number)
    yield PODS, Packet(POD[address.version], *to)
    yield PODS, Packet(STRANGER[address.version], *to)
    yield HOST, Packet(STRANGER[address.version], *to, local=True)
    yield HOST, Packet(STRANGER[address.version], *to)


def walks(found: Chain, address: Address, port: Port) -> list[Walk]:
    # Whom they jump to for the mark is Kubernetes' own.
    chains: Chain = ChainMap(dict(found), {MARK: ()})
    return [trace(chains, start, packet) for start, packet in packets(address, port)]


def fate(walk: Walk) -> tuple[bool, str | None]:
    """Whether the packet is marked, and its new destination, None where it keeps its own."""
    return any(target(rule) == MARK for _, rule in walk.matched), walk.sent_to


# 1. The layout


@pytest.mark.parametrize("count", [0, 1, 16])
def test_up_to_the_limit_the_two_chains_hold_every_rule(count: int) -> None:
    found = chains(fleet(POOL, count), IPV4)
    assert found.keys() == {PODS, HOST}
    assert found == chains(fleet(POOL, count), IPV4, FLAT)


def test_past_the_limit_they_hold_jumps_and_no_rule() -> None:
    found = chains(fleet(POOL, 17), IPV4)
    assert holds_jumps(found[PODS], found)
    assert holds_jumps(found[HOST], found)
    assert found[PODS][0] == "-d 172.20.0.0/28 -j IPVS_PREROUTING-ac140000/28"


def test_the_limit_is_the_configurations() -> None:
    config = replace(DEFAULTS, chains=Chains(services_per_chain=4))
    assert chains(fleet(POOL, 4), IPV4, config).keys() == {PODS, HOST}
    assert len(chains(fleet(POOL, 5), IPV4, config)) > 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_chain_holds_either_jumps_or_rules_and_few_of_them(name: str) -> None:
    family = LAYOUTS[name].family
    found = chains(fleet(LAYOUTS[name], 2000), family)
    for rules in found.values():
        assert rules
        if holds_jumps(rules, found):
            assert len(rules) <= 4
        else:
            assert not any(target(rule) in found for rule in rules)
            assert len({re.findall('"(.+)"', rule)[0] for rule in rules}) <= 16


def test_every_chain_but_the_two_is_jumped_to_once() -> None:
    found = chains(fleet(LAYOUTS["random over 10/8"], 2000), IPV4)
    jumped_to = [
        target(rule) for rules in found.values() for rule in rules if target(rule) in found
    ]
    assert len(jumped_to) == len(set(jumped_to))
    assert {*jumped_to, PODS, HOST} == found.keys()


# 2. What becomes of packets


@pytest.mark.once
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_packet_walks_more_than_64_rules_at_50000_services(name: str) -> None:
    """To a sample of all Services, and to the addresses beside them."""
    seen = snapshot(LAYOUTS[name], 50_000)
    found = plan(DEFAULTS, seen, LAYOUTS[name].family).ruleset.chains
    for made in random.Random(name).sample(sorted(seen.services.values()), 1000):
        (address,), (port,) = made.load_balancer_ips, made.ports
        beside = address + 1 if int(address) % 2 == 0 else address - 1
        pod, stranger, host, _ = walks(found, address, port)
        assert fate(pod) == fate(host) == (True, str(made.cluster_ips[0]))
        assert fate(stranger) == (False, None)
        for walk in (pod, stranger, host, *walks(found, beside, Port("udp", 53))):
            assert walk.walked <= MOST_RULES


def addresses(family: Family) -> st.SearchStrategy[Address]:
    """Near one another in every way that two addresses can be."""
    kind = ipaddress.IPv4Address if family is IPV4 else ipaddress.IPv6Address
    base = int(parse_address("172.20.0.0" if family is IPV4 else "2001:db8:19::"))
    near = st.integers(0, 300).map(lambda low: base + low)
    far = st.integers(0, family.bits - 9).map(lambda bit: base ^ 1 << bit)
    wide = st.integers(0, (1 << family.bits) - 1)
    return (near | far | wide).map(kind)


ports = st.builds(
    Port,
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.integers(1, 40) | st.integers(1, 65535),
)


@st.composite
def claims(draw: st.DrawFn, family: Family, most: int = 60) -> dict[str, Service]:
    """Services with up to three addresses and ports, some of them shared."""
    made = {}
    for number in range(draw(st.integers(0, most))):
        external = draw(st.lists(addresses(family), min_size=1, max_size=3, unique=True))
        one = service(number, external[0])
        made[one.key] = one._replace(
            load_balancer_ips=tuple(external),
            ports=tuple(draw(st.lists(ports, min_size=1, max_size=3, unique=True))),
        )
    return made


fleets = st.sampled_from(FAMILIES).flatmap(lambda f: st.tuples(st.just(f), claims(f)))
limits = st.integers(2, 16).map(
    lambda limit: replace(DEFAULTS, chains=Chains(services_per_chain=limit))
)


@examples(150)
@given(of=fleets, config=limits)
def test_each_destination_gets_what_the_flat_layout_gives_it(
    of: tuple[Family, dict[str, Service]], config: Config
) -> None:
    family, services = of
    split, flat = chains(services, family, config), chains(services, family, FLAT)
    for made in services.values():
        for address in made.load_balancer_ips:
            for port in (*made.ports, Port("tcp", 9999), Port("udp", 1)):
                for near in (address, address.__class__(int(address) ^ 1)):
                    ours, theirs = walks(split, near, port), walks(flat, near, port)
                    assert [fate(w) for w in ours] == [fate(w) for w in theirs]


@examples(100)
@given(of=fleets, config=limits)
def test_each_rule_of_the_flat_layout_stands_in_one_chain(
    of: tuple[Family, dict[str, Service]], config: Config
) -> None:
    family, services = of
    split, flat = chains(services, family, config), chains(services, family, FLAT)
    for top in (PODS, HOST):
        rules = [
            rule
            for name, rules in split.items()
            if name.startswith(top)
            for rule in rules
            if target(rule) not in split
        ]
        assert sorted(rules) == sorted(flat.get(top, ()))


@pytest.mark.parametrize(("family", "most"), [(IPV4, 73), (IPV6, 219)])
def test_addresses_chosen_to_be_hard_cost_what_the_documents_say(family: Family, most: int) -> None:
    """Three addresses beside every two bits of another one; a tree must not get deeper than 12."""
    base = int(parse_address("172.20.0.1" if family is IPV4 else "2001:db8:19::1"))
    kind = ipaddress.IPv4Address if family is IPV4 else ipaddress.IPv6Address
    hard = [kind(base ^ n << low) for low in range(0, family.bits, 2) for n in (1, 2, 3)]
    made = [service(number, address) for number, address in enumerate(hard)]
    found = chains({each.key: each for each in made}, family)
    assert depth(found, PODS) <= 12
    near = [kind(base ^ difference) for difference in range(64)]
    assert max(w.walked for a in near for w in walks(found, a, Port("tcp", 80))) == most


def depth(found: Chain, name: str) -> int:
    """How many chains are below `name`, one below the other."""
    below = [target(rule) for rule in found[name] if target(rule) in found]
    return max((1 + depth(found, chain) for chain in below), default=0)


# 3. Ports of shared addresses


def sharing(count: int) -> dict[str, Service]:
    address = parse_address("10.19.20.201")
    made = [service(number, address, 8000 + number) for number in range(count)]
    return {each.key: each for each in made}


def test_an_address_that_many_share_is_told_apart_by_port() -> None:
    found = chains(sharing(200), IPV4)
    jumps = [rule for rules in found.values() for rule in rules if target(rule) in found]
    assert any(" -p tcp -m tcp --dport 8000:8063 -j " in rule for rule in jumps)
    for made in sharing(200).values():
        walk = walks(found, parse_address("10.19.20.201"), made.ports[0])[0]
        assert fate(walk) == (True, str(made.cluster_ips[0]))
        assert walk.walked <= MOST_RULES


def test_protocols_are_told_apart_before_ports() -> None:
    services = sharing(40)
    for key in sorted(services)[::2]:
        services[key] = services[key]._replace(ports=(Port("udp", services[key].ports[0].number),))
    found = chains(services, IPV4)
    jumps = [rule.partition(" -j ")[0] for rules in found.values() for rule in rules]
    assert "-d 10.19.20.201/32 -p tcp -m tcp --dport 8000:8015" in jumps
    assert "-d 10.19.20.201/32 -p udp -m udp --dport 8000:8015" in jumps


def test_from_shared_to_one_owner_and_back() -> None:
    services = sharing(200)
    planner = Planner(Basis(DEFAULTS, NODE, Services()), IPV4)
    planner.fill(services.values())
    others = dict(list(fleet(POOL, 400).items())[300:])
    for made in others.values():
        planner.replace(None, made)
    first = services.pop(sorted(services)[0])
    for made in services.values():
        planner.replace(made, None)
    alone = {first.key: first, **others}
    for settling in (False, True):
        if settling:
            planner.settle()
        found = planner.plan().ruleset.chains
        walk = walks(found, first.load_balancer_ips[0], Port("udp", 1))[0]
        assert fate(walk) == (True, str(first.cluster_ips[0]))
    assert found == chains(alone, IPV4)
    for made in services.values():
        planner.replace(None, made)
    planner.settle()
    assert planner.plan().ruleset.chains == chains({**services, **alone}, IPV4)


# 4. Changes


Step = tuple[int, int, int]


@examples(100)
@given(
    of=st.sampled_from(FAMILIES).flatmap(
        lambda f: st.tuples(st.just(f), claims(f, 40), claims(f, 40), claims(f, 40))
    ),
    config=limits,
    chance=st.randoms(use_true_random=False),
)
def test_the_way_to_a_state_leaves_no_trace(
    of: tuple[Family, dict[str, Service], dict[str, Service], dict[str, Service]],
    config: Config,
    chance: random.Random,
) -> None:
    """Right at every step, and settled as if everything had been known from the beginning."""
    family, services, *others = of
    planner = Planner(Basis(config, NODE, Services()), family)
    planner.fill(services.values())
    for other in others:
        keys = sorted(services.keys() | other.keys())
        chance.shuffle(keys)
        for key in keys:
            planner.replace(services.get(key), other.get(key))
            if chance.random() < 0.1:
                planner.settle()
        services = other
        found, flat = planner.plan().ruleset.chains, chains(services, family, FLAT)
        for made in services.values():
            for port in made.ports:
                ours = walks(found, made.load_balancer_ips[0], port)
                theirs = walks(flat, made.load_balancer_ips[0], port)
                assert [fate(w) for w in ours] == [fate(w) for w in theirs]
    planner.settle()
    assert not planner.loose
    assert planner.plan().ruleset.chains == chains(services, family, config)


def tree_rules(found: Chain, top: str) -> list[str]:
    """All rules below the chain `top`, whatever chain they are in."""
    below = [rules for name, rules in found.items() if name == top or name.startswith(f"{top}-")]
    return sorted(rule for rules in below for rule in rules if target(rule) not in found)


def test_an_address_that_is_shared_and_not_again_and_again_has_its_rules_in_one_place() -> None:
    """Few addresses, far and near, of few Services, so that all of them meet all the time."""
    ends = ("0.1", "0.2", "0.3", "0.5", "0.6", "20.1")
    ips = [*(f"10.19.{end}" for end in ends), "172.30.0.1", "11.1.1.1"]
    config = replace(DEFAULTS, chains=Chains(services_per_chain=2))
    chance = random.Random("shared")
    for _ in range(60):
        planner, services = Planner(Basis(config, NODE, Services()), IPV4), dict[str, Service]()
        pool = chance.sample(ips, chance.choice((1, 2, len(ips), len(ips))))
        for _ in range(40):
            number = chance.randrange(5)
            ports = [Port(chance.choice(("tcp", "udp")), chance.choice((53, 80, 443, 8080)))]
            ports.append(Port("tcp", chance.randrange(1, 4)))
            count = min(len(pool), chance.choice((1, 2, 3)))
            wished = tuple(map(parse_address, chance.sample(pool, count)))
            new = service(number, wished[0])._replace(
                load_balancer_ips=wished, ports=tuple(dict.fromkeys(ports))
            )
            planner.replace(services.get(new.key), new)
            services[new.key] = new
            found, flat = planner.plan().ruleset.chains, chains(services, IPV4, FLAT)
            for top in (PODS, HOST):
                assert tree_rules(found, top) == sorted(flat[top])
            if chance.random() < 0.3:
                planner.settle()
                assert planner.plan().ruleset.chains == chains(services, IPV4, config)


def test_runs_of_ports_come_and_go_without_a_trace() -> None:
    """Few Services with runs of ports that grow, shrink and meet, at two addresses."""
    config = replace(DEFAULTS, chains=Chains(services_per_chain=2))
    ips = tuple(map(parse_address, ("10.19.0.1", "10.19.0.2")))
    chance = random.Random("runs")
    for _ in range(15):
        planner, services = Planner(Basis(config, NODE, Services()), IPV4), dict[str, Service]()
        for _ in range(15):
            first = chance.randrange(1, 40)
            run = range(first, min(41, first + chance.choice((1, 2, 5, 20))))
            ports = {Port(chance.choice(("tcp", "udp")), number) for number in run}
            new = service(chance.randrange(3), ips[0])._replace(
                load_balancer_ips=ips[: chance.randrange(3)], ports=tuple(sorted(ports))
            )
            planner.replace(services.get(new.key), new)
            services[new.key] = new
            found, flat = planner.plan().ruleset.chains, chains(services, IPV4, FLAT)
            for port in (Port(kind, number) for kind in ("tcp", "udp") for number in range(1, 42)):
                ours, theirs = walks(found, ips[0], port), walks(flat, ips[0], port)
                assert [fate(w) for w in ours] == [fate(w) for w in theirs]
            if chance.random() < 0.5:
                planner.settle()
                settled = planner.plan().ruleset.chains
                assert settled == chains(services, IPV4, config)
                assert max(map(len, settled.values())) <= 4


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_change_writes_at_most_four_chains(name: str) -> None:
    """Made, moved, changed and deleted; in a family and with all that was there before."""
    layout = LAYOUTS[name]
    services = fleet(layout, 2000)
    spare = [made for key, made in services.items() if int(key.rpartition("-")[2]) % 10 == 0]
    for made in spare:
        del services[made.key]
    planner = Planner(Basis(DEFAULTS, NODE, Services()), layout.family)
    planner.fill(services.values())
    found = applied(Found(), planner.plan().ruleset)
    chance = random.Random(name)
    for new in spare:
        old = services.pop(chance.choice(sorted(services)))
        moved = old._replace(load_balancer_ips=new.load_balancer_ips, ports=new.ports)
        other = moved._replace(cluster_ips=(moved.cluster_ips[0] + 60_000,))
        for before, after in ((old, moved), (moved, other), (other, None), (None, old)):
            planner.replace(before, after)
            wanted = planner.plan().ruleset
            change = difference(found, wanted)
            assert 0 < len(change.written) <= 4
            assert not change.hooked
            assert not change.unhooked
            found = applied(found, wanted)
            if chance.random() < 0.2:
                planner.settle()
                found = applied(found, planner.plan().ruleset)
        services[old.key] = old


def test_a_change_elsewhere_renames_and_writes_nothing() -> None:
    services = fleet(LAYOUTS["twenty pools"], 1000)
    before = chains(services, IPV4)
    made = service(5000, parse_address("11.1.1.1"))
    after = chains({**services, made.key: made}, IPV4)
    changed = {name for name, rules in after.items() if before.get(name) != rules}
    assert len(changed) <= 8
    assert len(before.keys() - after.keys()) <= 4


def test_a_service_that_has_no_external_ip_leaves_the_tree_alone() -> None:
    planner = Planner(Basis(DEFAULTS, NODE, Services()), IPV4)
    planner.fill(fleet(POOL, 100).values())
    before = planner.plan().ruleset.chains
    inside = service(500, parse_address("172.30.0.1"))._replace(load_balancer_ips=())
    planner.replace(None, inside)
    planner.replace(inside, None)
    assert not planner.loose
    assert planner.plan().ruleset.chains == before


def test_an_empty_fleet_leaves_the_two_chains_empty() -> None:
    planner = Planner(Basis(DEFAULTS, NODE, Services()), IPV4)
    services = fleet(POOL, 100)
    planner.fill(services.values())
    for made in services.values():
        planner.replace(made, None)
    planner.settle()
    assert planner.plan().ruleset.chains == {PODS: (), HOST: ()}


# 5. Names


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("base", ["IPVS_PREROUTING", "A" * MAX_CHAIN_NAME])
def test_names_fit_and_are_known_as_the_agents(name: str, base: str) -> None:
    config = replace(DEFAULTS, chains=Chains(prerouting=base))
    found = chains(fleet(LAYOUTS[name], 1000), LAYOUTS[name].family, config)
    owns = owner(frozenset({base, HOST}))
    for chain in found:
        assert len(chain) <= MAX_CHAIN_NAME
        assert re.fullmatch(r"[A-Za-z0-9_/-]+", chain)
        assert owns(chain)


def test_a_name_says_its_prefix() -> None:
    found = chains(fleet(POOL, 1000), IPV4)
    for rules in found.values():
        for rule in rules:
            if target(rule) in found:
                network = ipaddress.ip_network(rule.split(" ")[1])
                number, length = int(network.network_address), network.prefixlen
                assert target(rule).endswith(f"-{number:08x}/{length}")


def test_prefixes_whose_digests_are_equal_have_different_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def digest(data: bytes, digest_size: int) -> object:
        class Poor:
            @staticmethod
            def digest() -> bytes:
                # Salts still count, or no name would ever be free.
                return bytes([int(data.decode().strip("()").split(",")[2])] * digest_size)

        return Poor()

    monkeypatch.setattr("ipvs_node_agent.rules.dispatch.hashlib.blake2b", digest)
    layout = LAYOUTS["random over an IPv6 /64"]
    services = fleet(layout, 500)
    found = chains(services, IPV6)
    for made in services.values():
        walk = walks(found, made.load_balancer_ips[0], made.ports[0])[0]
        assert fate(walk) == (True, str(made.cluster_ips[0]))


# 6. Weights


def test_a_destination_with_many_rules_counts_for_more_than_one() -> None:
    plain = Entry(together(["mark", "dnat"]), together(["mark", "dnat"]), "a/b")
    assert plain.length == 1
    assert plain._replace(pods=together(["dnat"])).length == 1
    assert plain._replace(pods=together(["rule"] * 8)).length == 4
    tree = Tree(IPV4, (PODS, HOST), 16)
    heavy = plain._replace(pods=together(["rule"] * 100))
    tree.fill({destination(parse_address(f"10.0.0.{n}"), None): heavy for n in range(1, 9)})
    assert all(len(rules) <= 100 for rules in tree.chains(flat=False).values())
