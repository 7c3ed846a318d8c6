"""`ipvs-node-agent status`: asks the running agent, and shows what it tells."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ipvs_node_agent.commands import output
from ipvs_node_agent.commands.output import GREEN, RED, YELLOW, coloured
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.host import rundir
from ipvs_node_agent.observe import statussocket
from ipvs_node_agent.observe.status import (
    HANGING,
    IN_SYNC,
    NOT_IN_SYNC,
    NOT_RUNNING,
    Report,
    ServiceReport,
    as_json,
)
from ipvs_node_agent.rules.coverage import described
from ipvs_node_agent.sync.state import in_sync_sentence

_TIME = "%Y-%m-%d %H:%M:%S UTC"
# A name is cut to no less than this, however narrow the terminal is.
_MIN_NAME = 16
_HEADLINES = {
    IN_SYNC: "In sync",
    NOT_IN_SYNC: "NOT IN SYNC",
    HANGING: "HANGING",
    NOT_RUNNING: "NOT RUNNING",
}


def main(options: argparse.Namespace) -> int:
    """Prints the report of the agent. Raises AgentError."""
    try:
        made = statussocket.ask(rundir.directory())
    except statussocket.Unanswered as error:
        # A machine gets an answer all the same.
        if options.output == "json":
            output.print_text(as_json(Report(error.state, error.why)))
        raise
    if options.services:
        made, missing = only(made, options.services)
        for name in missing if made.state != HANGING else ():
            output.note(f"no Service {one_line(name)} has rules here or is refused")
    if options.output == "json":
        output.print_text(as_json(made))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        colours = output.takes_colours(sys.stdout)
        output.print_text(as_text(made, time.time(), width, colours))
    good = made.is_good(time.time()) and not (options.services and missing)
    return output.OK if good else output.PENDING


def only(made: Report, names: Sequence[str]) -> tuple[Report, list[str]]:
    """`made` with nothing but the Services of these names, and which of the names nobody has.

    A name without its namespace means the Service of every namespace.
    """

    def means(name: str, key: str) -> bool:
        return name in (key, key.partition("/")[2])

    def wanted(key: str) -> bool:
        return any(means(name, key) for name in names)

    services = tuple(each for each in made.services if wanted(f"{each.namespace}/{each.name}"))
    refused = tuple(each for each in made.refused if wanted(each.service))
    keys = [f"{each.namespace}/{each.name}" for each in services]
    keys += [each.service for each in refused]
    missing = [name for name in names if not any(means(name, key) for key in keys)]
    return replace(made, services=services, refused=refused), missing


def as_text(made: Report, now: float, width: int | None = None, colours: bool = False) -> str:
    """`made` for people, at the time `now`; no line of a table is wider than `width`."""
    lines = [_headline(made, now, colours), *_summary(made, now, colours)]
    if made.services:
        lines += ["", *_table(_rows(made.services), width)]
    if made.refused:
        lines += ["", coloured("REFUSED", YELLOW, colours)]
        lines += [f"{problem} ({problem.reason})" for problem in made.refused]
    return "".join(f"{line}\n" for line in lines)


def _headline(made: Report, now: float, colours: bool) -> str:
    colour = GREEN if made.state == IN_SYNC else RED
    head, since = _HEADLINES[made.state], ""
    if made.state == IN_SYNC and made.lost_since is not None:
        colour = YELLOW if made.is_good(now) else RED
        known = _moment(made.contact or made.lost_since, now)
        lost = _moment(made.lost_since, now)
        head += f" with what was known at {known}; the API server cannot be reached since {lost}"
    elif made.since is not None:
        since = f" since {_moment(made.since, now)}"
    shown = coloured(head, colour, colours)
    about = [f"node {made.node}"] if made.node else []
    about += [f"iptables-{made.backend}"] if made.backend else []
    return f"{shown}{since}" + (f"; {', '.join(about)}" if about else "")


def _summary(made: Report, now: float, colours: bool) -> Iterable[str]:
    # The lines around it say the same.
    usual = in_sync_sentence({family.name: family.services for family in made.families})
    if made.state != IN_SYNC or made.sentence != usual:
        yield f"  {coloured(made.sentence, YELLOW, colours)}"
    for family in made.families:
        services = _counted(family.services, "Service")
        rules, chains = _counted(family.rules, "rule"), _counted(family.chains, "chain")
        yield f"  {family.name}: {services}, {rules} in {chains}"
    if made.pods:
        yield f"  pods are matched by {made.pods}"
    if made.uncovered:
        text = f"{described(made.uncovered)} => {made.remedy}"
        yield f"  {coloured(text, YELLOW, colours)}"
    if made.refused:
        text = f"{_counted(len(made.refused), 'refusal')}, see below"
        yield f"  {coloured(text, YELLOW, colours)}"
    if made.last_repair is not None:
        repair = made.last_repair
        yield f"  last repair {_moment(repair.time, now)}: {repair.text}"
    if made.last_error is not None:
        yield f"  last error {_moment(made.last_error.time, now)}: {made.last_error.text}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _moment(moment: float, now: float) -> str:
    shown = time.strftime(_TIME, time.gmtime(moment))
    return f"{shown} ({_ago(max(0.0, now - moment))} ago)"


def _ago(seconds: float) -> str:
    for unit, size, enough in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < enough * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


_HEAD = ("SERVICE", "EXTERNAL IP", "CLUSTER IP", "POD PKTS", "BYTES", "HOST PKTS", "BYTES")
# From here on, columns hold numbers.
_NUMBERS = 3


def _rows(services: Iterable[ServiceReport]) -> Iterable[Sequence[str]]:
    yield _HEAD
    for service in services:
        pod, host = service.pod, service.host
        counts = [str(pod.packets), _size(pod.bytes), str(host.packets), _size(host.bytes)]
        first = (f"{service.namespace}/{service.name}", *counts)
        for external in service.external_ips:
            cluster = (c for c in service.cluster_ips if (":" in c) == (":" in external))
            yield (first[0], external, next(cluster, ""), *first[1:])
            # The next line goes on with the same Service.
            first = ("",) * len(first)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("", "K", "M", "G"):
        if size < 9999.5:
            return f"{size:.0f}{unit}"
        size /= 1024
    return f"{size:.0f}T"


def _table(rows: Iterable[Sequence[str]], width: int | None) -> Iterable[str]:
    """Columns side by side; too wide, they lose those with bytes, and then the ends of names."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    total = sum(widths) + 2 * (len(widths) - 1)
    left = [number for number, name in enumerate(rows[0]) if name != "BYTES"]
    if width is not None and total > width and len(left) < len(widths):
        yield from _table([[row[number] for number in left] for row in rows], width)
        return
    if width is not None and total > width:
        widths[0] = max(_MIN_NAME, widths[0] - (total - width))
    for row in rows:
        name = row[0] if len(row[0]) <= widths[0] else f"{row[0][: widths[0] - 3]}..."
        cells = [
            cell.rjust(size) if number >= _NUMBERS else cell.ljust(size)
            for number, (cell, size) in enumerate(zip((name, *row[1:]), widths))
        ]
        yield "  ".join(cells).rstrip()
