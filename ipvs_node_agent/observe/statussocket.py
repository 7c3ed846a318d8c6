"""The socket in /run/ipvs-node-agent at which the running agent tells its status.

Whoever connects gets a `Report` as JSON, and says nothing himself. The agent's answer comes out of
its main loop; where that does not answer in time, the report says so.
"""

from __future__ import annotations

import grp
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

from ipvs_node_agent.backoff import seconds_left
from ipvs_node_agent.errors import AgentError, RefusedError
from ipvs_node_agent.observe import status
from ipvs_node_agent.observe.boundedserver import BACKLOG, BoundedServer
from ipvs_node_agent.observe.status import Report

log = logging.getLogger(__name__)

NAME = "status"
# Who may ask, besides root: the group that may read the journal and /var/log.
GROUP = "adm"
_MODE = 0o660
# How long the main loop may take to answer, and how long who asks waits for all of the answer.
PATIENCE = 4.0
_ASKING_SECONDS = 5.0
# How long who asks may take altogether, the main loop's time included.
_ANSWER_SECONDS = 5.0
# Who connects has asked, and all ask the same.
_QUESTION, _WORKERS = "status", 1
_MAX_ANSWER = 256 << 20
_CHUNK = 1 << 20
_LOOK = "journalctl -u ipvs-node-agent"


class Unanswered(AgentError):
    """There is no agent, or it does not answer; `state` is which of both."""

    exit_status = 1

    def __init__(self, state: str, why: str, hint: str) -> None:
        super().__init__("status", why, hint)
        self.state = state


class StatusSocket:
    """Tells what `answer` gives, to everybody who connects in `directory`, until `stop`."""

    def __init__(self, directory: Path, answer: Callable[[], Report]) -> None:
        self._path, self._answer = directory / NAME, answer
        self._server: BoundedServer[str] | None = None

    def start(self) -> None:
        """Tells from now on; where that cannot be, it is said."""
        try:
            self._server = BoundedServer(
                _listener(self._path),
                lambda said, over: _QUESTION,
                lambda question: status.as_json(self._answer()).encode(),
                0.0,
                _ANSWER_SECONDS,
                _WORKERS,
            )
        except OSError as error:
            log.warning("cannot make %s, so `status` will not work: %s", self._path, error.strerror)
            return
        threading.Thread(target=self._server.serve, daemon=True).start()

    def stop(self) -> None:
        """Tells nobody any more."""
        if self._server is not None:
            self._server.stop()
        with suppress(OSError):
            self._path.unlink()


def _listener(path: Path) -> socket.socket:
    """What listens at `path`, in place of what a killed agent left there. Raises OSError."""
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as short:
            listener.bind(short)
        os.chmod(path, _MODE)
        with suppress(KeyError, PermissionError):
            group = grp.getgrnam(GROUP).gr_gid
            # In the service, it has the group already, and may not change any file's.
            if os.stat(path).st_gid != group:
                os.chown(path, -1, group)
        # Until then nobody gets in, whatever the umask was.
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Another name for `path`: those of sockets may have but 107 bytes."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def ask(directory: Path) -> Report:
    """The report of the agent that runs in `directory`. Raises Unanswered and RefusedError."""
    try:
        text = _told(directory / NAME)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unanswered(status.NOT_RUNNING, "the agent is not running", _LOOK) from None
    except (TimeoutError, socket.timeout):
        why = f"the agent runs but has not answered within {_ASKING_SECONDS:.0f} s"
        mend = f"{_LOOK}; systemctl restart ipvs-node-agent"
        raise Unanswered(status.HANGING, why, mend) from None
    except PermissionError:
        why = f"{directory / NAME}: Permission denied"
        raise RefusedError("status", why, f"be root or in the group {GROUP}") from None
    except OSError as error:
        raise RefusedError("status", f"{directory / NAME}: {error.strerror}") from None
    try:
        return status.from_json(text)
    except ValueError as error:
        why = f"{directory / NAME} sends something other than a status: {error}"
        raise RefusedError("status", why, "does another version run?") from None


def _told(path: Path) -> str:
    end, told = time.monotonic() + _ASKING_SECONDS, bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one, _short(path) as short:
        one.settimeout(_ASKING_SECONDS)
        one.connect(short)
        while len(told) < _MAX_ANSWER:
            one.settimeout(seconds_left(end))
            more = one.recv(_CHUNK)
            if not more:
                break
            told += more
    return told.decode("utf-8", "replace")
