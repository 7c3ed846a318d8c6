"""Where the time goes: of one change, from its event to the kernel's word, and of a start."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.nat.saveformat import restore_input
from tests.bench.bed import BenchBed, Commits, bare_bed, bare_change, bench_bed, latencies, writes
from tests.bench.connections import restore_all
from tests.bench.measures import POOL, Figures, percentiles, ruleset, say
from tests.bench.stamped import MARK
from tests.bench.work import put_and_wait
from tests.support.fleet import fleet
from tests.support.netns import Namespace


class Stamp(NamedTuple):
    """A part of the agent's work, in monotonic times."""

    name: str
    began: float
    ended: float

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began) * 1000


def stamps(lines: Sequence[str]) -> list[Stamp]:
    """What the clocks said in the agent's log."""
    said = [line[line.index(MARK) + len(MARK) :] for line in lines if MARK in line]
    return [Stamp(*json.loads(text)) for text in said]


def change(backend: str, count: int, times: int) -> Figures:
    """The parts of one change with so many Services, beside the bare command's, in turns."""
    say(f"parts of a change: {backend}, {count} Services")
    services = fleet(POOL[IPV4], count)
    with bench_bed(backend, services) as bed, bare_bed(backend, services) as bare:
        bed.agent.program = ["-m", "tests.bench.stamped"]
        # Looks that are due have a measurement of their own.
        bed.settle()
        bed.start(timeout=180)
        commits = Commits(bed.namespace) if backend == NFT else None
        wanted = ruleset(services, IPV4).chains
        # What one change writes: a leaf of each tree.
        text = restore_input(Change({name: wanted[name] for name in (*wanted,)[:2]}))
        command = f"iptables-{backend}-restore"
        found: dict[str, list[float]] = {}
        chance = random.Random(6)
        for number in range(times):
            time.sleep(0.12)
            parts = _change(bed, chance, commits)
            time.sleep(0.12)
            restore = (command, "-w", "5", "--noflush")
            parts["bare, one rule"] = bare_change(bare, backend, number)
            parts["bare, same rules"] = run(bare, text, *restore)
            parts["bare, not committed"] = run(bare, text, *restore, "--test")
            parts["bare, no work"] = run(bare, "", command, "--version")
            for name, milliseconds in parts.items():
                found.setdefault(name, []).append(milliseconds)
    looks = int(max(found.pop("looks")))
    middle = {name: statistics.median(values) for name, values in found.items()}
    # The process is there already, but for what it does with its input.
    start, kernel = middle["bare, no work"], middle.pop("kernel")
    # With --test iptables-nft has the kernel undo what it began, which takes longer than to do it.
    reading = kernel if backend == NFT else min(kernel, middle["bare, not committed"] - start)
    middle.update(reading=reading, commit=kernel - reading)
    return {
        "backend": backend,
        "services": count,
        "parts": middle,
        "looks": looks,
        "agent_ms": percentiles(found["agent"]),
        "bare_ms": percentiles(found["bare, one rule"]),
        "ratio": middle["agent"] / middle["bare, one rule"],
    }


def _change(bed: BenchBed, chance: random.Random, commits: Commits | None) -> dict[str, float]:
    old = bed.services[chance.choice(sorted(bed.services))]
    bed.news()
    lines = put_and_wait(bed, old._replace(cluster_ips=(old.cluster_ips[0] + 60_000,)))
    told = stamps(lines)
    last = {stamp.name: stamp for stamp in told if stamp.name != "difference"}
    arrived, launcher, started = last["queue"].began, last["launcher"], last["given"].began
    # On nft the change is in effect before the agent has heard of it, and of all its rules.
    end = commits.after(launcher.began) if commits is not None else last["restore"].ended
    return {
        "queue": (last["plan"].began - arrived) * 1000,
        "plan": last["plan"].milliseconds,
        "difference": (last["text"].began - last["plan"].ended) * 1000,
        "text": last["text"].milliseconds,
        "launcher": (started - launcher.began) * 1000,
        "kernel": (end - started) * 1000,
        "agent": (end - arrived) * 1000,
        "said": latencies(lines)[old.key],
        # What we changed ourselves is nothing to look at.
        "looks": sum(stamp.name == "save" for stamp in told),
    }


def run(namespace: Namespace, text: str, *command: str) -> float:
    """Milliseconds that a command takes, from its start to its end."""
    with namespace.enter():
        began = time.monotonic()
        subprocess.run(
            command, input=text.encode(), check=True, timeout=60, stdout=subprocess.DEVNULL
        )
        return (time.monotonic() - began) * 1000


def start(backend: str, count: int, repetitions: int = 1) -> Figures:
    """The parts of a start with so many Services, a restart, and what a start cannot do without."""
    rows = [_start(backend, count) for _ in range(repetitions)]
    return min(rows, key=lambda row: row["cold_seconds"] / row["bound_seconds"])


def _start(backend: str, count: int) -> Figures:
    say(f"start: {backend}, {count} Services")
    services = fleet(POOL[IPV4], count)
    with ExitStack() as stack:
        bed = stack.enter_context(bench_bed(backend, services))
        bare = stack.enter_context(bare_bed(backend, {}))
        restore = restore_all(bare, IPV4, backend, ruleset(services, IPV4))
        transfer = bed.transfer()
        bed.agent.program = ["-m", "tests.bench.stamped"]
        began = time.monotonic()
        cold = bed.start(timeout=300)
        lines = bed.news()
        peak = bed.memory("VmHWM")
        bed.agent.stop()
        restart = bed.start(timeout=300)
        again = bed.news()
    return {
        "backend": backend,
        "services": count,
        "cold_seconds": cold,
        "restart_seconds": restart,
        "restart_writes": len(writes(again)),
        "bare_restore_seconds": restore,
        "transfer_seconds": transfer,
        "bound_seconds": 2 * restore + transfer,
        "peak_mib": peak,
        "parts": _parts(began, stamps(lines)),
    }


def _parts(began: float, told: Sequence[Stamp]) -> dict[str, float]:
    """The seconds of each part; of the restores, those of IPv6 are next to nothing."""
    first = {stamp.name: stamp for stamp in reversed(told)}
    seconds: dict[str, float] = {"python": first["imports"].ended - began}
    for name in (
        "backend",
        "plan",
        "save",
        "parse",
        "difference",
        "text",
        "restore",
        "clean",
    ):
        seconds[name] = sum(s.milliseconds for s in told if s.name == name) / 1000
    # Both at once, in threads of their own.
    lists = [stamp for stamp in told if stamp.name == "list"]
    seconds["list"] = max(s.ended for s in lists) - min(s.began for s in lists)
    return seconds
