"""What `check` says about one thing: a level, what was found, and what mends it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ipvs_node_agent.errors import AgentError, one_line

OK, WARN, FAIL = "ok", "warn", "fail"


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


def as_json(findings: Sequence[Finding]) -> str:
    """For machines: a list of objects with the keys level, what, text and mend."""
    shown = [Finding(*(one_line(value, 1000) for value in one))._asdict() for one in findings]
    return json.dumps(shown, indent=2) + "\n"
