"""What `check` says about one thing: a level, what was found, and what mends it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ipvs_node_agent.commands.output import GREEN, RED, YELLOW, coloured
from ipvs_node_agent.errors import AgentError, one_line

OK, WARN, FAIL = "ok", "warn", "fail"

_COLOURS = {OK: GREEN, WARN: YELLOW, FAIL: RED}


class Finding(NamedTuple):
    """`what` was looked at, `text` is what was found, `mend` is a command or an edit."""

    level: str
    what: str
    text: str
    mend: str = ""


def failed(what: str, error: AgentError, mend: str = "") -> Finding:
    """The finding that `error` makes; the error's own hint mends it, where it has one."""
    whose = error.what.replace(what, "", 1).strip()
    return Finding(FAIL, what, f"{whose}: {error.why}" if whose else error.why, error.hint or mend)


def as_lines(findings: Sequence[Finding], colours: bool = False) -> str:
    """A line each, for people; whatever was read from outside is made harmless."""
    lines = []
    for level, what, text, mend in findings:
        shown = f"{level:4}"
        said = one_line(f"{what}: {text}", 1000) + (f" => {one_line(mend, 1000)}" if mend else "")
        lines.append(f"{coloured(shown, _COLOURS[level]) if colours else shown}  {said}\n")
    return "".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """The same for machines: a list of objects with the keys level, what, text and mend."""
    shown = [
        {key: one_line(value, 1000) for key, value in finding._asdict().items()}
        for finding in findings
    ]
    return json.dumps(shown, indent=2) + "\n"
