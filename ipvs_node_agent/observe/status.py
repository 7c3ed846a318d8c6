"""What `status` tells: a `Report`, which becomes JSON and comes back from it, and text for people.

The agent makes it, the command prints it. The JSON is documented in ipvs-node-agent(8): keys may be
added, and none changes its meaning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, TypeVar

from ipvs_node_agent import __version__
from ipvs_node_agent.commands.output import GREEN, RED, YELLOW, coloured
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import show_address
from ipvs_node_agent.model.objects import Problem
from ipvs_node_agent.observe.counters import HOST, NOTHING, POD, Count, Path
from ipvs_node_agent.sync.state import Published, View

IN_SYNC, NOT_IN_SYNC, HANGING, NOT_RUNNING = "InSync", "NotInSync", "Hanging", "NotRunning"
STATES = (IN_SYNC, NOT_IN_SYNC, HANGING, NOT_RUNNING)

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_SHOWN_TIME = "%Y-%m-%d %H:%M:%S UTC"
# A name is cut to no less than this, however narrow the terminal is.
_MIN_NAME = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Happened:
    """Something that failed, and when, in seconds since the epoch."""

    time: float
    text: str


@dataclass(frozen=True)
class FamilyReport:
    """What there is of one address family."""

    name: str
    services: int
    rules: int
    chains: int


@dataclass(frozen=True)
class ServiceReport:
    """A Service that has rules, for these external IPs, and what they have seen."""

    namespace: str
    name: str
    external_ips: tuple[str, ...]
    cluster_ips: tuple[str, ...]
    pod: Count = NOTHING
    host: Count = NOTHING


@dataclass(frozen=True)
class Report:
    """The agent at one moment. `since` is when `state` became what it is, since the epoch."""

    state: str
    sentence: str
    since: float | None = None
    version: str = ""
    node: str = ""
    backend: str = ""
    last_error: Happened | None = None
    families: tuple[FamilyReport, ...] = ()
    services: tuple[ServiceReport, ...] = ()
    refused: tuple[Problem, ...] = ()


def report(
    figures: Published, view: View | None, sums: Mapping[Path, Count], now: Callable[[float], float]
) -> Report:
    """The report of an agent; `view` is None where it does not answer.

    `now` turns a monotonic time into one since the epoch.
    """
    families = tuple(
        FamilyReport(str(family), table.services, table.rules, table.chains)
        for family, table in figures.agent.families.items()
    )
    if view is None:
        return Report(
            HANGING,
            figures.sentence,
            now(figures.turned),
            __version__,
            backend=figures.backend,
            families=families,
        )
    error = view.last_error
    return Report(
        state=IN_SYNC if view.in_sync else NOT_IN_SYNC,
        sentence=figures.sentence,
        since=now(view.since),
        version=__version__,
        node=view.node,
        backend=figures.backend,
        last_error=Happened(now(error[0]), error[1]) if error else None,
        families=families,
        services=tuple(_services(view, sums)),
        refused=tuple(sorted(view.problems)),
    )


def _services(view: View, sums: Mapping[Path, Count]) -> Iterable[ServiceReport]:
    external: dict[str, list[Any]] = {}
    for address, keys in view.served.items():
        for key in keys:
            external.setdefault(key, []).append(address)
    for key in sorted(external):
        namespace, _, name = key.partition("/")
        service = view.services.get(key)
        addresses = sorted(external[key], key=lambda address: (address.version, address))
        yield ServiceReport(
            namespace,
            name,
            tuple(map(show_address, addresses)),
            tuple(map(show_address, service.cluster_ips)) if service else (),
            sums.get((key, POD), NOTHING),
            sums.get((key, HOST), NOTHING),
        )


# JSON


def as_json(made: Report) -> str:
    """`made` as ipvs-node-agent(8) describes it."""
    return (
        json.dumps(
            {
                "state": made.state,
                "inSync": made.state == IN_SYNC,
                "since": None if made.since is None else _written(made.since),
                "sentence": made.sentence,
                "version": made.version,
                "node": made.node,
                "backend": made.backend,
                "lastError": made.last_error
                and {"time": _written(made.last_error.time), "text": made.last_error.text},
                "families": [
                    {
                        "ipFamily": f.name,
                        "services": f.services,
                        "rules": f.rules,
                        "chains": f.chains,
                    }
                    for f in made.families
                ],
                "services": [
                    {
                        "namespace": s.namespace,
                        "name": s.name,
                        "externalIPs": s.external_ips,
                        "clusterIPs": s.cluster_ips,
                        "packets": {"pod": s.pod.packets, "host": s.host.packets},
                        "bytes": {"pod": s.pod.bytes, "host": s.host.bytes},
                    }
                    for s in made.services
                ],
                "refused": [problem._asdict() for problem in made.refused],
            },
            indent=2,
        )
        + "\n"
    )


def _written(moment: float) -> str:
    return time.strftime(_TIME, time.gmtime(moment))


def from_json(text: str) -> Report:
    """The report that `text` is. Raises ValueError where it is none."""
    try:
        raw = json.loads(text)
        error = raw["lastError"]
        made = Report(
            state=_text(raw["state"]),
            sentence=_text(raw["sentence"]),
            since=None if raw["since"] is None else _read_time(raw["since"]),
            version=_text(raw["version"]),
            node=_text(raw["node"]),
            backend=_text(raw["backend"]),
            last_error=error and Happened(_read_time(error["time"]), _text(error["text"])),
            families=_each(raw["families"], _family),
            services=_each(raw["services"], _service),
            refused=_each(
                raw["refused"], lambda p: Problem(*(_text(p[key]) for key in Problem._fields))
            ),
        )
    except (LookupError, TypeError, AttributeError, RecursionError) as wrong:
        raise ValueError(str(wrong)) from None
    if made.state not in STATES:
        raise ValueError(f"unknown state {made.state}")
    return made


def _family(raw: Any) -> FamilyReport:
    counts = (_number(raw[key]) for key in ("services", "rules", "chains"))
    return FamilyReport(_text(raw["ipFamily"]), *counts)


def _service(raw: Any) -> ServiceReport:
    pod, host = (
        Count(_number(raw["packets"][path]), _number(raw["bytes"][path])) for path in (POD, HOST)
    )
    external, cluster = (_each(raw[key], _text) for key in ("externalIPs", "clusterIPs"))
    name = (_text(raw["namespace"]), _text(raw["name"]))
    return ServiceReport(*name, external, cluster, pod, host)


def _each(raw: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(raw, list):
        raise TypeError("wanted a list")
    return tuple(map(read, raw))


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError("wanted text")
    return one_line(raw)


def _number(raw: Any) -> int:
    if not isinstance(raw, int):
        raise TypeError("wanted a number")
    return raw


def _read_time(raw: Any) -> float:
    return datetime.strptime(_text(raw), _TIME).replace(tzinfo=timezone.utc).timestamp()


# Text


def as_text(made: Report, now: float, width: int | None = None, colours: bool = False) -> str:
    """`made` for people, at the time `now`; no line of a table is wider than `width`."""
    lines = [_headline(made, now, colours), *_summary(made, now, colours)]
    if made.services:
        lines += ["", *_table(_rows(made.services), width)]
    if made.refused:
        lines += ["", coloured("REFUSED", YELLOW) if colours else "REFUSED"]
        lines += [f"{problem} ({problem.reason})" for problem in made.refused]
    return "".join(f"{line}\n" for line in lines)


def _headline(made: Report, now: float, colours: bool) -> str:
    state = {
        IN_SYNC: "In sync",
        NOT_IN_SYNC: "NOT IN SYNC",
        HANGING: "HANGING",
        NOT_RUNNING: "NOT RUNNING",
    }[made.state]
    shown = coloured(state, GREEN if made.state == IN_SYNC else RED) if colours else state
    since = f" since {_moment(made.since, now)}" if made.since is not None else ""
    about = [f"node {made.node}"] if made.node else []
    about += [f"iptables-{made.backend}"] if made.backend else []
    return f"{shown}{since}" + (f"; {', '.join(about)}" if about else "")


def _summary(made: Report, now: float, colours: bool) -> Iterable[str]:
    # The two parts of "In sync; Services with rules: ..." say what the lines around it say.
    usual = made.sentence.startswith("In sync; ") and made.sentence.count("; ") == 1
    if made.state != IN_SYNC or not usual:
        yield f"  {coloured(made.sentence, YELLOW) if colours else made.sentence}"
    for family in made.families:
        services = _counted(family.services, "Service")
        rules, chains = _counted(family.rules, "rule"), _counted(family.chains, "chain")
        yield f"  {family.name}: {services}, {rules} in {chains}"
    if made.refused:
        text = f"{_counted(len(made.refused), 'refusal')}, see below"
        yield f"  {coloured(text, YELLOW) if colours else text}"
    if made.last_error is not None:
        yield f"  last error {_moment(made.last_error.time, now)}: {made.last_error.text}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _moment(moment: float, now: float) -> str:
    shown = time.strftime(_SHOWN_TIME, time.gmtime(moment))
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
        counts = [
            shown
            for count in (service.pod, service.host)
            for shown in (str(count.packets), _size(count.bytes))
        ]
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
    """Columns side by side; where they are too wide, names lose their ends."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    total = sum(widths) + 2 * (len(widths) - 1)
    if width is not None and total > width:
        widths[0] = max(_MIN_NAME, widths[0] - (total - width))
    for row in rows:
        name = row[0] if len(row[0]) <= widths[0] else f"{row[0][: widths[0] - 3]}..."
        cells = [
            cell.rjust(size) if number >= _NUMBERS else cell.ljust(size)
            for number, (cell, size) in enumerate(zip((name, *row[1:]), widths))
        ]
        yield "  ".join(cells).rstrip()
