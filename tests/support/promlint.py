"""Prometheus' text format, read and held to what `promtool check metrics` demands of it."""

from __future__ import annotations

import re
import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

UNITS = ("seconds", "bytes")
# What Prometheus' own processes are measured by everywhere, whatever their names.
RESERVED = ("_count", "_sum", "_bucket")
NO_BASE_UNITS = re.compile(
    r"_(milli|micro|nano|kilo|mega|giga)?(seconds|second|bytes|byte|bits)(?=_|$)|_(ms|minutes|hours)(?=_|$)"
)


class Metric(NamedTuple):
    """A metric: what it is, and the value for each set of labels, by the sample's full name."""

    kind: str
    help: str
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> dict[str, Metric]:
    """The metrics in `text`, by name; a counter's name has its _total."""
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name not in found, f"{name} is there twice"
        samples = {(s.name, frozenset(s.labels.items())): s.value for s in family.samples}
        assert len(samples) == len(family.samples), f"{name} has a sample twice"
        found[name] = Metric(family.type, family.documentation, samples)
    return found


def faults(text: str) -> list[str]:
    """What promtool would complain of."""
    found = []
    for name, metric in read(text).items():
        if not metric.help:
            found.append(f"{name} has no help")
        if metric.kind == "unknown":
            found.append(f"{name} has no type")
        if (metric.kind == "counter") != name.endswith("_total"):
            found.append(f"{name}: only counters end in _total")
        if metric.kind not in ("histogram", "summary") and name.endswith(RESERVED):
            found.append(f"{name}: its end is a histogram's")
        if re.search(r"counter|gauge|histogram|summary", name):
            found.append(f"{name} holds its type")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            found.append(f"{name} is not in snake case")
        for unit in NO_BASE_UNITS.finditer(name):
            if unit[0][1:] not in UNITS:
                found.append(f"{name} is not in a base unit")
        labels = {label for _, of_sample in metric.samples for label, _ in of_sample}
        found += [
            f"{name}: the label {label} is not in snake case"
            for label in labels
            if not re.fullmatch(r"[a-z][a-z0-9_]*", label)
        ]
    return found


def value(text: str, name: str, **labels: str) -> float:
    """The value of the sample `name` with exactly these labels."""
    wanted = (name, frozenset(labels.items()))
    (found,) = [m.samples[wanted] for m in read(text).values() if wanted in m.samples]
    return found


def fetch(url: str) -> tuple[int, str]:
    """The status and the body of what is at `url`."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
