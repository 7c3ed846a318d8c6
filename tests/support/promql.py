"""What a query asks for, and what of that no agent has: enough of PromQL for our own queries."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.exposed import series

# What Prometheus itself adds to each series, and what it knows of each target.
_OF_TARGETS = {"job", "instance", "node", "cluster"}
_METRIC = re.compile(r"\b((?:ipvs_node_agent|process)_\w+|up|kube_node_info)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
# A label that the query itself makes.
_MADE = re.compile(r'"(\w+)", "[^"]*", "", ""\)')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def metrics(expr: str) -> set[str]:
    """The metrics that `expr` asks for; of a histogram each part has a name of its own."""
    return {name for name, _ in _METRIC.findall(expr)}


def unknown(expr: str, *shown: str) -> list[str]:
    """What no agent has of the names, labels and their values in `expr`, and labels `shown`."""
    return list(_unknown(expr, shown))


def _unknown(expr: str, shown: tuple[str, ...]) -> Iterator[str]:
    foreign = {key: dict[str, set[str]]() for key in ("up", "kube_node_info")}
    known = {**foreign, **series()}
    labels = _OF_TARGETS.union(_MADE.findall(expr))
    if not metrics(expr):
        yield f"no metric in {expr}"
    for name, matchers in _METRIC.findall(expr):
        if name not in known:
            yield name
            continue
        labels |= known[name].keys()
        for label, value in _MATCHER.findall(matchers):
            if label in _OF_TARGETS:
                continue
            if label not in known[name]:
                yield f"{name}{{{label}}}"
                continue
            for each in value.split("|"):
                if each not in known[name][label]:
                    yield f'{name}{{{label}="{each}"}}'
    grouped = {label.strip() for found in _GROUPING.findall(expr) for label in found.split(",")} - {
        ""
    }
    for label in sorted(grouped.union(shown) - labels):
        yield f"{label} in {expr}"
