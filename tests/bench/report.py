"""docs/benchmarks.md and its plots, from the figures that `full` and `start` printed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tests.bench.measures import FULL, REPAIR_LIMIT, STREAM_RATE, Figures
from tests.support.places import REPOSITORY

DOCS = REPOSITORY / "docs"
# Measured by themselves (tests/bench/fleetreport.py, tests/bench/soak.py).
_OTHERS = ("## A fleet\n", "## An hour of changes\n")
COLOURS = {"nft": "#1f77b4", "legacy": "#d95f02"}


def report(directory: Path) -> None:
    """Writes the document and the plots."""
    parts = (directory / "debian12.json").read_text().splitlines()
    figures = {name: found for line in parts for name, found in json.loads(line).items()}
    newest = json.loads((directory / "newest.json").read_text())
    _plot_connections(figures["connections"])
    _plot_latency(figures["changes"])
    _plot_parts(figures["changes"])
    path = DOCS / "benchmarks.md"
    others = [section(path.read_text(), start) for start in _OTHERS]
    text = "\n\n".join(filter(None, [_document(figures, newest).strip(), *map(str.strip, others)]))
    path.write_text(f"{text}\n")
    print(text)


def _document(figures: Figures, newest: Figures) -> str:
    agents = figures["agent"]
    return (
        Path(__file__)
        .with_name("template.md")
        .read_text()
        .format(
            date=date.today().isoformat(),
            machine=figures["machine"],
            full=FULL,
            rival=figures["machine"]["rival"],
            beside_services=figures["beside"]["services"],
            beside=table(
                " | start to in sync | one change, p50 / p99 | memory | idle, of a core"
                " | wake-ups a second | repair of a flushed chain | of a lost jump",
                itertools.starmap(_beside, figures["beside"]["found"].items()),
            ),
            beside_connections=table(
                " | a new connection to a Service, to no rules | least | median",
                _beside_connections(figures["beside"]["connections"]),
            ),
            connections=table(
                "backend | layout | Services | last, to a lone Service's | no rules | last | beside"
                " | none",
                [_connection(row, lone) for row, lone in _with_lone(figures["connections"])],
            ),
            walks=table(
                "external IPs | rules walked | chains | rules",
                map("{addresses} | {worst} | {chains} | {rules}".format_map, figures["walks"]),
            ),
            single=table(
                "backend | agent, p50 / p99 | commit, p50 / p99 | bare, p50 / p99"
                " | agent to bare, p50",
                [_single(agent["backend"], agent["single"]) for agent in agents],
            ),
            change=table(
                "backend | Services | agent to bare | agent, p50 / p99 | bare, p50 / p99",
                map(_change, figures["changes"]),
            ),
            change_parts=table(
                "backend | Services | " + " | ".join(PARTS_OF_CHANGE.values()),
                map(_change_parts, figures["changes"]),
            ),
            bound=table(
                "backend | Services | start | restart | bare restore | transfer of the list"
                " | start to twice the restore and a transfer | restart to start | peak memory",
                map(_bound, figures["starts"]),
            ),
            start_parts=table(
                "backend | Services | " + " | ".join(PARTS_OF_START.values()),
                map(_start_parts, figures["starts"]),
            ),
            grid=table(
                "bits a chain | Services a leaf | chains | walked, dense | walked, random"
                " | nft: restore | one rule | two leaves | legacy: restore | one rule",
                map(_shape, figures["grid"]),
            ),
            agent=table(
                "backend | what | figure",
                [f"{agent['backend']} | {line}" for agent in agents for line in _at_work(agent)],
            ),
            starts=table(
                "libraries | backend | start | of it iptables-restore | peak memory | restart"
                " | written by it",
                [
                    *_starts("Debian 12", figures, [agent["start"] for agent in agents]),
                    *_starts("newest", newest, newest["start"]),
                ],
            ),
            drift=table(
                f"Services | times | {' | '.join(figures['drift'][0]['ms'])} | bare change",
                map(_drift, figures["drift"]),
            ),
            flush=table(
                "Services | flush | bare restore | ratio",
                map(_flush, figures["drift"]),
            ),
            prior_art=table(
                "backend | processes | theirs | the agent's | ratio",
                map(
                    "{backend} | {processes} | {theirs_seconds:.0f} s | {ours_ms} ms"
                    " | {ratio:.0f}".format_map,
                    figures["prior_art"],
                ),
            ),
        )
    )


def section(document: str, start: str) -> str:
    """The section with the heading `start`, empty where the document has none."""
    if start not in document:
        return ""
    begin = document.index(start)
    end = document.find("\n## ", begin + len(start))
    return document[begin:] if end < 0 else document[begin : end + 1]


def replaced(document: str, text: str) -> str:
    """The document with the section `text` in place of the one with the same heading."""
    old = section(document, f"{text.partition(chr(10))[0]}\n")
    if old:
        return document.replace(old, text if document.endswith(old) else text + "\n")
    return f"{document.rstrip()}\n\n{text}"


def table(head: str, rows: Iterable[str]) -> str:
    """A table of the document."""
    line = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {row} |" for row in (head, line, *rows))


def _drift(row: Figures) -> str:
    cells = [*row["ms"].values(), row["bare_change_ms"]]
    shown = " | ".join("{p50:.0f} / {p99:.0f} ms".format_map(cell) for cell in cells)
    return f"{row['services']} | {row['times']} | {shown}"


def _flush(row: Figures) -> str:
    took, bare = row["flush_ms"], row["bare_restore_ms"]
    return f"{row['services']} | {took:.0f} ms | {bare:.0f} ms | {took / bare:.2f}"


def _beside(name: str, row: Figures) -> str:
    repair = row.get("repair_seconds", {})
    return (
        f"{name} | {row['start_seconds']:.1f} s | "
        + "{p50:.0f} / {p99:.0f} ms".format_map(row["change_ms"])
        + f" | {row['memory_mib']:.0f} MiB | "
        + "{percent:.2f} % | {wakeups:.1f}".format_map(row["idle"])
        + "".join(
            f" | {repair[what]:.2f} s"
            if repair.get(what, -1) >= 0
            else f" | not within {REPAIR_LIMIT:.0f} s"
            for what in ("a flushed chain", "a lost jump")
        )
    )


def _beside_connections(found: Figures) -> Iterable[str]:
    base = found["no rules"]
    for name, row in found.items():
        ratio = row["least"] / base["least"]
        yield f"{name} | {ratio:.2f} | {row['least']:.1f} µs | {row['median']:.1f} µs"


def _with_lone(rows: Sequence[Figures]) -> Iterable[tuple[Figures, Figures | None]]:
    """Each row, and the one with a lone Service of its backend and family."""
    lone = {(r["backend"], r["family"]): r for r in reversed(rows) if r["services"] == 1}
    return [(row, lone.get((row["backend"], row["family"]))) for row in rows]


def _connection(row: Figures, lone: Figures | None) -> str:
    times, walked = row["microseconds"], row["walked"]
    base = times["no rules"]
    cells = [
        f"{times[name]:.1f} µs ({times[name] / base:.2f}), {walked[name]} rules"
        for name in ("last", "beside", "none")
    ]
    head = "{backend} | {layout}, {family} | {services}".format_map(row)
    # Of each the ratio to no rules, which a node has at that moment.
    more = "-"
    if lone is not None:
        own, its = (r["microseconds"]["last"] / r["microseconds"]["no rules"] for r in (row, lone))
        more = f"{own / its:.2f}"
    return " | ".join([head, more, f"{base:.1f} µs", *cells])


PARTS_OF_CHANGE = {
    "queue": "queue",
    "plan": "plan",
    "difference": "difference",
    "text": "text",
    "launcher": "launcher",
    "reading": "iptables reads",
    "commit": "commit",
}
PARTS_OF_START = {
    "python": "Python and imports",
    "list": "lists and their JSON",
    "plan": "plan",
    "save": "looks at tables",
    "text": "text",
    "restore": "restore",
    "clean": "other backend",
}


def _change(row: Figures) -> str:
    agent, bare = ("{p50:.1f} / {p99:.1f} ms".format_map(row[f"{w}_ms"]) for w in ("agent", "bare"))
    return f"{row['backend']} | {row['services']} | {row['ratio']:.2f} | {agent} | {bare}"


def _change_parts(row: Figures) -> str:
    parts = " | ".join(f"{row['parts'][name]:.1f} ms" for name in PARTS_OF_CHANGE)
    return f"{row['backend']} | {row['services']} | {parts}"


def _bound(row: Figures) -> str:
    return (
        f"{row['backend']} | {row['services']} | {row['cold_seconds']:.1f} s"
        f" | {row['restart_seconds']:.1f} s | {row['bare_restore_seconds']:.1f} s"
        f" | {row['transfer_seconds']:.1f} s"
        f" | {row['cold_seconds'] / row['bound_seconds']:.2f}"
        f" | {row['restart_seconds'] / row['cold_seconds']:.2f} | {row['peak_mib']:.0f} MiB"
    )


def _start_parts(row: Figures) -> str:
    parts = " | ".join(f"{row['parts'][name]:.2f} s" for name in PARTS_OF_START)
    return f"{row['backend']} | {row['services']} | {parts}"


def _shape(row: Figures) -> str:
    nft, legacy, walked = row["nft"], row["legacy"], row["walked"]
    return (
        f"{row['bits']} | {row['leaf']} | {row['chains']} | {walked['one dense pool']}"
        f" | {walked['random over 10/8']} | {nft['restore_seconds']:.1f} s"
        f" | {nft['one_rule_ms']:.1f} ms | {nft['leaves_ms']:.1f} ms"
        f" | {legacy['restore_seconds']:.1f} s | {legacy['one_rule_ms']:.0f} ms"
    )


def _single(backend: str, single: Figures) -> str:
    agent, commit, bare = (
        "{p50:.0f} / {p99:.0f} ms".format_map(single[name]) if single[name] else "-"
        for name in ("agent_ms", "put_to_commit_ms", "bare_ms")
    )
    ratio = single["agent_ms"]["p50"] / single["bare_ms"]["p50"]
    return f"{backend} | {agent} | {commit} | {bare} | {ratio:.1f}"


def _at_work(agent: Figures) -> Iterable[str]:
    for line in (
        "{burst[changes]} changes within a second: all in the kernel"
        " | {burst[in_kernel_after_last_seconds]:.2f} s after the last",
        "{rate} changes a second for {stream[seconds]} s: latency"
        " | p50 {stream[ms][p50]} ms, p99 {stream[ms][p99]} ms",
        "memory of all processes (PSS), before and after {growth[changes]} changes"
        " | {growth[before_mib]:.0f} and {growth[after_mib]:.0f} MiB",
    ):
        yield line.format(rate=STREAM_RATE, **agent)


def _starts(libraries: str, figures: Figures, starts: Sequence[Figures]) -> Iterable[str]:
    for start in starts:
        yield (
            f"{libraries}, kubernetes {figures['machine']['versions']['kubernetes']}"
            f" | {start['backend']} | {start['cold_seconds']:.1f} s"
            f" | {start['restore_seconds']:.1f} s | {start['peak_mib']:.0f} MiB"
            f" | {start['restart_seconds']:.1f} s | {start['restart_writes'] or 'nothing'}"
        )


def _plot_connections(rows: Sequence[Figures]) -> None:
    title = "What a new connection costs on a node: the fewer rules it walks, the less"
    figure, axes = axes_of(title, "Services", "microseconds for a new connection")
    for backend, colour in COLOURS.items():
        for layout, time, style, label in (
            ("flat", "beside", "o--", "two rules a Service in one chain"),
            ("split", "beside", "o-", "the agent: chains by prefix"),
            ("split", "no rules", ":", "a node without the agent"),
        ):
            points = [
                (row["services"], row["microseconds"][time])
                for row in rows
                if (row["backend"], row["family"], row["layout"]) == (backend, "IPv4", layout)
            ]
            axes.plot(*zip(*points), style, color=colour, label=f"{backend}: {label}")
    save(figure, axes, "connection-cost.svg")


def _plot_latency(rows: Sequence[Figures]) -> None:
    title = "How long one change takes: the agent's, and any change of that table"
    figure, axes = axes_of(title, "Services", "milliseconds for one change (median)")
    for backend, colour in COLOURS.items():
        for label, style, name in (
            ("agent", "o-", "a Service's change, by the agent"),
            ("bare", "o:", "one rule, by iptables-restore"),
        ):
            points = [
                (row["services"], row[f"{label}_ms"]["p50"])
                for row in rows
                if row["backend"] == backend
            ]
            axes.plot(*zip(*points), style, color=colour, label=f"{backend}: {name}")
    save(figure, axes, "change-latency.svg")


def _plot_parts(rows: Sequence[Figures]) -> None:
    figure, axes = axes_of("Where the time of one change goes", "share of one change", "")
    axes.set_xscale("linear")
    axes.set_yscale("linear")
    names = [f"{row['backend']}, {row['services']} Services" for row in rows]
    left = [0.0] * len(rows)
    for part, label in PARTS_OF_CHANGE.items():
        shares = []
        for row in rows:
            known = {name: max(0.0, row["parts"][name]) for name in PARTS_OF_CHANGE}
            shares.append(known[part] / sum(known.values()))
        axes.barh(names, shares, left=left, label=label)
        left = [sum(both) for both in zip(left, shares)]
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(DOCS / "change-parts.svg", metadata={"Date": None})


def axes_of(title: str, horizontal: str, vertical: str, scale: str = "log") -> tuple[Any, Any]:
    """A picture to draw in, and its axes."""
    import matplotlib

    matplotlib.use("svg")
    # Without a salt of its own, each run would name everything anew.
    matplotlib.rcParams["svg.hashsalt"] = "ipvs-node-agent"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6))
    axes.set_title(title, fontsize="medium")
    axes.set_xscale(scale)
    axes.set_yscale(scale)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(True, which="both", linewidth=0.3)
    return figure, axes


def save(figure: Any, axes: Any, name: str) -> None:
    """Writes a picture of the document's."""
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(DOCS / name, metadata={"Date": None})
