"""An hour of changes, and what all processes of the service take meanwhile.

`python3 -m tests.bench.soak hour|minute` prints the figures as JSON, and `python3 -m
tests.bench.soak report FILE` writes the section of docs/benchmarks.md from such a file.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ipvs_node_agent.iptables.table import NFT
from tests.bench.bed import BenchBed, bench_bed
from tests.bench.measures import Figures, say
from tests.bench.report import DOCS, axes_of, replaced, save, table
from tests.support.fleet import LAYOUTS, fleet
from tests.support.processes import Usage, usage

_METRICS = "127.0.0.1:10273"
# What ends before the figures are taken: commands, and processes that are kept for the next scrape.
_SETTLE_SECONDS = 25.0

# What is counted, and what it is called.
_SHOWN = {
    "memory": "memory, MiB (PSS)",
    "processes": "processes",
    "threads": "threads",
    "files": "open files",
}


@dataclass(frozen=True)
class Scale:
    """How long, and how much meanwhile: `points` are how often one looks at the service."""

    services: int
    seconds: float
    changes: int
    points: int
    settle: float = _SETTLE_SECONDS


SCALES = {
    "hour": Scale(services=1_000, seconds=3600, changes=1_000_000, points=30),
    "minute": Scale(services=200, seconds=60, changes=15_000, points=4),
}


def soak(scale: Scale, backend: str = NFT) -> Figures:
    """What the service takes at first, and after each part of the changes and of all trouble."""
    with bench_bed(backend, fleet(LAYOUTS["twenty pools"], scale.services)) as bed:
        bed.start()
        return {"backend": backend, "services": scale.services, "points": [*_points(bed, scale)]}


def _points(bed: BenchBed, scale: Scale) -> Iterator[Figures]:
    chance, began, changes = random.Random(7), time.monotonic(), 0
    # Whoever answers for the first time, and writes for the first time, takes some for good.
    for part in range(scale.points + 1):
        _ask(bed)
        share = 0 if part == 0 else scale.changes // scale.points
        for _ in range(share):
            _change(bed, chance)
            changes += 1
            ahead = began + changes * scale.seconds / scale.changes - time.monotonic()
            if ahead > 0.01:
                time.sleep(ahead)
        _trouble(bed)
        _ask(bed)
        time.sleep(scale.settle)
        took = time.monotonic() - began
        say(f"soak: {changes} changes in {took:.0f} s")
        yield {"changes": changes, "seconds": took, **_least(bed.agent.pid)._asdict()}


def _least(process: int) -> Usage:
    """What it takes when it does nothing: of some looks, the least of each."""
    looks = []
    for _ in range(10):
        looks.append(usage(process))
        time.sleep(0.2)
    return Usage(*map(min, zip(*looks)))


def _change(bed: BenchBed, chance: random.Random) -> None:
    """Another ClusterIP, or the Service goes, or comes again."""
    service = chance.choice([*bed.services.values()])
    if chance.random() < 0.2:
        bed.delete(service)
    bed.put(service._replace(cluster_ips=(service.cluster_ips[0] + chance.choice((-1, 1)),)))


def _ask(bed: BenchBed) -> None:
    """As Prometheus, and as an operator."""
    with bed.namespace.enter():
        urllib.request.urlopen(f"http://{_METRICS}/metrics", timeout=30).read()
    bed.agent.call("status", "-o", "json")


def _trouble(bed: BenchBed) -> None:
    """Connections end, rules are taken away, and the configuration is read again."""
    bed.api.drop_watches()
    bed.namespace.run(f"iptables-{bed.backend}", "-w", "10", "-t", "nat", "-F", "IPVS_OUTPUT")
    bed.agent.send(signal.SIGHUP)


def thirds(figures: Figures) -> dict[str, tuple[float, float]]:
    """The most of each in the first third, but for the beginning, and in the last."""
    points = figures["points"][1:]
    third = max(1, len(points) // 3)
    return {
        what: (max(p[what] for p in points[:third]), max(p[what] for p in points[-third:]))
        for what in _SHOWN
    }


def report(figures: Figures) -> None:
    """Writes the section anew, and docs/soak.svg: what is counted over the changes."""
    points, hour = figures["points"], SCALES["hour"]
    figure, axes = axes_of(
        "What the service takes during an hour of changes",
        f"thousand changes so far, {figures['services']} Services, {figures['backend']}",
        "number, or MiB",
        "linear",
    )
    for what, label in _SHOWN.items():
        axes.plot([p["changes"] / 1000 for p in points], [p[what] for p in points], label=label)
    # Above all lines there is room for what they are called.
    axes.set_ylim(0, 1.5 * max(p[what] for p in points for what in _SHOWN))
    axes.set_xlim(left=0)
    save(figure, axes, "soak.svg")
    text = (
        Path(__file__)
        .with_name("soak.md")
        .read_text()
        .format(
            date=date.today().isoformat(),
            changes=points[-1]["changes"],
            minutes=points[-1]["seconds"] / 60,
            services=figures["services"],
            backend=figures["backend"],
            points=len(points),
            settle=hour.settle,
            grown=table(
                "what | first third | last third",
                (
                    f"{_SHOWN[what]} | {first:.1f} | {last:.1f}"
                    for what, (first, last) in thirds(figures).items()
                ),
            ),
        )
    )
    path = DOCS / "benchmarks.md"
    path.write_text(replaced(path.read_text(), text))
    print(text)


def main(arguments: list[str]) -> int:
    """Soaks or reports; gives the exit status."""
    if arguments[:1] == ["report"] and len(arguments) == 2:
        report(json.loads(Path(arguments[1]).read_text()))
        return 0
    if len(arguments) != 1 or arguments[0] not in SCALES:
        print(__doc__, file=sys.stderr)
        return 2
    json.dump(soak(SCALES[arguments[0]]), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
