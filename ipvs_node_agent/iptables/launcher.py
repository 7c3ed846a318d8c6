"""Runs commands through `sh`, in a small process of its own; the only user of `sh`.

To fork the agent for each command would copy its page tables, 10 ms with 10,000 Services and more
than all else that the agent adds to a change, and is unsafe where other threads run (Python 3.12
warns of it). So a `Launcher` starts a process that holds little more than `sh`, and hands it each
command with its open files over a socket; `main` is what runs in there.

What passes on the socket is JSON, a message each: the command; its process id, or why it could not
be started; and then how it ended.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO, Callable, NamedTuple

from ipvs_node_agent.host import isolated

_MESSAGE = 1 << 16
_STREAMS = 3
# What a command may print, in bytes. It goes into memory, where nobody else would stop it in time;
# the tables of 50,000 Services are a tenth of that.
_PRINTED = 256 << 20


class LaunchError(Exception):
    """A command could not be started, or nobody can tell how it ended."""


class End(NamedTuple):
    """An exit status, or minus the signal that killed it; `expired` where it took too long."""

    status: int
    expired: bool


class Running:
    """A command that was started; `process` is its process id."""

    def __init__(self, peer: socket.socket, process: int) -> None:
        self._peer, self.process = peer, process
        self._end: End | None = None

    def fileno(self) -> int:
        """What select(2) finds readable once the command has ended."""
        return self._peer.fileno()

    def end(self) -> End:
        """How the command ended, once it has. Raises LaunchError."""
        if self._end is None:
            self._end = End(**_answer(self._peer))
        return self._end


class Launcher:
    """Starts commands in `environment`, one after the other; `alive` is called before each."""

    def __init__(
        self, environment: Mapping[str, str], alive: Callable[[], None] = lambda: None
    ) -> None:
        self._environment, self._alive = environment, alive
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._running: Running | None = None

    def start(self, command: Sequence[str], limit: float, streams: Sequence[BinaryIO]) -> Running:
        """Starts `command`, once the one before has ended; it is killed after `limit` seconds.

        `streams` are its standard input, output and error output. Raises LaunchError.
        """
        if self._running is not None:
            with suppress(LaunchError):
                self._running.end()
            self._running = None
        self._alive()
        peer = self._peer()
        request = json.dumps({"command": list(command), "limit": limit}).encode()
        try:
            socket.send_fds(peer, [request], [stream.fileno() for stream in streams])
        except OSError as error:
            raise LaunchError(f"cannot ask for it: {error.strerror}") from None
        self._running = Running(peer, _answer(peer)["process"])
        return self._running

    def _peer(self) -> socket.socket:
        """The way to the process that starts commands, which is there then. Raises LaunchError."""
        # As long as nobody asks, it says nothing until it ends.
        if self._server is not None and select.select([self._server[1]], [], [], 0)[0]:
            self.close()
        if self._server is None:
            self._server = _start(self._environment)
        return self._server[1]

    def close(self) -> None:
        """Ends the process, if there is one; a command that still runs goes on."""
        if self._server is not None:
            process, peer = self._server
            peer.close()
            process.wait()
            self._server = None


def _start(environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process in which `main` runs, and the way to it. Raises LaunchError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        try:
            return isolated.start(__name__, its.fileno(), environment=environment), ours
        except OSError as error:
            ours.close()
            raise LaunchError(f"no process to start it: {error.strerror}") from None


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


def main(descriptor: str) -> None:
    """Runs what comes over the socket `descriptor`, until its other end is closed."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = _PRINTED if hard == resource.RLIM_INFINITY else min(_PRINTED, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    with socket.socket(fileno=int(descriptor)) as peer:
        while True:
            request, numbers, _, _ = socket.recv_fds(peer, _MESSAGE, _STREAMS)
            if not request:
                return
            with ExitStack() as files:
                streams = [files.enter_context(open(n, "r+b", buffering=0)) for n in numbers]
                _serve(peer, json.loads(request), streams)


def _serve(peer: socket.socket, request: Any, streams: Sequence[BinaryIO]) -> None:
    import sh

    def say(**said: object) -> None:
        peer.send(json.dumps(said).encode())

    given, printed, complaints = streams
    program, *arguments = request["command"]
    try:
        call = sh.Command(program)(
            *arguments,
            # Files, since sh pumps strings through threads at a tenth of the speed.
            _in=given,
            _out=printed,
            _err=complaints,
            _tty_out=False,
            # In the background, as sh's own time limit would delay every call by 100 ms.
            _bg=True,
            _bg_exc=False,
        )
    except (OSError, sh.ForkException) as error:
        # The last line of sh's own report holds the system's reason.
        say(why=str(error).strip().rpartition("\n")[2].strip())
        return
    say(process=call.pid)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        call.kill()

    timer = threading.Timer(request["limit"], expire)
    timer.daemon = True
    timer.start()
    try:
        status = call.wait().exit_code
    except sh.ErrorReturnCode as error:
        status = error.exit_code
    timer.cancel()
    say(status=status, expired=expired.is_set())
