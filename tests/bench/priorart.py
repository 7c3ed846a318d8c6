"""The prior art's way: a process for each check and each rule."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ipvs_node_agent.iptables.table import BACKENDS
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.model.objects import Service
from tests.bench.bed import bench_bed, writes
from tests.bench.measures import POOL, Figures, Scale, ruleset, say
from tests.support.fleet import fleet


def prior_arts(scale: Scale) -> list[Figures]:
    """Seconds to program Services one rule and one check at a time, and by the agent.

    kakao/network-node-manager looks for each chain and each jump, and then for each rule, with a
    process of its own, before it adds what is missing with another one. As it takes minutes, both
    backends do so at once, each on a core of its own.
    """
    with ThreadPoolExecutor(len(BACKENDS)) as threads:
        return list(threads.map(partial(_prior_art, scale.prior_art), BACKENDS))


def _prior_art(count: int, backend: str) -> Figures:
    say(f"prior art: {backend}, {count} Services, one process for each check and each rule")
    services = fleet(POOL[IPV4], count)
    with bench_bed(backend, services) as bed:
        bed.start(timeout=120)
        ours = writes(bed.news())[0].milliseconds
    with bench_bed(backend, {}) as bed, bed.namespace.enter():
        started = time.monotonic()
        processes = 0
        for arguments in _arguments(services):
            processes += 1
            subprocess.run(
                [f"iptables-{backend}", "-w", "-t", "nat", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        theirs = time.monotonic() - started
    return {
        "backend": backend,
        "processes": processes,
        "theirs_seconds": theirs,
        "ours_ms": ours,
        "ratio": theirs * 1000 / ours,
    }


_CHECKS = [
    *(["-N", chain] for chain in ("IPVS_PREROUTING", "IPVS_OUTPUT")),
    *(["-S", chain, "1"] for chain in ("IPVS_PREROUTING", "IPVS_OUTPUT", "KUBE-MARK-MASQ") * 2),
    *(
        [action, built_in, "-j", f"IPVS_{built_in}"]
        for built_in in ("PREROUTING", "OUTPUT")
        for action in ("-C", "-C")
    ),
]


def _arguments(services: dict[str, Service]) -> Iterator[list[str]]:
    """Those of each process, Service by Service: for checks, and for each rule to be added."""
    for key, service in services.items():
        yield from _CHECKS
        for name, rules in ruleset({key: service}, IPV4).chains.items():
            for rule in rules:
                words = rule.replace('"', "").split(" ")
                yield from (["-C", name, *words], ["-A", name, *words])
