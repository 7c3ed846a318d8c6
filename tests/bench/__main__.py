"""`python3 -m tests.bench full|start|quick|fleet|fleet-quick` measures and prints figures as JSON.

`full` prints each part as it ends, on a line of its own, and `full PART...` measures these alone.
`report DIRECTORY` makes docs/benchmarks.md and the plots of the files that the others printed, and
`report-fleet FILE` its section about a fleet.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable

from ipvs_node_agent.iptables.table import BACKENDS
from tests.bench import connections, drift, fleet, priorart, rival, times, work
from tests.bench.beside import beside
from tests.bench.grid import grid
from tests.bench.measures import FULL, QUICK, Figures, Scale, say


def machine() -> Figures:
    """What the figures were measured on."""
    models = re.findall(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": models[0].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30)),
        "kernel": platform.release(),
        "rival": rival.version(),
        "versions": json.loads(Path("/versions.json").read_text()),
    }


class Walks:
    """The rules walked, counted by a process of its own; nothing is timed there."""

    def __init__(self) -> None:
        self._counting: Future[list[Figures]] | None = None

    def begin(self) -> Callable[[], object]:
        """Has it begin; what is returned waits for its end."""
        pool = ProcessPoolExecutor(1, get_context("spawn"))
        self._counting = pool.submit(connections.walks, 50_000)
        pool.shutdown(wait=False)
        return self._counting.result

    def counted(self) -> list[Figures]:
        """What it found."""
        if self._counting is None:
            self.begin()
        assert self._counting is not None
        return self._counting.result()


_walks = Walks()
PARTS: Mapping[str, Callable[[], Any]] = {
    "machine": machine,
    "beside": lambda: beside(FULL, _walks.begin),
    "agent": lambda: [work.agent(FULL, backend) for backend in BACKENDS],
    "changes": lambda: changes(FULL),
    "starts": lambda: [times.start(*each) for each in FULL.starts],
    "drift": lambda: [drift.measure(*each) for each in FULL.drift],
    "connections": lambda: connections.connections(FULL),
    "grid": lambda: grid(*FULL.grid),
    "walks": _walks.counted,
    "prior_art": lambda: priorart.prior_arts(FULL),
}


def full(parts: Sequence[str]) -> int:
    """Measures everything, or these parts; the exit status. One that fails keeps none from it."""
    failed = []
    for name in parts or PARTS:
        try:
            print(json.dumps({name: PARTS[name]()}), flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def changes(scale: Scale) -> list[Figures]:
    """Where the time of a change goes; of each row the time in which the machine was quieter."""
    shapes = [(backend, count) for backend in BACKENDS for count in scale.parts]
    passes = [
        [times.change(*shape, min(scale.changes, 20)) for shape in shapes]
        for _ in range(scale.passes)
    ]
    # Not by the ratio, which would flatter.
    return [min(rows, key=lambda row: float(row["bare_ms"]["p50"])) for rows in zip(*passes)]


def start() -> Figures:
    """A cold start, for another set of libraries."""
    return {"machine": machine(), "start": [work.start(FULL, backend) for backend in BACKENDS]}


def quick() -> Figures:
    """Everything on a small scale; fails where something that cannot vary is not as promised."""
    figures: Figures = {
        "machine": machine(),
        "beside": beside(QUICK),
        "walks": connections.walks(3_000),
        "agent": [work.agent(QUICK, backend) for backend in BACKENDS],
        "connections": connections.connections(QUICK),
        "prior_art": priorart.prior_arts(QUICK),
        "changes": changes(QUICK),
        "starts": [times.start(*each) for each in QUICK.starts],
        "counts": [work.counts(QUICK, backend) for backend in BACKENDS],
    }
    rested = figures["beside"]["found"]
    for backend, most in (("nft", 4), ("legacy", 8)):
        assert rested[f"agent, {backend}"]["idle"]["wakeups"] <= most, rested
    for each in figures["changes"]:
        assert each["looks"] == 0, each
    for each in figures["starts"]:
        assert each["restart_writes"] == 0, each
    for walk in figures["walks"]:
        assert walk["worst"] <= 64, walk
    for agent in figures["agent"]:
        assert agent["start"]["restart_writes"] == 0, agent
        assert agent["burst"]["in_sync"], agent
        assert agent["stream"]["in_sync"], agent
    for count in figures["counts"]:
        assert count["for_a_change"] == ["restore"], count
        assert count["most_chains"] <= 4, count
        burst = count["burst"]
        assert burst["restores"] <= 5 + burst["sent_seconds"] / 0.07, count
        # A leaf of each tree: its Services' two rules each, and what splits off from it.
        (rules,) = count["rules_of_a_change"]
        assert 0 < rules <= 2 * 33, count
    return figures


def main(arguments: list[str]) -> int:
    """Measures, or reports; gives the exit status."""
    commands = {
        "start": start,
        "quick": quick,
        "fleet": fleet.measure,
        "fleet-quick": fleet.quick,
    }
    if arguments[:1] == ["report"] and len(arguments) == 2:
        from tests.bench.report import report

        report(Path(arguments[1]))
        return 0
    if arguments[:1] == ["report-fleet"] and len(arguments) == 2:
        from tests.bench.fleetreport import report as report_fleet

        report_fleet(json.loads(Path(arguments[1]).read_text()))
        return 0
    if arguments[:1] == ["full"] and PARTS.keys() >= set(arguments[1:]):
        return full(arguments[1:])
    if len(arguments) != 1 or arguments[0] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    json.dump(commands[arguments[0]](), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
