"""What `status` tells: a `Report`, which becomes JSON and comes back from it.

The agent makes it, the command shows it. The JSON is documented in ipvs-node-agent(8): keys may be
added, and none changes its meaning.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Callable, TypeVar

from ipvs_node_agent import __version__
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import Address, parse_address, show_address
from ipvs_node_agent.model.objects import Problem, UncoveredPod
from ipvs_node_agent.observe.counters import HOST, NOTHING, POD, Count, Series
from ipvs_node_agent.rules.coverage import remedy
from ipvs_node_agent.sync.state import PATIENCE, Published, View

IN_SYNC, NOT_IN_SYNC, HANGING, NOT_RUNNING = "InSync", "NotInSync", "Hanging", "NotRunning"
STATES = (IN_SYNC, NOT_IN_SYNC, HANGING, NOT_RUNNING)

_TIME = "%Y-%m-%dT%H:%M:%SZ"

T = TypeVar("T")


@dataclass(frozen=True)
class Happened:
    """Something that failed, or was undone, and when, in seconds since the epoch."""

    time: float
    text: str


@dataclass(frozen=True)
class FamilyReport:
    """What there is of one address family; `in_front` are others' jumps, by built-in chain."""

    name: str
    services: int
    rules: int
    chains: int
    in_front: tuple[tuple[str, str], ...] = ()


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
    """The agent at one moment. `since` is when `state` became what it is, since the epoch.

    `pods` says how packets of pods are known, and `remedy` what would cover the `uncovered` ones.
    `lost_since` is when it was noticed that the API server cannot be followed, None where it is
    followed; and `contact` is when it was last heard of. `lingering` are addresses that are gone
    from this node, and count as its own for a while.
    """

    state: str
    sentence: str
    since: float | None = None
    version: str = ""
    node: str = ""
    backend: str = ""
    last_error: Happened | None = None
    last_repair: Happened | None = None
    families: tuple[FamilyReport, ...] = ()
    services: tuple[ServiceReport, ...] = ()
    refused: tuple[Problem, ...] = ()
    pods: str = ""
    uncovered: tuple[UncoveredPod, ...] = ()
    remedy: str = ""
    contact: float | None = None
    lost_since: float | None = None
    lingering: frozenset[Address] = frozenset()

    def is_good(self, now: float) -> bool:
        """Whether the kernel holds what is wanted, and nobody fails to tell what that is."""
        lost = self.lost_since is not None and now - self.lost_since >= PATIENCE
        return self.state == IN_SYNC and not lost


def report(
    published: Published,
    view: View | None,
    sums: Mapping[Series, Count],
    now: Callable[[float], float],
    contact: float = -math.inf,
) -> Report:
    """An agent's report; `view` is None where it hangs, `now` makes monotonic time the epoch's."""
    families = tuple(
        FamilyReport(
            str(family), table.services, table.rules, table.chains, tuple(sorted(table.behind))
        )
        for family, table in published.agent.families.items()
    )
    known, missed = published.agent.coverage, published.agent.uncovered
    made = Report(
        HANGING,
        published.sentence,
        now(published.turned),
        __version__,
        backend=published.backend,
        families=families,
        pods=str(known) if known is not None else "",
        uncovered=missed,
        remedy=remedy(missed, known) if missed and known is not None else "",
        contact=now(contact) if contact > -math.inf else None,
        lost_since=now(lost) if (lost := published.agent.troubled_since) < math.inf else None,
        lingering=published.agent.lingering,
    )
    if view is None:
        return made
    error, repair = view.last_error, view.last_repair
    return replace(
        made,
        state=IN_SYNC if view.in_sync else NOT_IN_SYNC,
        since=now(view.since),
        node=view.node,
        last_error=Happened(now(error[0]), error[1]) if error else None,
        last_repair=Happened(now(repair[0]), repair[1]) if repair else None,
        services=tuple(_services(view, sums)),
        refused=tuple(sorted(view.problems)),
    )


