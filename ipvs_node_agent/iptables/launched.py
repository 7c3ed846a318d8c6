"""What runs in the launcher's process: one command after the other, through `sh`; its only user.

It imports little, as all of it is memory that is there as long as the agent.
"""

from __future__ import annotations

import json
import math
import resource
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

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
    with socket.socket(fileno=int(descriptor)) as peer:
        peer.settimeout(None if float(idle) == math.inf else float(idle))
        while True:
            try:
                request, numbers, _, _ = socket.recv_fds(peer, _MESSAGE, _STREAMS)
            except socket.timeout:
                return
            if not request:
                return
            with ExitStack() as files:
                streams = [files.enter_context(open(n, "r+b", buffering=0)) for n in numbers]
                _serve(peer, json.loads(request), streams)


def _serve(peer: socket.socket, request: Any, streams: Sequence[BinaryIO]) -> None:
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
