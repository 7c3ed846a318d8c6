"""docs/benchmarks.md and its plots, from the figures that `full` and `start` printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tests.bench.measures import FULL, Figures

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
COLOURS = {"nft": "#1f77b4", "legacy": "#d95f02"}


def report(directory: Path) -> None:
    """Writes the document and the plots."""
    figures = json.loads((directory / "debian12.json").read_text())
    newest = json.loads((directory / "newest.json").read_text())
    _plot_connections(figures)
    _plot_latency(figures)
    (DOCS / "benchmarks.md").write_text(_document(figures, newest))
    print((DOCS / "benchmarks.md").read_text())


def _document(figures: Figures, newest: Figures) -> str:
    machine = figures["machine"]
    versions, others = machine["versions"], newest["machine"]["versions"]
    return (
        (HERE / "template.md")
        .read_text()
        .format(
            date=date.today().isoformat(),
            processor=machine["processor"],
            cores=machine["cores"],
            memory=machine["memory_gib"],
            kernel=machine["kernel"],
            python=versions["Python"],
            iptables=versions["iptables"],
            kubernetes=versions["kubernetes"],
            sh=versions["sh"],
            rounds=FULL.rounds,
            packets=FULL.connections,
            services=FULL.services,
            prior_art_services=FULL.prior_art,
            connections=_connections(figures["connections"]),
            walks=_walks(figures["walks"]),
            single=_single(figures["agent"]),
            agent=_agent(figures["agent"]),
            starts=_starts(
                [
                    *(
                        (f"Debian 12, kubernetes {versions['kubernetes']}", agent["start"])
                        for agent in figures["agent"]
                    ),
                    *(
                        (f"newest, kubernetes {others['kubernetes']}", start)
                        for start in newest["start"]
                    ),
                ]
            ),
            prior_art=_prior_art(figures["prior_art"]),
        )
    )


def _walks(rows: Sequence[Figures]) -> str:
    return _table(
        ["external IPs", "rules walked", "chains", "rules"],
        [[row["addresses"], row["worst"], row["chains"], row["rules"]] for row in rows],
    )


def _prior_art(rows: Sequence[Figures]) -> str:
    return _table(
        ["backend", "processes", "theirs", "the agent's", "ratio"],
        [
            [
                row["backend"],
                row["processes"],
                f"{row['theirs_seconds']:.0f} s",
                f"{row['ours_seconds'] * 1000:.0f} ms",
                f"{row['ratio']:.0f}",
            ]
            for row in rows
        ],
    )


def _connections(rows: Sequence[Figures]) -> str:
    def cell(row: Figures, name: str) -> str:
        time, base = row["microseconds"][name], row["microseconds"]["no rules"]
        walked = row["walked"][name]
        return f"{time:.1f} µs ({time / base:.2f}), {walked} rules"

    return _table(
        ["backend", "layout", "Services", "no rules", "last", "beside", "none"],
        [
            [
                row["backend"],
                f"{row['layout']}, {row['family']}",
                row["services"],
                f"{row['microseconds']['no rules']:.1f} µs",
                *(cell(row, name) for name in ("last", "beside", "none")),
            ]
            for row in rows
        ],
    )


def _single(agents: Sequence[Figures]) -> str:
    rows = []
    for agent in agents:
        one = agent["single"]
        commit = "-"
        if one["put_to_commit_p50_ms"] is not None:
            commit = f"{one['put_to_commit_p50_ms']:.0f} / {one['put_to_commit_p99_ms']:.0f} ms"
        rows.append(
            [
                agent["backend"],
                f"{one['p50_ms']:.0f} / {one['p99_ms']:.0f} ms",
                commit,
                f"{one['bare_p50_ms']:.0f} / {one['bare_p99_ms']:.0f} ms",
                f"{one['p50_ms'] / one['bare_p50_ms']:.1f}",
                one["most_chains"],
            ]
        )
    head = ["backend", "agent, p50 / p99", "commit, p50 / p99", "bare, p50 / p99"]
    return _table([*head, "agent to bare, p50", "most chains written"], rows)


def _agent(agents: Sequence[Figures]) -> str:
    rows: list[list[Any]] = []
    for agent in agents:
        burst, stream, idle = agent["burst"], agent["stream"], agent["idle"]
        growth = agent["growth"]
        rows += [
            [
                agent["backend"],
                f"{burst['changes']} changes within a second: all in the kernel",
                f"{burst['in_kernel_after_last_seconds']:.2f} s after the last,"
                f" {burst['restores']} restores",
            ],
            [
                agent["backend"],
                f"50 changes a second for {stream['changes'] // 50} s: latency",
                f"p50 {stream['p50_ms']} ms, p99 {stream['p99_ms']} ms,"
                f" {stream['restores']} restores",
            ],
            [agent["backend"], "idle, drift check every 2 s", f"{idle['percent']:.1f} % of a core"],
            [
                agent["backend"],
                f"resident memory, before and after {growth['changes']} changes",
                f"{growth['before_kib'] / 1024:.0f} and {growth['after_kib'] / 1024:.0f} MiB",
            ],
        ]
    return _table(["backend", "what", "figure"], rows)


def _starts(rows: Sequence[tuple[str, Figures]]) -> str:
    head = ["libraries", "backend", "start", "of it iptables-restore", "peak memory", "restart"]
    return _table(
        [*head, "written by it"],
        [
            [
                name,
                start["backend"],
                f"{start['cold_seconds']:.1f} s",
                f"{start['restore_ms'] / 1000:.1f} s",
                f"{start['peak_rss_kib'] / 1024:.0f} MiB",
                f"{start['restart_seconds']:.1f} s",
                "nothing" if start["restart_writes"] == 0 else start["restart_writes"],
            ]
            for name, start in rows
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _plot_connections(figures: Figures) -> None:
    figure, axes = _axes("Services", "microseconds for a new connection")
    for backend, colour in COLOURS.items():
        rows = [
            r for r in figures["connections"] if r["backend"] == backend and r["family"] == "IPv4"
        ]
        for layout, style in (("flat", "o--"), ("split", "o-")):
            points = [
                (r["services"], r["microseconds"]["beside"]) for r in rows if r["layout"] == layout
            ]
            axes.plot(*zip(*points), style, color=colour, label=f"{backend}, {layout}")
        base = [
            (r["services"], r["microseconds"]["no rules"]) for r in rows if r["layout"] == "split"
        ]
        axes.plot(*zip(*base), ":", color=colour, label=f"{backend}, no rules")
    _save(figure, axes, "connection-cost.svg")


def _plot_latency(figures: Figures) -> None:
    figure, axes = _axes("Services", "milliseconds for one change (median)")
    for backend, colour in COLOURS.items():
        rows = [r for r in figures["latency"] if r["backend"] == backend]
        rows += [
            {"services": a["services"], **a["single"]}
            for a in figures["agent"]
            if a["backend"] == backend
        ]
        for name, style, label in (("p50_ms", "o-", "agent"), ("bare_p50_ms", "o:", "bare")):
            points = [(r["services"], r[name]) for r in rows]
            axes.plot(*zip(*points), style, color=colour, label=f"{backend}, {label}")
    _save(figure, axes, "change-latency.svg")


def _axes(horizontal: str, vertical: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    # Without a salt of its own, each run would name everything anew.
    matplotlib.rcParams["svg.hashsalt"] = "ipvs-node-agent"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(True, which="both", linewidth=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(DOCS / name, metadata={"Date": None})
