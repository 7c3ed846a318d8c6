"""What runs in the launcher's process: one command after the other, through `sh`; its only user.

It imports little, as all of it is memory that is there as long as the agent.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, Callable

import sh

_MESSAGE = 1 << 16
_STREAMS = 3
# What a command may print, in bytes. It goes into memory, where nobody else would stop it in time;
# the tables of 50,000 Services are a tenth of that.
_PRINTED = 256 << 20


def main(descriptor: str, idle: str) -> None:
    """Runs what comes over the socket `descriptor`, until its other end is closed.

    It ends by itself where for `idle` seconds nothing comes.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = _PRINTED if hard == resource.RLIM_INFINITY else min(_PRINTED, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    # Those that have begun and wait for their input, by process id.
    waiting: dict[int, _Waiting] = {}
    with socket.socket(fileno=int(descriptor)) as peer:
        peer.settimeout(None if float(idle) == math.inf else float(idle))

        def say(**said: object) -> None:
            peer.send(json.dumps(said).encode())

        while True:
            try:
                request, numbers, _, _ = socket.recv_fds(peer, _MESSAGE, _STREAMS)
            except socket.timeout:
                return
            if not request:
                return
            with ExitStack() as files:
                streams = [files.enter_context(open(n, "r+b", buffering=0)) for n in numbers]
                _serve(json.loads(request), streams, waiting, say)


def _serve(
    request: Any,
    streams: Sequence[BinaryIO],
    waiting: dict[int, _Waiting],
    say: Callable[..., None],
) -> None:
    limit = request["limit"]
    if "waiting" in request:
        waiting.pop(request["waiting"]).end(limit, say)
        return
    try:
        call = _begin(request["command"], streams)
    except (OSError, sh.ForkException) as error:
        # The last line of sh's own report holds the system's reason.
        say(why=str(error).strip().rpartition("\n")[2].strip())
        return
    say(process=call.pid)
    if limit is None:
        waiting[call.pid] = _Waiting(call)
    else:
        _end(call, limit, say)


def _begin(command: Sequence[str], streams: Sequence[BinaryIO]) -> Any:
    program, *arguments = command
    given, printed, complaints = streams
    return sh.Command(program)(
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


def _end(call: Any, limit: float, say: Callable[..., None]) -> None:
    """Tells how `call` ends, which is killed after `limit` seconds."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        call.kill()

    timer = threading.Timer(limit, expire)
    timer.daemon = True
    timer.start()
    status = _waited(call.pid)
    if status is None:
        status = _collected(call)
    timer.cancel()
    say(status=status, expired=expired.is_set())
    # Behind that, as to put its threads away takes sh longer than some commands run.
    _collected(call)


def _waited(process: int) -> int | None:
    """How `process` has ended, once it has; None where sh has waited for it first."""
    try:
        end = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return None
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _collected(call: Any) -> int:
    """How `call` has ended, by sh's word."""
    try:
        return int(call.wait().exit_code)
    except sh.ErrorReturnCode as error:
        return int(error.exit_code)


class _Waiting:
    """A call that does nothing until it is given its input, which may be never."""

    def __init__(self, call: Any) -> None:
        self._call, self._used = call, threading.Event()
        # A thread of sh's looks once a second whether the command still runs. Nobody wants to know
        # before it is used, and an idle node is not to wake up for it.
        watch = getattr(call.process, "_quit_threads", None)
        if watch is not None:
            wait = watch.wait
            watch.wait = lambda seconds: self._used.wait() and wait(seconds)

    def end(self, limit: float, say: Callable[..., None]) -> None:
        """See `_end`; its time begins now."""
        self._used.set()
        _end(self._call, limit, say)
