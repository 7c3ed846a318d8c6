"""Colours for a terminal, and plain text for everything else that reads it."""

from __future__ import annotations

import os
from typing import TextIO

RED, GREEN, YELLOW = "31", "32", "33"


def takes_colours(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and nobody said NO_COLOR."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def coloured(text: str, colour: str) -> str:
    """`text` in `colour`."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def coloured_change(restore_input: str) -> str:
    """What goes in red and what comes in green, as a diff; the rest as it is."""
    return "".join(_coloured_line(line) for line in restore_input.splitlines(keepends=True))


def _coloured_line(line: str) -> str:
    text = line.rstrip("\n")
    colour = {"-A": GREEN, "-I": GREEN, "-D": RED, "-X": RED}.get(text[:2])
    return coloured(text, colour) + line[len(text) :] if colour else line
