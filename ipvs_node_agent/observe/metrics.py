"""Prometheus metrics, made at each scrape from the last published `Published`.

Only how long things took is kept here, as the main loop tells it; all else is read.
"""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ipvs_node_agent import __version__
from ipvs_node_agent.model.addresses import FAMILIES, Family
from ipvs_node_agent.observe.counters import Count, Series
from ipvs_node_agent.rules.coverage import how_many
from ipvs_node_agent.sync.state import FamilyState, Meter, Published

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "ipvs_node_agent_"
_SYNC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Meters(Meter):
    """A `Meter` that counts durations in histograms."""

    def __init__(self) -> None:
        text = "Duration of a write of a family's nat table, failed writes included."
        self._sync = _histogram("sync_duration_seconds", text, _SYNC_BUCKETS)
        text = "Time from the arrival of a Service's change to its rules in the kernel."
        self._latency = _histogram("programming_latency_seconds", text, _LATENCY_BUCKETS)

    def synced(self, family: Family, seconds: float) -> None:
        """See `state.Meter`."""
        self._sync.labels(str(family)).observe(seconds)

    def programmed(self, family: Family, seconds: Iterable[float]) -> None:
        """See `state.Meter`."""
        child = self._latency.labels(str(family))
        for each in seconds:
            child.observe(each)

    def collect(self) -> Iterator[Metric]:
        """The histograms, without the times at which they were made."""
        for histogram in (self._sync, self._latency):
            for metric in histogram.collect():
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
                yield metric


def _histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
    made = Histogram(_PREFIX + name, text, ["ip_family"], registry=None, buckets=tuple(buckets))
    for family in FAMILIES:
        made.labels(str(family))
    return made


class Metrics:
    """What /metrics shows, to several threads at once; `sums` gives None to leave packets out."""

    def __init__(
        self,
        meters: Meters,
        published: Callable[[], Published],
        sums: Callable[[], Mapping[Series, Count] | None],
        contact: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._meters, self._published, self._sums = meters, published, sums
        self._contact = contact
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        sums = self._sums()
        services = () if sums is None else _of_services(sums)
        text = bytearray(generate_latest(self._registry))
        # Not as one list, as tens of thousands of short texts leave holes in the memory.
        for each in services:
            text += each.encode()
        return bytes(text)

    def collect(self) -> Iterator[Metric]:
        """All metrics but the process' and the Services'."""
        published = self._published()
        version = {(__version__, platform.python_version()): 1}
        yield _gauge("build_info", "The version.", version, "version", "python_version")
        yield from self._meters.collect()
        yield from _of_families(published)
        yield from _of_all(published)
        text = "When the API server was last heard of."
        yield _gauge("last_api_contact_timestamp_seconds", text, {(): _wall(self._contact())})


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(_PREFIX + name, text, labels=labels), values)


def _counter(name: str, text: str, values: Mapping[Any, float], label: str) -> Metric:
    return _filled(CounterMetricFamily(_PREFIX + name, text, labels=(label,)), values)


def _filled(metric: GaugeMetricFamily | CounterMetricFamily, values: Mapping[Any, float]) -> Metric:
    """`metric` with `values` by label or, where there are several, by tuples of them."""
    for label, value in values.items():
        metric.add_metric(label if isinstance(label, tuple) else (label,), value)
    return metric


def _of_families(published: Published) -> Iterator[Metric]:
    by_family = {str(family): state for family, state in published.agent.families.items()}

    def each(value: Callable[[FamilyState], float]) -> dict[str, float]:
        return {family: value(state) for family, state in by_family.items()}

    label = "ip_family"
    yield _gauge("services", "Services with rules.", each(lambda f: f.services), label)
    yield _gauge("rules", "Rules in the agent's chains.", each(lambda f: f.rules), label)
    yield _gauge("chains", "The agent's chains.", each(lambda f: f.chains), label)
    synced, queued = each(lambda f: _wall(f.synced)), each(lambda f: _wall(f.queued))
    text = "When the kernel was last known to hold the wanted rules."
    yield _gauge("last_sync_timestamp_seconds", text, synced, label)
    text = "When the wanted rules last changed."
    yield _gauge("last_queued_timestamp_seconds", text, queued, label)
    text = "Writes of a nat table that failed."
    yield _counter("sync_failures", text, each(lambda f: f.failures), label)


def _of_all(published: Published) -> Iterator[Metric]:
    agent = published.agent
    text = "Repairs of rules that others changed."
    yield _counter("drift_repairs", text, agent.repairs, "reason")
    refused = Counter(problem.reason for problem in agent.refusals)
    yield _gauge(
        "refused_external_ips",
        "External IPs, or ports of them, that a Service does not get.",
        refused,
        "reason",
    )
    text = "Watches of the API server that ended."
    yield _counter("watch_restarts", text, agent.restarts, "reason")
    text = "Pods of this node that no rule covers."
    yield _gauge("uncovered_pods", text, {(): how_many(agent.uncovered)})
    text = "1 if the configuration file is bad and an older one in effect."
    yield _gauge("config_stale", text, {(): int(published.config_stale)})
    if published.expires is not None:
        text = "When the client certificate in use expires."
        yield _gauge("credentials_expiry_timestamp_seconds", text, {(): published.expires})


def _of_services(sums: Mapping[Series, Count]) -> Iterator[str]:
    """The text of the metrics that there are thousands of: made so, in an eighth of the time."""
    for place, unit in enumerate(("packets", "bytes")):
        name = f"{_PREFIX}service_{unit}_total"
        yield (
            f"# HELP {name} {unit.title()} that a Service's rules translated:"
            f" the first of each connection.\n# TYPE {name} counter\n"
        )
        for (key, origin), count in sums.items():
            # Both are DNS labels, in which nothing has to be escaped.
            namespace, _, service = key.partition("/")
            labels = f'namespace="{namespace}",service="{service}",path="{origin}"'
            yield f"{name}{{{labels}}} {count[place]}\n"


def _wall(moment: float) -> float:
    """A monotonic time as seconds since the epoch; 0 for never."""
    if math.isinf(moment):
        return 0.0
    return round(time.time() - time.monotonic() + moment, 3)
