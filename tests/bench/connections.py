"""The cost of a new connection: microseconds, and rules walked, whatever the addresses."""

from __future__ import annotations

import random
import subprocess
import time
from collections import ChainMap
from collections.abc import Mapping

from ipvs_node_agent.iptables.table import BACKENDS
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruleset import Found, Ruleset, difference
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import trace
from tests.bench.measures import NOBODY, POD_INTERFACE, POOL, Figures, Scale, ruleset, say
from tests.bench.wire import cost, pinned, wire
from tests.support.fleet import LAYOUTS, Layout, fleet
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq
from tests.support.topology import POD

# Beside one dense pool.
_SCATTERED = ("twenty pools", "random over 10/8", "twenty IPv6 pools", "random over an IPv6 /64")


def restore_all(node: Namespace, family: Family, backend: str, wanted: Ruleset) -> float:
    """Restores all of `wanted` by the bare command; the seconds that it takes."""
    took = 0.0
    for part in difference(Found(), wanted).parts():
        text = restore_input(part).encode()
        command = [f"{family.command}-{backend}-restore", "-w", "5", "--noflush"]
        with node.enter():
            began = time.monotonic()
            subprocess.run(command, input=text, check=True, timeout=120)
            took += time.monotonic() - began
    return took


def connections(scale: Scale) -> list[Figures]:
    """Microseconds for a new connection, with the agent's rules and with none, in turns.

    Of each the quickest round counts, since whatever else the machine does only makes it longer.
    """
    few, many = 1, scale.services
    sizes = [(POOL[IPV4], count, "split") for count in scale.split]
    sizes += [(LAYOUTS[name], many, f"split, {name}") for name in _SCATTERED]
    sizes += [(POOL[IPV6], few, "split"), (POOL[IPV6], many, "split")]
    sizes += [(POOL[IPV4], few, "by interface"), (POOL[IPV4], many, "by interface")]
    sizes += [(POOL[IPV4], count, "flat") for count in scale.flat]
    with pinned():
        return [_connection(scale, backend, *size) for backend in BACKENDS for size in sizes]


def _connection(scale: Scale, backend: str, where: Layout, count: int, layout: str) -> Figures:
    family = where.family
    say(f"connections: {backend}, {family}, {count} Services, {layout}")
    services = fleet(where, count)
    wanted = ruleset(services, family, layout)
    addresses = sorted(service.load_balancer_ips[0] for service in services.values())
    # An address of the pool that no Service has walks as far as one that has, and comes back.
    targets = {
        "last": str(addresses[-1]),
        "beside": str(addresses[0] - 1),
        "none": NOBODY[family.version],
    }
    source = POD[family.version]
    number = scale.connections // (10 if layout == "flat" and count >= 1000 else 1)
    times: dict[str, list[float]] = {name: [] for name in ("no rules", *targets)}
    with wire() as without, wire() as ruled:
        for each in (without, ruled):
            add_mark_masq(each.node, family, backend)
        restore_all(ruled.node, family, backend, wanted)
        for _ in range(scale.rounds):
            times["no rules"].append(cost(without, targets["last"], number))
            for name, target in targets.items():
                times[name].append(cost(ruled, target, number))
    return {
        "backend": backend,
        "family": family.name,
        "services": count,
        "layout": layout,
        "microseconds": {name: min(values) for name, values in times.items()},
        "walked": {
            name: trace(
                with_mark(wanted.chains),
                "IPVS_PREROUTING",
                Packet(source, target, interface=POD_INTERFACE),
            ).walked
            for name, target in targets.items()
        },
    }


# 2. Whatever the addresses


def with_mark(chains: Mapping[str, Rules]) -> Mapping[str, Rules]:
    """`chains` with Kubernetes' own one that they jump to, whose rule is not counted."""
    return ChainMap(dict(chains), {"KUBE-MARK-MASQ": ()})


def walks(count: int) -> list[Figures]:
    """How many rules the worst of many packets walks, for each kind of addresses."""
    found = []
    for name, layout in LAYOUTS.items():
        say(f"rules walked: {name}, {count} Services")
        services = fleet(layout, count)
        chains = ruleset(services, layout.family).chains
        walked = with_mark(chains)
        source = POD[layout.family.version]
        worst = 0
        for service in random.Random(name).sample(sorted(services.values()), min(1000, count)):
            for address in (service.load_balancer_ips[0], service.load_balancer_ips[0] + 1):
                packet = Packet(source, str(address), "tcp", service.ports[0].number)
                worst = max(worst, trace(walked, "IPVS_PREROUTING", packet).walked)
        rules = sum(map(len, chains.values()))
        found.append({"addresses": name, "worst": worst, "chains": len(chains), "rules": rules})
    return found
