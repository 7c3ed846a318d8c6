"""What commands print: text to its last character, notes, colours; and their exit statuses."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from ipvs_node_agent.errors import RefusedError, one_line
from ipvs_node_agent.host.systemd import is_journal, level_sign

PROGRAM = "ipvs-node-agent"

OK, PENDING, FAILED, INTERNAL_ERROR = 0, 1, 1, 70

RED, GREEN, YELLOW = "31", "32", "33"


def print_text(text: str) -> None:
    """Prints `text` to the last character. Raises RefusedError where it cannot be written."""
    error = write(sys.stdout, text)
    # Whoever read the output may have seen enough.
    if error is not None and not isinstance(error, BrokenPipeError):
        raise RefusedError("standard output", error.strerror or str(error))


def note(text: str) -> None:
    """Says on standard error what is worth knowing beside the output."""
    complain(logging.WARNING, one_line(text))


def complain(level: int, text: str) -> None:
    """Says `text`, which is one line, on standard error; `level` is logging's."""
    # Without its level, the journal would take the reason of a failed start for a piece of news.
    sign = level_sign(level) if is_journal(sys.stderr) else ""
    write(sys.stderr, f"{sign}{PROGRAM}: {text}\n")


def write(stream: TextIO, text: str) -> OSError | None:
    """Writes `text` to the last character; where that fails, nothing is written there again."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def keep_closed_streams_closed() -> None:
    """Gives standard streams that are closed a place where every use is an error.

    Otherwise what is opened next would take their place, and get what is meant for them.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode, useless = ("r", os.O_WRONLY) if name == "stdin" else ("w", os.O_RDONLY)
            # It is the lowest number that is free.
            descriptor = os.open(os.devnull, useless)
            os.set_inheritable(descriptor, True)
            stream = open(descriptor, mode, encoding="utf-8")  # noqa: SIM115  (to the end)
            setattr(sys, name, stream)


class Progress:
    """What takes its time, named on standard error where that is a terminal, and gone after."""

    def __init__(self) -> None:
        is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self._is_shown, self._text = sys.stderr.isatty() and not is_dumb, ""

    def show(self, text: str) -> None:
        """Names what is under way."""
        if self._is_shown and text != self._text:
            self._text = text
            write(sys.stderr, f"\r\x1b[K{one_line(text, 70)} ...")

    def clear(self) -> None:
        """Takes away what is shown, for what is to stay."""
        if self._text:
            self._text = ""
            write(sys.stderr, "\r\x1b[K")


def takes_colours(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and nobody said NO_COLOR."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return stream.isatty()


def coloured(text: str, colour: str, colours: bool = True) -> str:
    """`text` in `colour`, or as it is where there are no `colours`."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text
