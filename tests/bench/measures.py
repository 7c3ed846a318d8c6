"""The measurements: each gives figures as plain data, and says on the way what it does."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from ipvs_node_agent.nat.ruleset import Found, Ruleset, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.rules.planner import plan
from tests.bench.bed import BenchBed, Commits, bench_bed, changes, latencies, writes
from tests.bench.wire import POD, Wire, pinned, wire
from tests.support.fleet import LAYOUTS, NODE, fleet
from tests.support.tables import add_mark_masq
from tests.support.tracer import Packet, trace
from tests.support.waiting import eventually

POOL = {IPV4: LAYOUTS["one dense pool"], IPV6: LAYOUTS["one IPv6 pool"]}
NOBODY = {4: "9.9.9.9", 6: "2001:db8:9::9"}
FLAT = replace(DEFAULTS, chains=Chains(services_per_chain=1 << 30))

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


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ruleset(services: dict[str, Service], family: Family, flat: bool = False) -> Ruleset:
    """What is wanted for `services`."""
    return plan(FLAT if flat else DEFAULTS, Snapshot(services, NODE), family).ruleset


# 1. The cost of a new connection


def connections(scale: Scale) -> list[Figures]:
    """Microseconds for a new connection, with the agent's rules and with none, in turns.

    Of each the quickest round counts, since whatever else the machine does only makes it longer.
    """
    found: list[Figures] = []
    sizes = [(IPV4, count, False) for count in scale.split]
    sizes += [(IPV6, 1, False), (IPV6, scale.services, False)]
    sizes += [(IPV4, count, True) for count in scale.flat]
    with pinned():
        for backend in BACKENDS:
            for family, count, flat in sizes:
                found.append(_connection(scale, backend, family, count, flat))
    return found


def _connection(scale: Scale, backend: str, family: Family, count: int, flat: bool) -> Figures:
    say(f"connections: {backend}, {family}, {count} Services, {'flat' if flat else 'split'}")
    services = fleet(POOL[family], count)
    wanted = ruleset(services, family, flat)
    addresses = sorted(service.load_balancer_ips[0] for service in services.values())
    # An address of the pool that no Service has walks as far as one that has, and comes back.
    targets = {
        "last": str(addresses[-1]),
        "none": NOBODY[family.version],
        "beside": str(addresses[0] - 1),
    }
    source = POD[family.version]
    walked = {
        name: trace(wanted.chains, "IPVS_PREROUTING", Packet(source, target)).walked
        for name, target in targets.items()
    }
    number = scale.connections // 10 if flat and count >= 1000 else scale.connections
    times: dict[str, list[float]] = {"no rules": [], **{name: [] for name in targets}}
    with wire() as without, wire() as ruled:
        for each in (without, ruled):
            add_mark_masq(each.node, family, backend)
        _load(ruled, backend, family, wanted)
        for _ in range(scale.rounds):
            times["no rules"].append(without.cost(targets["last"], number))
            for name, target in targets.items():
                times[name].append(ruled.cost(target, number))
    figures = {name: min(values) for name, values in times.items()}
    return {
        "backend": backend,
        "family": family.name,
        "services": count,
        "layout": "flat" if flat else "split",
        "microseconds": figures,
        "walked": walked,
    }


def _load(on: Wire, backend: str, family: Family, wanted: Ruleset) -> None:
    for part in difference(Found(), wanted).parts():
        with on.node.enter():
            subprocess.run(
                [f"{family.command}-{backend}-restore", "-w", "5", "--noflush"],
                input=restore_input(part).encode(),
                check=True,
                timeout=120,
            )


# 2. Whatever the addresses


def walks(count: int) -> list[Figures]:
    """How many rules the worst of many packets walks, for each kind of addresses."""
    found = []
    for name, layout in LAYOUTS.items():
        say(f"rules walked: {name}, {count} Services")
        services = fleet(layout, count)
        chains = ruleset(services, layout.family).chains
        sample = random.Random(name).sample(sorted(services.values()), min(1000, count))
        source = POD[layout.family.version]
        worst = 0
        for service in sample:
            for address in (service.load_balancer_ips[0], service.load_balancer_ips[0] + 1):
                packet = Packet(source, str(address), "tcp", service.ports[0].number)
                walk = trace(chains, "IPVS_PREROUTING", packet)
                worst = max(worst, walk.walked)
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
    wrote = writes(bed.news())
    memory = bed.memory()
    bed.agent.stop()
    warm = bed.start()
    return {
        "backend": bed.backend,
        "cold_seconds": cold,
        "restart_seconds": warm,
        "restore_ms": wrote[0].milliseconds,
        "chains": wrote[0].chains,
        "rules": wrote[0].rules,
        "peak_rss_kib": memory["peak"],
        "restart_writes": len(writes(bed.news())),
    }


def agent(scale: Scale, backend: str) -> Figures:
    """Everything about one agent with many Services."""
    services = fleet(POOL[IPV4], scale.services)
    with bench_bed(backend, services) as bed:
        say(f"agent: {backend}, {scale.services} Services: start")
        started = _start(bed)
        say(f"agent: {backend}: idle")
        idle = _idle(bed, scale)
        say(f"agent: {backend}: {scale.changes} single changes")
        single = _single_changes(bed, services, scale.changes)
        say(f"agent: {backend}: a burst of {scale.burst}")
        burst = _burst(bed, services, scale)
        say(f"agent: {backend}: a stream for {scale.stream_seconds} s")
        stream = _stream(bed, services, scale)
        say(f"agent: {backend}: {scale.many_changes} changes")
        growth = _growth(bed, services, scale)
        return {
            "backend": backend,
            "services": scale.services,
            "start": started,
            "idle": idle,
            "single": single,
            "burst": burst,
            "stream": stream,
            "growth": growth,
        }


def latency(backend: str, count: int, changes: int) -> Figures:
    """What one change takes with so many Services."""
    say(f"one change: {backend}, {count} Services")
    services = fleet(POOL[IPV4], count)
    with bench_bed(backend, services) as bed:
        bed.start()
        bed.news()
        return {"services": count, **_single_changes(bed, services, changes)}


def _idle(bed: BenchBed, scale: Scale) -> Figures:
    seconds = scale.idle_seconds
    # A large write is looked at once, with the next check.
    time.sleep(scale.pause)
    before = bed.cpu_seconds()
    time.sleep(seconds)
    return {"percent": (bed.cpu_seconds() - before) / seconds * 100, "seconds": seconds}


def _spare(services: dict[str, Service]) -> Iterator[Address]:
    """Addresses in the pool that are free."""
    address = max(service.load_balancer_ips[0] for service in services.values())
    while True:
        address += 1
        yield address


_KINDS = ("another ClusterIP", "moved", "deleted", "made again")


def _single_changes(bed: BenchBed, services: dict[str, Service], count: int) -> Figures:
    """Changes one by one, of every kind: a ClusterIP, an external IP, deleted, made again."""
    chance, spare = random.Random(count), _spare(services)
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
        bare.append(bed.bare_change(IPV4, number) * 1000)
        time.sleep(0.1)
        kind = _KINDS[number % len(_KINDS)]
        if kind == "made again" and deleted is not None:
            new, deleted = deleted, None
        else:
            new = services[chance.choice(sorted(services))]
        if kind == "another ClusterIP":
            new = new._replace(cluster_ips=(new.cluster_ips[0] + 60_000,))
        elif kind == "moved":
            new = new._replace(load_balancer_ips=(next(spare),))
        began = time.monotonic()
        if kind == "deleted":
            deleted = services.pop(new.key)
            bed.delete(new)
        else:
            services[new.key] = new
            bed.put(new)
        lines = _latency_of(bed, new.key)
        ours.append(latencies(lines)[new.key])
        chains.append(max(write.chains for write in writes(lines)))
        if commits is not None:
            seen.append((commits.after(began) - began) * 1000)
    return {
        "changes": count,
        "p50_ms": percentile(ours, 0.5),
        "p99_ms": percentile(ours, 0.99),
        "bare_p50_ms": percentile(bare, 0.5),
        "bare_p99_ms": percentile(bare, 0.99),
        "put_to_commit_p50_ms": percentile(seen, 0.5) if seen else None,
        "put_to_commit_p99_ms": percentile(seen, 0.99) if seen else None,
        "most_chains": max(chains),
    }


def _latency_of(bed: BenchBed, key: str) -> list[str]:
    """The lines that the agent says until it has said that `key` is in the kernel."""
    lines: list[str] = []

    def said() -> bool:
        lines.extend(bed.news())
        return key in latencies(lines)

    eventually(said, f"{key} in the kernel")
    return lines


def _changed(services: dict[str, Service], count: int, chance: random.Random) -> list[Service]:
    """Another ClusterIP for `count` of `services`, which are updated."""
    changed = []
    for key in chance.sample(sorted(services), count):
        old = services[key]
        shift = chance.choice((1, -1)) * 7 if int(old.cluster_ips[0]) % 2 else 8
        services[key] = old._replace(cluster_ips=(old.cluster_ips[0] + shift,))
        changed.append(services[key])
    return changed


def _in_sync(bed: BenchBed, services: dict[str, Service]) -> bool:
    wanted = ruleset(services, IPV4)
    text = bed.namespace.run(f"iptables-{bed.backend}-save", "-t", "nat")
    rules = {f"-A {name} {rule}" for name, rules in wanted.chains.items() for rule in rules}
    return rules <= set(text.split("\n"))


def _burst(bed: BenchBed, services: dict[str, Service], scale: Scale) -> Figures:
    count = scale.burst
    time.sleep(scale.pause)
    bed.news()
    lines: list[str] = []
    began = time.monotonic()
    for number, service in enumerate(_changed(services, count, random.Random(1))):
        bed.put(service)
        time.sleep(max(0.0, began + (number + 1) / count - time.monotonic()))
    last = time.monotonic()

    def all_there() -> bool:
        lines.extend(bed.news())
        return changes(lines) >= count

    eventually(all_there, "the whole burst in the kernel", timeout=60)
    done = time.monotonic()
    return {
        "changes": count,
        "took_seconds": last - began,
        "in_kernel_after_last_seconds": done - last,
        "restores": len(writes(lines)),
        "in_sync": _in_sync(bed, services),
    }


def _stream(bed: BenchBed, services: dict[str, Service], scale: Scale) -> Figures:
    seconds, rate = scale.stream_seconds, 50
    time.sleep(scale.pause)
    bed.news()
    chance = random.Random(2)
    found: list[int] = []
    lines: list[str] = []
    planned = [_changed(services, 1, chance)[0] for _ in range(rate * seconds)]
    began = time.monotonic()
    for number, service in enumerate(planned):
        bed.put(service)
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
        if number % rate == 0:
            lines += bed.news()
    time.sleep(scale.pause)
    lines += bed.news()
    for line in lines:
        found += latencies([line]).values()
    return {
        "changes": len(planned),
        "reported": len(found),
        "p50_ms": percentile(found, 0.5),
        "p99_ms": percentile(found, 0.99),
        "restores": len(writes(lines)),
        "in_sync": _in_sync(bed, services),
    }


def _growth(bed: BenchBed, services: dict[str, Service], scale: Scale) -> Figures:
    count = scale.many_changes
    time.sleep(scale.pause)
    chance = random.Random(3)
    before = bed.memory()
    for _ in range(0, count, len(services) // 10):
        for service in _changed(services, min(count, len(services) // 10), chance):
            bed.put(service)
        time.sleep(0.2)
    eventually(lambda: _in_sync(bed, services), "all changes in the kernel", timeout=60)
    time.sleep(scale.pause)
    after = bed.memory()
    return {
        "changes": count,
        "before_kib": before["now"],
        "after_kib": after["now"],
        "peak_kib": after["peak"],
    }


# 4. The prior art's way


def prior_arts(scale: Scale) -> list[Figures]:
    """`prior_art` with both backends at once, each on a core of its own, as it takes minutes."""
    with ThreadPoolExecutor(len(BACKENDS)) as threads:
        return list(threads.map(partial(prior_art, scale), BACKENDS))


def prior_art(scale: Scale, backend: str) -> Figures:
    """Seconds to program Services one rule and one check at a time, and by the agent.

    kakao/network-node-manager looks for each chain and each jump, and then for each rule, with a
    process of its own, before it adds what is missing with another one.
    """
    count = scale.prior_art
    say(f"prior art: {backend}, {count} Services, one process for each check and each rule")
    services = fleet(POOL[IPV4], count)
    command = f"iptables-{backend}"
    with bench_bed(backend, services) as bed:
        bed.start(timeout=120)
        ours = writes(bed.news())[0].milliseconds / 1000
    with bench_bed(backend, {}) as bed, bed.namespace.enter():
        started = time.monotonic()
        processes = 0
        for pair in _rules_by_service(services):
            for arguments in (*_CHECKS, *pair):
                processes += 1
                subprocess.run(
                    [command, "-w", "-t", "nat", *arguments],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
        theirs = time.monotonic() - started
    return {
        "backend": backend,
        "services": count,
        "theirs_seconds": theirs,
        "processes": processes,
        "ours_seconds": ours,
        "ratio": theirs / ours,
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


def _rules_by_service(services: dict[str, Service]) -> Iterator[list[list[str]]]:
    """The arguments that check for and then add each rule, Service by Service."""
    for key, service in services.items():
        alone = ruleset({key: service}, IPV4)
        yield [
            [action, name, *rule.replace('"', "").split(" ")]
            for name, rules in alone.chains.items()
            for rule in rules
            for action in ("-C", "-A")
        ]


# 5. Processes


def processes(scale: Scale, backend: str) -> Figures:
    """Which commands of iptables one change starts, and how long its input is.

    In the place of the commands stand scripts that write down that they are called.
    """
    say(f"processes: {backend}, {scale.services} Services")
    services = fleet(POOL[IPV4], scale.services)
    with bench_bed(backend, services) as bed, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for verb in ("save", "restore"):
            for command in ("iptables", "ip6tables"):
                _wrap(directory, f"{command}-{backend}-{verb}")
        with _on_path(directory):
            bed.start()
            # A legacy table is looked at every two seconds; that is no part of a change.
            time.sleep(2 * scale.pause)
            (directory / "calls").write_text("")
            bed.news()
            (service,) = _changed(services, 1, random.Random(4))
            bed.put(service)
            _latency_of(bed, service.key)
            calls = (directory / "calls").read_text().split()
            return {
                "backend": backend,
                "for_a_change": [c.rpartition("-")[2] for c in calls if c.endswith("restore")],
                "lines_of_a_change": (directory / "input").read_text().count("\n"),
            }


def _wrap(directory: Path, command: str) -> None:
    real = shutil.which(command)
    assert real is not None
    script = directory / command
    keep = f"tee {directory}/input | " if command.endswith("restore") else ""
    script.write_text(f'#!/bin/sh\necho {command} >>{directory}/calls\n{keep}{real} "$@"\n')
    script.chmod(0o755)


@contextmanager
def _on_path(directory: Path) -> Iterator[None]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
