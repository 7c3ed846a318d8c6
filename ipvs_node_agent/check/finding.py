"""What `check` says about one thing: a level, what was found, and what mends it.

An id says what was found, whatever the words are, and is never given to anything else. Whoever
takes one away breaks what others have built on it (docs/operations.md has all of them).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ipvs_node_agent import __version__
from ipvs_node_agent.errors import AgentError, one_line

OK, WARN, FAIL = "ok", "warn", "fail"
_LONGEST = 1000
# By whom kubectl has to be run: a node's own credentials may not do what it is asked for.
AS_ADMIN = "from a machine with kubectl as administrator: "


class Finding(NamedTuple):
    """`subject` was looked at, `text` is what was found; `remedy` is the least that mends it.

    It has none where nothing is to be done.
    """

    id: str
    level: str
    subject: str
    text: str
    remedy: str = ""


def failed(id: str, subject: str, error: AgentError, remedy: str = "") -> Finding:  # noqa: A002
    """The finding that `error` makes; the error's own hint mends it, where it has one."""
    whose = error.what.replace(subject, "", 1).strip()
    text = f"{whose}: {error.why}" if whose else error.why
    return Finding(id, FAIL, subject, text, error.hint or remedy)


def as_json(findings: Sequence[Finding], node: str) -> str:
    """For machines: an object of ours, with the name of the `node` and each finding's fields."""
    shown = [Finding(*(one_line(value, _LONGEST) for value in one))._asdict() for one in findings]
    whole = {
        "apiVersion": "ipvs-node-agent/v1",
        "kind": "Check",
        "version": __version__,
        "node": one_line(node, _LONGEST) or None,
        "findings": shown,
    }
    return json.dumps(whole, indent=2) + "\n"


def as_line(finding: Finding) -> tuple[str, str]:
    """For people: the level, and what follows it; whatever is from outside is made harmless."""
    said = one_line(f"{finding.subject}: {finding.text}", _LONGEST)
    remedy = one_line(finding.remedy, _LONGEST)
    return finding.level, said + (f" => {remedy}" if remedy else "")
