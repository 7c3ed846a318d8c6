"""Runs a command of the agent with the arguments that its service gets.

For the package's scripts: `python3 -m ipvs_node_agent.unitarguments COMMAND`. The arguments are in
the unit's environment file, and a shell would run what is in there: to it, `A=--config /x.yaml` is
a command, and to systemd it is a value. So that file is read here, and in the way of systemd.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ipvs_node_agent import cli

_PATH, _NAME = Path("/etc/default/ipvs-node-agent"), "IPVS_NODE_AGENT_ARGS"

# What is not closed goes on to the end of the file.
_SINGLE, _DOUBLE = r"'([^']*)(?:'|\Z)", r'"((?:\\.|[^\\"])*)(?:"|\\?\Z)'
# A comment, or a name and its value: what is quoted, and then what is not. Quotes that come later
# stand for themselves, and blanks at the end do not belong to the value.
_LINE = re.compile(
    r"\s*(?:[#;][^\n\r]*|(?P<name>[^\n\r]?[^=\n\r]*)"
    rf"(?:=(?P<quoted>(?:[ \t]|{_SINGLE}|{_DOUBLE})*)(?P<plain>(?:\\(?:.|\Z)|[^\\\n\r])*?)[ \t]*)?)"
    r"(?:[\n\r]|\Z)",
    re.DOTALL,
)
_QUOTED = re.compile(rf"[ \t]+|{_SINGLE}|{_DOUBLE}", re.DOTALL)
# What is between two arguments, or a part of one.
_PART = re.compile(
    r"""[ \t\n\r]+|\\(.)|'((?:\\.|[^\\'])*)(?:'|\Z)|"((?:\\.|[^\\"])*)(?:"|\Z)|([^ \t\n\r\\'"]+)""",
    re.DOTALL,
)


def value(text: str, name: str) -> str:
    """A variable's value in an environment file (systemd.exec(5), EnvironmentFile=)."""
    found = ""
    for line in _LINE.finditer(text):
        if line["plain"] is not None and line["name"].rstrip() == name:
            plain = re.sub(r"\\(?:[\n\r]|\Z|(.))", lambda escaped: escaped[1] or "", line["plain"])
            found = "".join(map(_unquoted, _QUOTED.finditer(line["quoted"]))) + plain
    return found


def _unquoted(part: re.Match[str]) -> str:
    if part[2] is None:
        return part[1] or ""
    return re.sub(r'\\(?:\n|(["\\`$]))', lambda escaped: escaped[1] or "", part[2])


def words(text: str) -> Iterator[str]:
    """What systemd makes of `$NAME` in a command (systemd.service(5)), `text` being its value."""
    word: str | None = None
    for part in _PART.finditer(text):
        if part.lastindex is not None:
            inside = re.sub(r"\\(.)", r"\1", part[part.lastindex], flags=re.DOTALL)
            word = (word or "") + inside
        elif word is not None:
            yield word
            word = None
    if word is not None:
        yield word


def main(command: str) -> int:
    """Runs the command, and gives its exit status."""
    try:
        text = _PATH.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        text = ""
    return cli.main([*words(value(text, _NAME)), command])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
