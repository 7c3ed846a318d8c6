"""The measurements: each gives figures as plain data, and says on the way what it does."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ipvs_node_agent.config.settings import DEFAULTS, Chains
from ipvs_node_agent.iptables.table import BACKENDS, NFT
from ipvs_node_agent.model.addresses import IPV4, IPV6, Address, Family
from ipvs_node_agent.model.objects import Service, Snapshot
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruleset import Found, Rules, Ruleset, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.nat.trace import trace
from ipvs_node_agent.rules.planner import plan
from tests.bench.bed import BenchBed, Commits, bench_bed, changes, latencies, writes
from tests.bench.wire import cost, pinned, wire
from tests.support.fleet import LAYOUTS, NODE, fleet
from tests.support.tables import add_mark_masq
from tests.support.topology import POD
from tests.support.waiting import eventually

POOL = {IPV4: LAYOUTS["one dense pool"], IPV6: LAYOUTS["one IPv6 pool"]}
NOBODY = {4: "9.9.9.9", 6: "2001:db8:9::9"}
FLAT = replace(DEFAULTS, chains=Chains(services_per_chain=1 << 30))
# The node's end of the link to the pod, and what matches it, as cali+ does.
POD_INTERFACE, POD_INTERFACES = "to-pod", ("to-p+",)
STREAM_RATE = 50

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    services: int
    split: Sequence[int]
    flat: Sequence[int]
    changes: int
    burst: int
    stream_seconds: int
    many_changes: int
    idle_seconds: int
    prior_art: int
    connections: int
    rounds: int
    # Seconds for what a change leaves to be done later: splitting chains, and a first look.
    pause: float


FULL = Scale(
    services=10_000,
    split=(1, 100, 1_000, 10_000, 50_000),
    flat=(100, 1_000, 10_000),
    changes=60,
    burst=1_000,
    stream_seconds=60,
    many_changes=10_000,
    idle_seconds=10,
    prior_art=1_000,
    connections=10_000,
    rounds=15,
    pause=3.0,
)
QUICK = Scale(
    services=300,
    split=(100, 300),
    flat=(100,),
    changes=5,
    burst=100,
    stream_seconds=1,
    many_changes=200,
    idle_seconds=1,
    prior_art=5,
    connections=1_000,
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


# 1. The cost of a new connection


def connections(scale: Scale) -> list[Figures]:
    """Microseconds for a new connection, with the agent's rules and with none, in turns.

    Of each the quickest round counts, since whatever else the machine does only makes it longer.
    """
    sizes = [(IPV4, count, "split") for count in scale.split]
    sizes += [(IPV6, 1, "split"), (IPV6, scale.services, "split")]
    sizes += [(IPV4, 1, "by interface"), (IPV4, scale.services, "by interface")]
    sizes += [(IPV4, count, "flat") for count in scale.flat]
    with pinned():
        return [_connection(scale, backend, *size) for backend in BACKENDS for size in sizes]


def _connection(scale: Scale, backend: str, family: Family, count: int, layout: str) -> Figures:
    say(f"connections: {backend}, {family}, {count} Services, {layout}")
    services = fleet(POOL[family], count)
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
        for part in difference(Found(), wanted).parts():
            with ruled.node.enter():
                subprocess.run(
                    [f"{family.command}-{backend}-restore", "-w", "5", "--noflush"],
                    input=restore_input(part).encode(),
                    check=True,
                    timeout=120,
                )
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


# 3. The agent at work


def start(scale: Scale, backend: str) -> Figures:
    """Seconds and memory of a cold start, and of a restart over existing rules."""
    say(f"start: {backend}, {scale.services} Services")
    with bench_bed(backend, fleet(POOL[IPV4], scale.services)) as bed:
        return _start(bed)


def _start(bed: BenchBed) -> Figures:
    cold = bed.start()
    (wrote, *_) = writes(bed.news())
    peak = bed.memory("VmHWM")
    bed.agent.stop()
    return {
        "backend": bed.backend,
        "cold_seconds": cold,
        "restore_seconds": wrote.milliseconds / 1000,
        "peak_mib": peak,
        "restart_seconds": bed.start(),
        "restart_writes": len(writes(bed.news())),
    }


def agent(scale: Scale, backend: str) -> Figures:
    """Everything about one agent with many Services."""
    found: Figures = {"backend": backend, "services": scale.services}
    with bench_bed(backend, fleet(POOL[IPV4], scale.services)) as bed:
        say(f"agent: {backend}, {scale.services} Services: start")
        found["start"] = _start(bed)
        say(f"agent: {backend}: idle")
        found["idle"] = _idle(bed, scale)
        say(f"agent: {backend}: {scale.changes} single changes")
        found["single"] = _single_changes(bed, scale.changes)
        say(f"agent: {backend}: a burst of {scale.burst}")
        found["burst"] = _burst(bed, scale)
        say(f"agent: {backend}: a stream for {scale.stream_seconds} s")
        found["stream"] = _stream(bed, scale)
        say(f"agent: {backend}: {scale.many_changes} changes")
        found["growth"] = _growth(bed, scale)
    return found


def latency(backend: str, count: int) -> Figures:
    """What one change takes with so many Services."""
    say(f"one change: {backend}, {count} Services")
    with bench_bed(backend, fleet(POOL[IPV4], count)) as bed:
        bed.start()
        single = _single_changes(bed, 10)
    return {"backend": backend, "services": count, "single": single}


def _idle(bed: BenchBed, scale: Scale) -> Figures:
    # A large write is looked at once, with the next check.
    time.sleep(scale.pause)
    before = bed.cpu_seconds()
    time.sleep(scale.idle_seconds)
    return {"percent": (bed.cpu_seconds() - before) / scale.idle_seconds * 100}


def _spare(services: dict[str, Service]) -> Iterator[Address]:
    """Addresses in the pool that are free."""
    address = max(service.load_balancer_ips[0] for service in services.values())
    while True:
        address += 1
        yield address


_KINDS = ("another ClusterIP", "moved", "deleted", "made again")


def _single_changes(bed: BenchBed, count: int) -> Figures:
    """Changes one by one, of every kind: a ClusterIP, an external IP, deleted, made again."""
    chance, spare = random.Random(count), _spare(bed.services)
    commits = Commits(bed.namespace) if bed.backend == NFT else None
    ours: list[float] = []
    bare: list[float] = []
    seen: list[float] = []
    chains: list[int] = []
    deleted: Service | None = None
    bed.news()
    for number in range(count):
        # A change right behind another one, or behind the splitting of a chain, waits for it.
        time.sleep(0.1)
        bare.append(bed.bare_change(number))
        time.sleep(0.1)
        kind = _KINDS[number % len(_KINDS)]
        new = bed.services[chance.choice(sorted(bed.services))]
        if kind == "made again" and deleted is not None:
            new = deleted
        elif kind == "another ClusterIP":
            new = new._replace(cluster_ips=(new.cluster_ips[0] + 60_000,))
        elif kind == "moved":
            new = new._replace(load_balancer_ips=(next(spare),))
        began = time.monotonic()
        if kind == "deleted":
            deleted = new
            bed.delete(new)
        else:
            bed.put(new)
        lines = _lines_until_written(bed, new.key)
        ours.append(latencies(lines)[new.key])
        chains.append(max(write.chains for write in writes(lines)))
        if commits is not None:
            seen.append((commits.after(began) - began) * 1000)
    return {
        "agent_ms": percentiles(ours),
        "bare_ms": percentiles(bare),
        "put_to_commit_ms": percentiles(seen) if seen else None,
        "most_chains": max(chains),
    }


def _lines_until_written(bed: BenchBed, key: str) -> list[str]:
    """The lines that the agent says until it has said that `key` is in the kernel."""
    lines: list[str] = []

    def said() -> bool:
        lines.extend(bed.news())
        return key in latencies(lines)

    eventually(said, f"{key} in the kernel")
    return lines


def _put_changed(bed: BenchBed, count: int, chance: random.Random, seconds: float = 0) -> None:
    """Gives `count` Services other ClusterIPs, spread over so many seconds."""
    keys = chance.sample(sorted(bed.services), count)
    began = time.monotonic()
    for number, key in enumerate(keys, 1):
        old = bed.services[key]
        shift = chance.choice((1, -1)) * 7 if int(old.cluster_ips[0]) % 2 else 8
        bed.put(old._replace(cluster_ips=(old.cluster_ips[0] + shift,)))
        time.sleep(max(0.0, began + number / count * seconds - time.monotonic()))


def _in_sync(bed: BenchBed) -> bool:
    wanted = ruleset(bed.services, IPV4)
    text = bed.namespace.run(f"iptables-{bed.backend}-save", "-t", "nat")
    rules = {f"-A {name} {rule}" for name, rules in wanted.chains.items() for rule in rules}
    return rules <= set(text.split("\n"))


def _burst(bed: BenchBed, scale: Scale) -> Figures:
    time.sleep(scale.pause)
    bed.news()
    _put_changed(bed, scale.burst, random.Random(1), seconds=1)
    last = time.monotonic()
    lines: list[str] = []

    def all_there() -> bool:
        lines.extend(bed.news())
        return changes(lines) >= scale.burst

    eventually(all_there, "the whole burst in the kernel", timeout=60)
    return {
        "changes": scale.burst,
        "in_kernel_after_last_seconds": time.monotonic() - last,
        "restores": len(writes(lines)),
        "in_sync": _in_sync(bed),
    }


def _stream(bed: BenchBed, scale: Scale) -> Figures:
    time.sleep(scale.pause)
    bed.news()
    chance = random.Random(2)
    lines: list[str] = []
    for _ in range(scale.stream_seconds):
        _put_changed(bed, STREAM_RATE, chance, seconds=1)
        lines += bed.news()
    time.sleep(scale.pause)
    lines += bed.news()
    found = [ms for line in lines for ms in latencies([line]).values()]
    return {
        "seconds": scale.stream_seconds,
        "ms": percentiles(found),
        "restores": len(writes(lines)),
        "in_sync": _in_sync(bed),
    }


def _growth(bed: BenchBed, scale: Scale) -> Figures:
    time.sleep(scale.pause)
    chance = random.Random(3)
    before = bed.memory("VmRSS")
    some = len(bed.services) // 10
    for _ in range(0, scale.many_changes, some):
        _put_changed(bed, some, chance)
        time.sleep(0.2)
    eventually(lambda: _in_sync(bed), "all changes in the kernel", timeout=60)
    time.sleep(scale.pause)
    return {"changes": scale.many_changes, "before_mib": before, "after_mib": bed.memory("VmRSS")}


# 4. The prior art's way


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


# 5. Processes


def processes(scale: Scale, backend: str) -> Figures:
    """Which commands of iptables one change starts, and how long its input is.

    In the place of the commands stand scripts that write down that they are called.
    """
    say(f"processes: {backend}, {scale.services} Services")
    services = fleet(POOL[IPV4], scale.services)
    with bench_bed(backend, services) as bed, _wrapped(backend) as directory:
        bed.start()
        # A legacy table is looked at every two seconds; that is no part of a change.
        time.sleep(2 * scale.pause)
        (directory / "calls").write_text("")
        bed.news()
        _put_changed(bed, 1, random.Random(4))
        eventually(lambda: latencies(bed.news()), "the change in the kernel")
        calls = (directory / "calls").read_text().split()
        return {
            "backend": backend,
            "for_a_change": [c.rpartition("-")[2] for c in calls if c.endswith("restore")],
            "lines_of_a_change": (directory / "input").read_text().count("\n"),
        }


@contextmanager
def _wrapped(backend: str) -> Iterator[Path]:
    """A directory, first in the search path, with the scripts and what they write down."""
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as directory:
        for verb, keep in (("save", ""), ("restore", f"tee {directory}/input | ")):
            for command in ("iptables", "ip6tables"):
                name = f"{command}-{backend}-{verb}"
                script = Path(directory, name)
                lines = ("#!/bin/sh", f"echo {name} >>{directory}/calls")
                script.write_text("\n".join((*lines, f'{keep}{shutil.which(name)} "$@"\n')))
                script.chmod(0o755)
        os.environ["PATH"] = f"{directory}:{before}"
        try:
            yield Path(directory)
        finally:
            os.environ["PATH"] = before
