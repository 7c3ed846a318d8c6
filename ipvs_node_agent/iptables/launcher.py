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
    """How a command ended: its exit status, or minus the signal that killed it.

    `expired` where it took longer than it may, and was killed for that.
    """

    status: int
    expired: bool


class _Server:
    """The process that starts commands, seen from here."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self._process, self._socket = process, ours

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> _Server:
        """Starts the process. Raises LaunchError."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            number = its.fileno()
            try:
                process = subprocess.Popen(  # noqa: S603  (nothing from outside is in it)
                    isolated.command(__name__, str(number)),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[number],
                    # Ctrl-C is for the agent, which lets the command end.
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise LaunchError(f"no process to start it: {error.strerror}") from None
        return cls(process, ours)

    def fileno(self) -> int:
        """What select(2) finds readable once there is an answer."""
        return self._socket.fileno()

    def gone(self) -> bool:
        """Whether it has ended: as long as nobody asks, it says nothing."""
        return bool(select.select([self], [], [], 0)[0])

    def ask(self, request: object, streams: Sequence[BinaryIO]) -> Any:
        """Sends `request` with open files, and gives the first answer. Raises LaunchError."""
        numbers = [stream.fileno() for stream in streams]
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], numbers)
        except OSError as error:
            raise LaunchError(f"cannot ask for it: {error.strerror}") from None
        return self.answer()

    def answer(self) -> Any:
        """What it says next, as soon as it does. Raises LaunchError."""
        try:
            said = self._socket.recv(_MESSAGE)
        except OSError:
            said = b""
        if not said:
            raise LaunchError("the process that starts commands has ended")
        answer = json.loads(said)
        if "why" in answer:
            raise LaunchError(answer["why"])
        return answer

    def close(self) -> None:
        """Ends it; a command that still runs goes on."""
        self._socket.close()
        self._process.wait()


class Running:
    """A command that was started; `process` is its process id."""

    def __init__(self, server: _Server, process: int) -> None:
        self._server, self.process = server, process
        self._end: End | LaunchError | None = None

    def fileno(self) -> int:
        """What select(2) finds readable once the command has ended."""
        return self._server.fileno()

    def end(self) -> End:
        """How the command ended, once it has. Raises LaunchError."""
        if self._end is None:
            try:
                self._end = End(**self._server.answer())
            except LaunchError as error:
                self._end = error
        if isinstance(self._end, LaunchError):
            raise self._end
        return self._end


class Launcher:
    """Starts commands in `environment`, one after the other; its process starts with the first.

    `alive` is called before each of them.
    """

    def __init__(
        self, environment: Mapping[str, str], alive: Callable[[], None] = lambda: None
    ) -> None:
        self._environment, self._alive = environment, alive
        self._server: _Server | None = None
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
        if self._server is None or self._server.gone():
            self.close()
            self._server = _Server.start(self._environment)
        said = self._server.ask({"command": list(command), "limit": limit}, streams)
        self._running = Running(self._server, said["process"])
        return self._running

    def close(self) -> None:
        """Ends the process, if there is one; a command that still runs goes on."""
        if self._server is not None:
            self._server.close()
            self._server = None


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
