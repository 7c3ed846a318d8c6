"""Split chains in real kernels: the agent's process, both backends, both families."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family, parse_address
from ipvs_node_agent.model.objects import Port, Service, Snapshot
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import chains_of
from ipvs_node_agent.rules.planner import plan
from tests.kernel.conftest import Bed
from tests.support.fleet import LAYOUTS, NODE, fleet, raw, service
from tests.support.netns import Namespace
from tests.support.tables import add_foreign_rules, add_mark_masq, foreign, ours, restore, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

LAYOUT = {4: LAYOUTS["twenty pools"], 6: LAYOUTS["twenty IPv6 pools"]}
COUNT = 300

Chains = Mapping[str, Rules]


@pytest.fixture
def services(bed: Bed) -> dict[str, Service]:
    """An agent at work in a cluster with hundreds of Services, half of them IPv6."""
    for family in FAMILIES:
        add_foreign_rules(bed.namespace, family, bed.backend)
    made: dict[str, Service] = {}
    for family in FAMILIES:
        for key, each in fleet(LAYOUT[family.version], COUNT).items():
            named = key.replace("service", family.name.lower())
            made[named] = each._replace(key=named)
            bed.api.put(raw(made[named]))
    bed.agent.start()
    return made


def our_chains(namespace: Namespace, family: Family, backend: str) -> Chains:
    """The agent's chains, as the kernel has them."""
    found = chains_of(ours(saved(namespace, family, backend)))
    return {n: tuple(rules) for n, rules in found.items() if n not in ("PREROUTING", "OUTPUT")}


def wait_for(bed: Bed, services: dict[str, Service]) -> None:
    """Waits until the kernel holds exactly what is wanted, in both families."""
    for family in FAMILIES:
        wanted = plan(DEFAULTS, Snapshot(services, NODE), family).ruleset.chains

        def there(family: Family = family, wanted: Chains = wanted) -> bool:
            return our_chains(bed.namespace, family, bed.backend) == wanted

        eventually(there, lambda: bed.agent.log[-2000:], timeout=20)


def test_a_tree_is_made_and_found_again_and_cleaned_up(
    bed: Bed, services: dict[str, Service]
) -> None:
    before = {f: foreign(saved(bed.namespace, f, bed.backend)) for f in FAMILIES}
    wait_for(bed, services)
    bed.agent.stop()
    bed.agent.start()
    assert bed.agent.log.count(": wrote ") == len(FAMILIES)
    assert bed.agent.call("diff").returncode == 0
    bed.agent.stop()
    assert bed.agent.call("cleanup").returncode == 0
    for family in FAMILIES:
        lines = saved(bed.namespace, family, bed.backend)
        assert ours(lines) == []
        assert foreign(lines) == before[family]


def test_a_change_writes_the_chains_that_it_touches(bed: Bed, services: dict[str, Service]) -> None:
    wait_for(bed, services)
    bed.agent.stop()
    bed.agent.options = ["--log-level", "debug"]
    bed.agent.start()
    before = len(re.findall(r"IPv.: wrote ", bed.agent.log))
    for key in sorted(services)[::60]:
        old = services[key]
        services[key] = old._replace(cluster_ips=(old.cluster_ips[0] + 60_000,))
        bed.api.put(raw(services[key]))
        bed.agent.said(f"{key}: ")
    wait_for(bed, services)
    written = re.findall(r"IPv.: wrote (\d+) chains", bed.agent.log)
    assert written[before:] == ["2"] * len(sorted(services)[::60])


def test_from_few_to_many_and_back(bed: Bed, services: dict[str, Service]) -> None:
    keys = sorted(services)
    for key in keys[5:]:
        bed.api.delete("Service", *key.split("/"))
    few = {key: services[key] for key in keys[:5]}
    wait_for(bed, few)
    for key in keys[5:]:
        bed.api.put(raw(services[key]))
    wait_for(bed, services)


def test_addresses_chosen_to_be_hard_are_taken_by_the_kernel(
    family: Family, backend: str, namespace: Namespace
) -> None:
    """Three addresses beside every two bits of another one: as deep as a tree can become."""
    add_mark_masq(namespace, family, backend)
    base = int(parse_address("172.20.0.1" if family is IPV4 else "2001:db8:19::1"))
    kind = ipaddress.IPv4Address if family is IPV4 else ipaddress.IPv6Address
    hard = [kind(base ^ other << low) for low in range(0, family.bits, 2) for other in (1, 2, 3)]
    shared = [
        service(1000 + index, kind(base))._replace(ports=(Port(protocol, 1 + index * 500),))
        for index in range(131)
        for protocol in [("tcp", "udp", "sctp")[index % 3]]
    ]
    made = [*(service(number, address) for number, address in enumerate(hard)), *shared]
    ruleset = plan(DEFAULTS, Snapshot({s.key: s for s in made}, NODE), family).ruleset
    restore(namespace, family, backend, restore_input(difference(Found(), ruleset)))
    assert our_chains(namespace, family, backend) == ruleset.chains