def _services(view: View, sums: Mapping[Series, Count]) -> Iterable[ServiceReport]:
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
    raw = {
        "state": made.state,
        "inSync": made.state == IN_SYNC,
        "following": made.lost_since is None and made.state not in (HANGING, NOT_RUNNING),
        "notFollowingSince": _written(made.lost_since),
        "lastContact": _written(made.contact),
        "since": _written(made.since),
        "sentence": made.sentence,
        "version": made.version,
        "node": made.node,
        "backend": made.backend,
        "lastError": _happened(made.last_error),
        "lastRepair": _happened(made.last_repair),
        "families": [
            {
                "ipFamily": f.name,
                "services": f.services,
                "rules": f.rules,
                "chains": f.chains,
                "inFront": [{"chain": chain, "target": target} for chain, target in f.in_front],
            }
            for f in made.families
        ],
        "services": made.services,
        "refused": [problem._asdict() for problem in made.refused],
        "pods": {
            "knownBy": made.pods,
            "uncovered": [
                {"pod": pod.key, "ip": show_address(pod.address), "interface": pod.interface}
                for pod in made.uncovered
            ],
            "remedy": made.remedy,
        },
        "lingering": sorted(map(show_address, made.lingering)),
    }
    # Not as one list of all that it consists of, which is a hundred times as large.
    text = bytearray()
    for each in json.JSONEncoder(indent=2, default=_written_service).iterencode(raw):
        text += each.encode()
    return f"{text.decode()}\n"


def _written_service(one: ServiceReport) -> dict[str, Any]:
    return {
        "namespace": one.namespace,
        "name": one.name,
        "externalIPs": one.external_ips,
        "clusterIPs": one.cluster_ips,
        "packets": {"pod": one.pod.packets, "host": one.host.packets},
        "bytes": {"pod": one.pod.bytes, "host": one.host.bytes},
    }


def _happened(what: Happened | None) -> dict[str, Any] | None:
    return None if what is None else {"time": _written(what.time), "text": what.text}


def _read_happened(raw: Any) -> Happened | None:
    return None if raw is None else Happened(_read_time(raw["time"]), _text(raw["text"]))


def _written(moment: float | None) -> str | None:
    return None if moment is None else time.strftime(_TIME, time.gmtime(moment))


def from_json(text: str) -> Report:
    """The report that `text` is. Raises ValueError where it is none."""
    try:
        raw = json.loads(text)
        made = Report(
            state=_text(raw["state"]),
            sentence=_text(raw["sentence"]),
            since=_time(raw["since"]),
            contact=_time(raw.get("lastContact")),
            lost_since=_time(raw.get("notFollowingSince")),
            version=_text(raw["version"]),
            node=_text(raw["node"]),
            backend=_text(raw["backend"]),
            last_error=_read_happened(raw["lastError"]),
            last_repair=_read_happened(raw.get("lastRepair")),
            families=_each(raw["families"], _family),
            services=_each(raw["services"], _service),
            refused=_each(raw["refused"], _problem),
            pods=_text(raw["pods"]["knownBy"]),
            uncovered=_each(raw["pods"]["uncovered"], _pod),
            remedy=_text(raw["pods"]["remedy"]),
            lingering=frozenset(map(parse_address, _each(raw.get("lingering", []), _text))),
        )
    except (LookupError, TypeError, AttributeError, RecursionError) as wrong:
        raise ValueError(str(wrong)) from None
    if made.state not in STATES:
        raise ValueError(f"unknown state {made.state}")
    return made


def _family(raw: Any) -> FamilyReport:
    services, rules, chains = (_number(raw[key]) for key in ("services", "rules", "chains"))
    in_front = _each(raw.get("inFront", []), _jump)
    return FamilyReport(_text(raw["ipFamily"]), services, rules, chains, in_front)


def _jump(raw: Any) -> tuple[str, str]:
    return _text(raw["chain"]), _text(raw["target"])


def _service(raw: Any) -> ServiceReport:
    pod, host = (
        Count(*(_number(raw[unit][origin]) for unit in Count._fields)) for origin in (POD, HOST)
    )
    external, cluster = (_each(raw[key], _text) for key in ("externalIPs", "clusterIPs"))
    name = (_text(raw["namespace"]), _text(raw["name"]))
    return ServiceReport(*name, external, cluster, pod, host)


def _problem(raw: Any) -> Problem:
    return Problem(*(_text(raw[key]) for key in Problem._fields))


def _pod(raw: Any) -> UncoveredPod:
    key, ip, interface = (_text(raw[key]) for key in ("pod", "ip", "interface"))
    return UncoveredPod(key, parse_address(ip), interface)


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


def _time(raw: Any) -> float | None:
    return None if raw is None else _read_time(raw)


def _read_time(raw: Any) -> float:
    return datetime.strptime(_text(raw), _TIME).replace(tzinfo=timezone.utc).timestamp()
