"""What all measurements share. Each gives figures as plain data, and says what it does."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipvs_node_agent.config.settings import DEFAULTS, Chains
from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from ipvs_node_agent.model.objects import Service, Snapshot
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.planner import plan
from tests.support.fleet import LAYOUTS, NODE

POOL = {IPV4: LAYOUTS["one dense pool"], IPV6: LAYOUTS["one IPv6 pool"]}
NOBODY = {4: "9.9.9.9", 6: "2001:db8:9::9"}
FLAT = replace(DEFAULTS, chains=Chains(services_per_chain=1 << 30))
# The node's end of the link to the pod, and what matches it, as cali+ does.
POD_INTERFACE, POD_INTERFACES = "to-pod", ("to-p+",)
STREAM_RATE = 50
# So long kube-proxy's repairs are waited for: it looks at its own rules every thirty seconds, or in
# nftables mode at some of them.
REPAIR_LIMIT = 35.0

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    services: int
    split: Sequence[int]
    flat: Sequence[int]
    changes: int
    rival_changes: int
    repairs: int
    rival_repairs: bool
    burst: int
    stream_seconds: int
    many_changes: int
    idle_seconds: int
    prior_art: int
    connections: int
    # How many Services the tables of times are about, on each backend; and starts of more.
    parts: Sequence[int]
    # How often the table of a change's times is measured.
    passes: int
    starts: Sequence[tuple[str, int]]
    # With so many Services, so many times each kind of drift.
    drift: Sequence[tuple[int, int]]
    grid: Sequence[int]
    rounds: int
    # Seconds for what a change leaves to be done later: splitting chains, and a first look.
    pause: float


FULL = Scale(
    services=10_000,
    split=(1, 100, 1_000, 10_000, 50_000),
    flat=(100, 1_000, 10_000),
    changes=40,
    rival_changes=4,
    repairs=5,
    rival_repairs=True,
    burst=1_000,
    stream_seconds=15,
    many_changes=10_000,
    idle_seconds=120,
    prior_art=100,
    connections=10_000,
    parts=(100, 1_000, 10_000),
    passes=2,
    starts=(("nft", 10_000), ("legacy", 10_000), ("nft", 50_000)),
    drift=((100, 50), (1_000, 50), (10_000, 20)),
    grid=(10_000, 8),
    rounds=9,
    pause=3.0,
)
QUICK = Scale(
    services=300,
    split=(100, 300),
    flat=(100,),
    changes=5,
    rival_changes=2,
    repairs=1,
    rival_repairs=False,
    # More than the log tells one by one.
    burst=150,
    stream_seconds=1,
    many_changes=200,
    idle_seconds=5,
    prior_art=5,
    connections=1_000,
    parts=(100,),
    passes=1,
    starts=(("nft", 300),),
    drift=(),
    grid=(),
    rounds=1,
    pause=1.2,
)


def say(text: str) -> None:
    """Shows progress; the standard output is left to the figures."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def percentiles(values: Sequence[float]) -> Figures:
    """The values that half of `values`, and 99 %, do not exceed."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {f"p{share}": ordered[min(last, share * len(ordered) // 100)] for share in (50, 99)}


def ruleset(services: dict[str, Service], family: Family, layout: str = "split") -> Ruleset:
    """What is wanted for `services`."""
    interfaces = POD_INTERFACES if layout == "by interface" else ()
    seen = Snapshot(services, NODE, pod_interfaces=interfaces)
    return plan(FLAT if layout == "flat" else DEFAULTS, seen, family).ruleset
