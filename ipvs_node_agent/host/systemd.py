"""systemd, as sd-daemon(3) has it: what the service manager is told, and log lines with levels.

Readiness, a sentence and signs of life are datagrams to a socket that the environment names, so
there is no dependency on python3-systemd, which PyPI only has as source. Where nobody started the
agent so, nobody is told.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Callable, TextIO

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import one_line

log = logging.getLogger(__name__)

# How long the agent may be silent where the unit has no WatchdogSec; it counts before readiness.
_SILENCE = 120.0
# Signs of life in that time: one may be late, and another lost.
_SIGNS = 4
# The manager reads its socket whenever it can; if it is stuck, the agent must not be.
_SEND_TIMEOUT = 5.0
_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class ServiceManager:
    """The service manager in `environment`, taken out of there: children could speak for it."""

    def __init__(
        self, environment: MutableMapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        limit = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        # A leading @ stands for a name outside of the file system (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watched = limit.isdigit() and int(limit) > 0 and meant_for == str(os.getpid())
        self._silence = int(limit) / 1e6 if self._watched else _SILENCE
        self._clock = clock
        # When `alive` should be called next.
        self.sign_due = -math.inf
        self._ready = False
        self._status = ""
        self._fault = Once()

    def ready(self) -> None:
        """The service has started."""
        self._ready = True
        self._send("READY=1")
        self.sign_due = -math.inf
        self.alive()

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows; sent only where it is news."""
        if sentence != self._status:
            self._status = sentence
            self._send(f"STATUS={one_line(sentence)}")

    def alive(self) -> None:
        """The main loop goes round; to be called as often as one likes.

        Before readiness there is no watchdog, but a time limit for the start, which is extended.
        """
        now = self._clock()
        if now < self.sign_due:
            return
        # Whoever asks whether the main loop goes round does not know of a longer limit.
        self.sign_due = now + min(self._silence, _SILENCE) / _SIGNS
        if not self._ready:
            self._send(f"EXTEND_TIMEOUT_USEC={self._silence * 1e6:.0f}")
        elif self._watched:
            self._send("WATCHDOG=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read again meanwhile. To say so ends readiness, if there is any."""
        if self._ready:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if self._ready:
                self._send("READY=1")

    def stopping(self) -> None:
        """The service is about to end."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_TIMEOUT)
                sender.sendto(state.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError) as error:
            # Signs of life would fail alike, twice a minute.
            if self._fault.new("failed"):
                what = state.partition("=")[0]
                log.warning("cannot notify the service manager of %s: %s", what, error)
        else:
            self._fault.new("")


def level_sign(level: int) -> str:
    """What the journal has in front of a line of this level."""
    return f"<{_LEVELS.get(level, 3)}>"


def is_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` leads to the journal.

    The service manager names the journal's socket (systemd.exec(5)), but to all that a service
    starts: where that writes to a file or another pipe, signs would be in the way.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """Puts the level in front of each line, so that none is taken for another one's."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        lines = super().format(record).split("\n")
        return "\n".join(f"{level_sign(record.levelno)}{line}" for line in lines)
