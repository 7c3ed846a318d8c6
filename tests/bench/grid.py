"""Other shapes of the tree: what bits a chain and Services a leaf give on three axes.

`python3 -m tests.bench.grid` prints them for the shapes of `SHAPES`, whatever the program has.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from ipvs_node_agent.config.settings import DEFAULTS, Chains
from ipvs_node_agent.iptables.table import LEGACY, NFT
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.model.objects import Service, Snapshot
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import trace
from ipvs_node_agent.rules import dispatch
from ipvs_node_agent.rules.planner import plan
from tests.bench.bed import bare_change
from tests.bench.connections import restore_all, with_mark
from tests.bench.measures import Figures, say
from tests.bench.times import run
from tests.support.fleet import LAYOUTS, NODE, fleet
from tests.support.netns import namespaces
from tests.support.tables import add_mark_masq
from tests.support.topology import POD

# Bits a chain, Services a leaf.
SHAPES = [(2, leaf) for leaf in (8, 16, 32, 64)] + [(1, 16), (3, 16), (3, 32), (4, 16), (4, 32)]
_SAMPLE = 100


def grid(services: int, repetitions: int) -> list[Figures]:
    """Rules walked, and times of the bare commands, for each shape; the quickest of each counts."""
    return [_measured(bits, leaf, services, repetitions) for bits, leaf in SHAPES]


def _measured(bits: int, leaf: int, count: int, repetitions: int) -> Figures:
    say(f"grid: {bits} bits a chain, {leaf} Services a leaf")
    found: Figures = {"bits": bits, "leaf": leaf, "walked": {}}
    with _shape(bits):
        rulesets = {
            name: (services, _ruleset(services, leaf))
            for name in ("one dense pool", "random over 10/8")
            for services in [fleet(LAYOUTS[name], count)]
        }
    for name, (services, wanted) in rulesets.items():
        found["walked"][name] = _worst(wanted, services)
    wanted = rulesets["one dense pool"][1]
    found["chains"] = len(wanted.chains)
    found["rules"] = sum(map(len, wanted.chains.values()))
    for backend in (NFT, LEGACY):
        with namespaces("grid") as (node,):
            add_mark_masq(node, IPV4, backend)
            text = restore_input(Change({name: wanted.chains[name] for name in _two(wanted)}))
            command = (f"iptables-{backend}-restore", "-w", "5", "--noflush")
            found[backend] = {
                "restore_seconds": restore_all(node, IPV4, backend, wanted),
                "one_rule_ms": min(bare_change(node, backend, n) for n in range(repetitions)),
                "leaves_ms": min(run(node, text, *command) for _ in range(repetitions)),
            }
    return found


@contextmanager
def _shape(bits: int) -> Iterator[None]:
    with mock.patch.object(dispatch, "_STRIDE", bits):
        yield


def _ruleset(services: dict[str, Service], leaf: int) -> Ruleset:
    config = replace(DEFAULTS, chains=Chains(services_per_chain=leaf))
    return plan(config, Snapshot(services, NODE), IPV4).ruleset


def _two(wanted: Ruleset) -> list[str]:
    """The longest leaf of each tree, which one change writes."""
    chains = wanted.chains
    return [
        max((name for name in chains if name.startswith(tree)), key=lambda name: len(chains[name]))
        for tree in ("IPVS_PREROUTING-", "IPVS_OUTPUT-")
    ]


def _worst(wanted: Ruleset, services: dict[str, Service]) -> int:
    chains, worst = with_mark(wanted.chains), 0
    for service in random.Random(7).sample(sorted(services.values()), min(_SAMPLE, len(services))):
        for address in (service.load_balancer_ips[0], service.load_balancer_ips[0] + 1):
            packet = Packet(POD[4], str(address), "tcp", 80)
            worst = max(worst, trace(chains, "IPVS_PREROUTING", packet).walked)
    return worst


if __name__ == "__main__":
    json.dump(grid(int(sys.argv[1]), int(sys.argv[2])), sys.stdout, indent=1)
