"""The agent at work: start, single changes, bursts, streams, and the processes of one change."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.model.addresses import IPV4, Address
from ipvs_node_agent.model.objects import Service
from tests.bench.bed import (
    DEBUG,
    BenchBed,
    Commits,
    bare_bed,
    bare_change,
    bench_bed,
    changes,
    latencies,
    writes,
)
from tests.bench.measures import POOL, STREAM_RATE, Figures, Scale, percentiles, ruleset, say
from tests.bench.processes import memory
from tests.support.fleet import fleet
from tests.support.netns import Namespace
from tests.support.waiting import eventually


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
        say(f"agent: {backend}: {scale.changes} single changes")
        # On another node: the agent would look at what others change in its table.
        with bare_bed(backend, bed.services) as bare:
            found["single"] = _single_changes(bed, bare, scale.changes)
        say(f"agent: {backend}: a burst of {scale.burst}")
        found["burst"] = _burst(bed, scale)
        say(f"agent: {backend}: a stream for {scale.stream_seconds} s")
        found["stream"] = _stream(bed, scale)
        say(f"agent: {backend}: {scale.many_changes} changes")
        found["growth"] = _growth(bed, scale)
    return found


def _spare(services: dict[str, Service]) -> Iterator[Address]:
    """Addresses in the pool that are free."""
    address = max(service.load_balancer_ips[0] for service in services.values())
    while True:
        address += 1
        yield address


_KINDS = ("another ClusterIP", "moved", "deleted", "made again")


def _single_changes(bed: BenchBed, bare_node: Namespace, count: int) -> Figures:
    """Changes one by one, of every kind: a ClusterIP, an external IP, deleted, made again."""
    commits = Commits(bed.namespace) if bed.backend == NFT else None
    ours: list[float] = []
    bare: list[float] = []
    seen: list[float] = []
    bed.news()
    for number, (new, deleting) in enumerate(_changes(bed, count)):
        # A change right behind another one, or behind the splitting of a chain, waits for it.
        time.sleep(0.1)
        bare.append(bare_change(bare_node, bed.backend, number))
        time.sleep(0.1)
        began = time.monotonic()
        lines = put_and_wait(bed, new, deleting)
        ours.append(latencies(lines)[new.key])
        if commits is not None:
            seen.append((commits.after(began) - began) * 1000)
    return {
        "agent_ms": percentiles(ours),
        "bare_ms": percentiles(bare),
        "put_to_commit_ms": percentiles(seen) if seen else None,
    }


def _changes(bed: BenchBed, count: int) -> Iterator[tuple[Service, bool]]:
    """Services as they change, of every kind in turns, and whether that one is deleted."""
    chance, spare = random.Random(count), _spare(bed.services)
    deleted: Service | None = None
    for number in range(count):
        kind = _KINDS[number % len(_KINDS)]
        new = bed.services[chance.choice(sorted(bed.services))]
        if kind == "made again" and deleted is not None:
            new = deleted
        elif kind == "another ClusterIP":
            new = new._replace(cluster_ips=(new.cluster_ips[0] + 60_000,))
        elif kind == "moved":
            new = new._replace(load_balancer_ips=(next(spare),))
        if kind == "deleted":
            deleted = new
        yield new, kind == "deleted"


def put_and_wait(bed: BenchBed, new: Service, deleting: bool = False) -> list[str]:
    """Changes a Service; the lines that the agent says until that is in the kernel."""
    if deleting:
        bed.delete(new)
    else:
        bed.put(new)
    return _lines_until_written(bed, new.key)


def change_once(bed: BenchBed, new: Service, commits: Commits | None) -> float:
    """Milliseconds from the change on the API server to the kernel, or as the agent logs it."""
    bed.news()
    began = time.monotonic()
    lines = put_and_wait(bed, new)
    if commits is None:
        return latencies(lines)[new.key]
    return (commits.after(began) - began) * 1000


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
    began = time.monotonic()
    _put_changed(bed, scale.burst, random.Random(1), seconds=1)
    last = time.monotonic()
    lines: list[str] = []

    def all_there() -> bool:
        lines.extend(bed.news())
        return changes(lines) >= scale.burst

    eventually(all_there, "the whole burst in the kernel", timeout=60)
    return {
        "changes": scale.burst,
        "sent_seconds": last - began,
        "in_kernel_after_last_seconds": time.monotonic() - last,
        # Where it tells of them.
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
    eventually(lambda: _in_sync(bed), "all of the stream in the kernel", timeout=60)
    lines += bed.news()
    found = [ms for line in lines for ms in latencies([line]).values()]
    return {
        "seconds": scale.stream_seconds,
        "ms": percentiles(found),
        "in_sync": _in_sync(bed),
    }


def _growth(bed: BenchBed, scale: Scale) -> Figures:
    time.sleep(scale.pause)
    chance = random.Random(3)
    before = memory(bed.agent.pid)
    some = len(bed.services) // 10
    for _ in range(0, scale.many_changes, some):
        _put_changed(bed, some, chance)
        time.sleep(0.2)
    eventually(lambda: _in_sync(bed), "all changes in the kernel", timeout=60)
    time.sleep(scale.pause)
    return {"changes": scale.many_changes, "before_mib": before, "after_mib": memory(bed.agent.pid)}


def counts(scale: Scale, backend: str) -> Figures:
    """What cannot vary: the commands of iptables that changes start, and what they write.

    In the place of the commands stand scripts that write down that they are called.
    """
    say(f"counts: {backend}, {scale.services} Services")
    services = fleet(POOL[IPV4], scale.services)
    with bench_bed(backend, services) as bed, _wrapped(backend) as directory:
        bed.agent.options = DEBUG
        bed.settle()
        bed.start()
        # A first look may follow the start; it is no part of a change.
        time.sleep(2 * scale.pause)
        (directory / "calls").write_text("")
        bed.news()
        new = bed.services[sorted(bed.services)[0]]
        lines = put_and_wait(bed, new._replace(cluster_ips=(new.cluster_ips[0] + 8,)))
        # The one that waits for the next change begins behind this one.
        eventually((directory / "calls").read_text, "a command that waits", timeout=60)
        time.sleep(scale.pause)
        calls = (directory / "calls").read_text().split()
        chains = [
            max(write.chains for write in writes(put_and_wait(bed, *each)))
            for each in _changes(bed, 2 * len(_KINDS))
        ]
        return {
            "backend": backend,
            "for_a_change": [call.rpartition("-")[2] for call in calls],
            "rules_of_a_change": [write.rules for write in writes(lines)],
            "most_chains": max(chains),
            "burst": _burst(bed, scale),
        }


@contextmanager
def _wrapped(backend: str) -> Iterator[Path]:
    """A directory, first in the search path, with the scripts and what they write down.

    Each becomes its command, as the kernel tells the agent which process changed a table.
    """
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as directory:
        for verb in ("save", "restore"):
            for command in ("iptables", "ip6tables"):
                name = f"{command}-{backend}-{verb}"
                script = Path(directory, name)
                lines = ("#!/bin/sh", f"echo {name} >>{directory}/calls")
                script.write_text("\n".join((*lines, f'exec {shutil.which(name)} "$@"\n')))
                script.chmod(0o755)
        os.environ["PATH"] = f"{directory}:{before}"
        try:
            yield Path(directory)
        finally:
            os.environ["PATH"] = before
