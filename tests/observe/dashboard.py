"""packaging/grafana's dashboard, read: its panels, where they are, and the queries they ask."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.places import REPOSITORY

PATH = REPOSITORY / "packaging" / "grafana" / "ipvs-node-agent.json"
COLUMNS = 24

_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


class Target(NamedTuple):
    """A query, and what its series are called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str

    def name(self, labels: Mapping[str, str]) -> str:
        """What the series with these labels is called."""
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend)


class Panel(NamedTuple):
    """A panel: its place is in columns and rows, `words` are what it says in place of numbers."""

    title: str
    kind: str
    x: int
    y: int
    width: int
    height: int
    unit: str
    bars: bool
    logarithmic: bool
    words: dict[float, str]
    steps: tuple[tuple[float, str], ...]
    targets: tuple[Target, ...]


def read() -> dict[str, Any]:
    """The dashboard as Grafana gets it."""
    found: dict[str, Any] = json.loads(PATH.read_text())
    return found


def panels() -> list[Panel]:
    """All panels, as they are laid out."""
    return [_panel(raw) for raw in read()["panels"]]


def _panel(raw: dict[str, Any]) -> Panel:
    place, defaults = raw["gridPos"], raw["fieldConfig"]["defaults"]
    words = {
        float(value): shown["text"]
        for mapping in defaults.get("mappings", [])
        for value, shown in mapping["options"].items()
    }
    custom = defaults.get("custom", {})
    steps = tuple(
        (float("-inf") if step["value"] is None else float(step["value"]), step["color"])
        for step in defaults.get("thresholds", {"steps": []})["steps"]
    )
    return Panel(
        raw["title"],
        raw["type"],
        place["x"],
        place["y"],
        place["w"],
        place["h"],
        defaults["unit"],
        custom.get("drawStyle") == "bars",
        custom.get("scaleDistribution", {}).get("type") == "log",
        words,
        steps,
        tuple(Target(target["expr"], target["legendFormat"]) for target in raw["targets"]),
    )


def variables(text: str) -> set[str]:
    """The variables that `text` has in it."""
    return {match[1] or match[2] for match in _VARIABLE.finditer(text)}


def filled(expr: str, **values: str) -> str:
    """`expr` with these values in the place of its variables, as Grafana fills them in."""
    return _VARIABLE.sub(lambda match: values[match[1] or match[2]], expr)
