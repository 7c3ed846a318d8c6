"""Has commands run in a small process of its own, in which there is `launched` and little else.

To fork the agent for each command would copy its page tables, 10 ms with 10,000 Services and more
than all else that the agent adds to a change, and is unsafe where other threads run (Python 3.12
warns of it). So a `Launcher` starts a process that holds little more than `sh`, and hands it each
command with its open files over a socket.

What passes on the socket is JSON, a message each: the command; its process id, or why it could not
be started; and then how it ended. A command may begin before it is needed (`spares`): then how it
ended is told to who says that it is used now.
"""

from __future__ import annotations

import json
import math
import select
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Callable, NamedTuple, Protocol

from ipvs_node_agent.processes import isolated

_RUNS = "ipvs_node_agent.processes.launched"
_MESSAGE = 1 << 16
# Before the process ends by itself, so that nothing is asked of one that is just ending.
_SPARE = 2.0
# Who waits longer for a command than so many seconds says what is going on first.
_SOON = 0.05


class LaunchError(Exception):
    """A command could not be started, or nobody can tell how it ended."""


class Other(Protocol):
    """What else is waited for beside a command."""

    def fileno(self) -> int:
        """What poll(2) finds readable."""


class End(NamedTuple):
    """An exit status, or minus the signal that killed it; `expired` where it took too long."""

    status: int
    expired: bool


class Running:
    """A command that was started; `process` is its process id.

    Who waits for it for longer has `busy` called first.
    """

    def __init__(
        self, peer: socket.socket, process: int, busy: Callable[[], None] = lambda: None
    ) -> None:
        self._peer, self.process, self._busy = peer, process, busy
        self._end: End | None = None

    def fileno(self) -> int:
        """What select(2) finds readable once the command has ended."""
        return self._peer.fileno()

    def wait(self, *others: Other) -> bool:
        """Waits for its end, or until one of `others` is readable; whether it has ended."""
        if self.fileno() < 0:
            # Nobody is there any more who could tell.
            return True
        waiting = select.poll()
        for each in (self, *others):
            waiting.register(each, select.POLLIN)
        ready = waiting.poll(_SOON * 1000)
        if not ready:
            self._busy()
            ready = waiting.poll()
        return self.fileno() in (number for number, _ in ready)

    def end(self) -> End:
        """How the command ended, once it has. Raises LaunchError."""
        if self._end is None:
            self.wait()
            self._end = End(**_answer(self._peer))
        return self._end


class Waiting:
    """A command that has begun and is not used yet; `process` is 0 where that is not known."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer, self.process = peer, 0


class Launcher:
    """Starts commands in `environment`, one after the other.

    Where one takes longer than a moment, `busy` is called as often as somebody waits for it.
    The process ends once nobody has asked for a command for `idle` seconds, and the next one has
    another.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        busy: Callable[[], None] = lambda: None,
        idle: float = math.inf,
    ) -> None:
        self.busy = busy
        self._environment, self._idle = environment, idle
        self._asked = -math.inf
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._running: Running | None = None
        # Those that have begun since, and not been told of yet.
        self._begun: list[Waiting] = []

    def start(self, command: Sequence[str], limit: float, streams: Sequence[BinaryIO]) -> Running:
        """Starts `command`, once the one before has ended; it is killed after `limit` seconds.

        `streams` are its standard input, output and error output. Raises LaunchError.
        """
        self._settle()
        peer = self._peer()
        _send(peer, streams, command=list(command), limit=limit)
        self._running = Running(peer, _answer(peer)["process"], self.busy)
        return self._running

    def begin(self, command: Sequence[str], streams: Sequence[BinaryIO]) -> Waiting:
        """Has `command` begin, once the one before has ended, and waits for neither.

        It has no time limit until `use`. Raises LaunchError.
        """
        if self._server is None:
            raise LaunchError("the process that starts commands has ended")
        waiting = Waiting(self._server[1])
        _send(waiting.peer, streams, command=list(command), limit=None)
        self._begun.append(waiting)
        return waiting

    def use(self, waiting: Waiting, limit: float, give: Callable[[], object]) -> Running:
        """From now on `waiting` is the command that runs, like one of `start`; `give` has it go on.

        Raises LaunchError, and what `give` does.
        """
        self._settle()
        peer = self._peer()
        if waiting.peer is not peer or not waiting.process:
            raise LaunchError("the command prepared in advance did not start")
        # First, as who waits for its end would else be in its way on a machine with two cores.
        give()
        # Who cannot be told is dead, and how the command ended will never be known.
        with suppress(LaunchError):
            _send(peer, (), waiting=waiting.process, limit=limit)
        self._running = Running(peer, waiting.process, self.busy)
        return self._running

    def _settle(self) -> None:
        """Waits for the end of what runs, and for all else that is to be told."""
        running, self._running = self._running, None
        begun, self._begun = self._begun, []
        if running is not None:
            with suppress(LaunchError):
                running.end()
        for waiting in begun:
            # One that could not be started is not used.
            with suppress(LaunchError):
                waiting.process = _answer(waiting.peer)["process"]

    def prepare(self) -> None:
        """Has the process begin that starts commands; who wants the first need not wait for it."""
        # What it may say now is for somebody who has not read it yet.
        if self._server is None:
            with suppress(LaunchError):
                self._peer()

    def _peer(self) -> socket.socket:
        """The way to the process that starts commands, which is there then. Raises LaunchError."""
        before, self._asked = self._asked, time.monotonic()
        # As long as nobody asks, it says nothing until it ends.
        if self._server is not None and (
            self._asked > before + self._idle - _SPARE
            or select.select([self._server[1]], [], [], 0)[0]
        ):
            self.close()
        if self._server is None:
            self._server = _start(self._environment, self._idle)
            if self._idle < math.inf:
                # Or it would be a zombie until the next command.
                threading.Thread(target=self._server[0].wait, daemon=True).start()
        return self._server[1]

    def close(self) -> None:
        """Ends the process, if there is one; a command that still runs goes on."""
        if self._server is not None:
            process, peer = self._server
            peer.close()
            process.wait()
            self._server = None


def _send(peer: socket.socket, streams: Sequence[BinaryIO], **request: object) -> None:
    """Asks for something. Raises LaunchError."""
    try:
        numbers = [stream.fileno() for stream in streams]
        socket.send_fds(peer, [json.dumps(request).encode()], numbers)
    except OSError as error:
        raise LaunchError(
            f"cannot reach the process that starts commands: {error.strerror}"
        ) from None


def _start(
    environment: Mapping[str, str], idle: float
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process in which `launched.main` runs, and the way to it. Raises LaunchError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        try:
            return isolated.start(_RUNS, its.fileno(), str(idle), environment=environment), ours
        except OSError as error:
            ours.close()
            raise LaunchError(f"cannot start a process for it: {error.strerror}") from None


def _answer(peer: socket.socket) -> Any:
    """What the process says next, as soon as it does. Raises LaunchError."""
    try:
        said = peer.recv(_MESSAGE)
    except OSError:
        said = b""
    if not said:
        raise LaunchError("the process that starts commands has ended")
    answer = json.loads(said)
    if "why" in answer:
        raise LaunchError(answer["why"])
    return answer
