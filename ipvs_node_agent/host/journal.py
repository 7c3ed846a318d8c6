"""Log lines as the journal reads them: each with its level in front (sd-daemon(3))."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TextIO

# The levels of syslog(3).
_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


def sign(level: int) -> str:
    """What the journal has in front of a line of this level."""
    return f"<{_LEVELS.get(level, 3)}>"


def is_at(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` leads to the journal.

    The service manager names the journal's socket (systemd.exec(5)), but to all that a service
    starts: where that writes to a file or another pipe, signs would be in the way.
    """
    named = environment.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


class Formatter(logging.Formatter):
    """Puts the level in front of each line, so that none is taken for another one's."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        lines = super().format(record).split("\n")
        return "\n".join(f"{sign(record.levelno)}{line}" for line in lines)
