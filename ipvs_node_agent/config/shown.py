"""A configuration as text: key by key, in the file's own words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from ipvs_node_agent.config.file import IDENTITY, Loaded, values
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import one_line

# Where comments begin, behind values that are not too long for it.
_COLUMN = 48


def in_effect(loaded: Loaded) -> str:
    """Every key with its value and whether the file has it; the agent could read it as a file."""
    missing = "" if loaded.given is not None else " is not there: these are the defaults"
    lines = [f"# {one_line(loaded.name)}{missing}"]
    section = ""
    for key, value in {**IDENTITY, **values(loaded.config)}.items():
        inside, _, last = key.rpartition(".")
        if inside != section and inside:
            lines.append(f"{inside}:")
        section = inside
        shown = f"{'  ' if inside else ''}{last}: {_as_yaml(value)}"
        origin = "from the file" if key in (loaded.given or ()) else "default"
        lines.append(f"{shown:{_COLUMN}}  # {origin}")
    return "".join(f"{line}\n" for line in lines)


def changes(old: Config, new: Config) -> Iterator[str]:
    """What a log says of each key that has another value."""
    before = values(old)
    for key, value in values(new).items():
        if value != before[key]:
            was, now = one_line(_as_yaml(before[key])), one_line(_as_yaml(value))
            yield f"{key} was {was} and is {now}"


def _as_yaml(value: Any) -> str:
    """`value` as YAML on one line, without any character that is not ASCII."""
    if isinstance(value, float):  # A duration
        return f"{value!r}s".replace(".0s", "s")
    if isinstance(value, tuple):
        value = [str(each) for each in value]
    listed = yaml.safe_dump([value], default_flow_style=True, width=math.inf)
    # A scalar alone would get an end of its document.
    return str(listed).strip()[1:-1]
