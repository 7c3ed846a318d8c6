"""A module of this package at work in a process of its own.

A `Child` is on a leash: a pipe whose other end closes with this process, however that ends, has it
end itself and its whole process group.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import one_line

log = logging.getLogger(__name__)

# Isolated, so that neither variables nor the working directory bring in other code than ours. An
# upgrade of the system may have put another Python in the place of this one: it has modules of its
# own where it looks for them, and cannot use this one's, which may be gone.
_PROGRAM = (
    "import importlib, json, sys; tag, path, ours = json.loads(sys.argv[1]);"
    " sys.path[:] = path if tag == sys.implementation.cache_tag else [*sys.path, ours];"
    " importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"
)
_OURS = str(Path(__file__).resolve().parents[2])
# Before any upgrade.
_PYTHON = os.path.realpath(sys.executable)
_CHUNK = 1 << 16
_MOST_SAID = 64 << 20


def start(
    module: str,
    descriptor: int,
    *arguments: str,
    output: int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Calls `main` of the module with an open file's `descriptor` and more. Raises OSError.

    The numbers of other open files that it is to have are `descriptors`.
    """
    # A package that is being removed must not leave bytecode; isolated, a variable cannot say so.
    options = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    found = json.dumps([sys.implementation.cache_tag, sys.path, _OURS])
    program = [sys.executable, *options, "-c", _PROGRAM, found, module]
    return subprocess.Popen(  # noqa: S603  (no shell, and the arguments are ours)
        [*program, str(descriptor), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor, *descriptors],
        # Ctrl-C is for the agent, which lets it end.
        start_new_session=True,
    )


def replaced() -> str:
    """Which Python has taken the place of the one that runs this process; empty where none has."""
    now = os.path.realpath(sys.executable)
    # For a moment there may be none.
    return now if now != _PYTHON and os.path.exists(now) else ""


class Replacement:
    """Says once that another Python is there."""

    def __init__(self) -> None:
        self._said = Once()

    def look(self) -> None:
        """Says so where that is news."""
        now = replaced()
        if self._said.new(now):
            log.warning(
                "the Python of this process was replaced by %s: restart ipvs-node-agent when the"
                " upgrade is done",
                one_line(now),
            )


class Child:
    """Calls `main(leash, *arguments)` of the module, for the time of its block; see `start`.

    Whatever it started, and is still in its process group, ends with it. To enter raises OSError.
    """

    def __init__(self, module: str, *arguments: str, descriptors: Sequence[int] = ()) -> None:
        self._module, self._arguments, self._descriptors = module, arguments, descriptors
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> Child:
        watched, self._leash = os.pipe()
        try:
            self._process = start(
                self._module,
                watched,
                *self._arguments,
                output=subprocess.PIPE,
                descriptors=self._descriptors,
            )
        except OSError:
            os.close(self._leash)
            raise
        finally:
            os.close(watched)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        with self._lock:
            # From here on its number may be another one's.
            self._over = True
        # Waits for its end.
        with self._process:
            os.close(self._leash)

    def end(self) -> None:
        """Ends it at once, with all that it started; from any thread."""
        with self._lock:
            if not self._over:
                os.killpg(self._process.pid, signal.SIGKILL)

    def said(self, seconds: float) -> bytes:
        """All that it prints. Raises TimeoutError, and ValueError where that has no end."""
        if self._process.stdout is None:
            raise ValueError("it has no output")
        number, end, said = self._process.stdout.fileno(), time.monotonic() + seconds, bytearray()
        waiting = select.poll()
        waiting.register(number, select.POLLIN)
        while len(said) <= _MOST_SAID:
            if not waiting.poll(max(0, end - time.monotonic()) * 1000):
                raise TimeoutError
            more = os.read(number, _CHUNK)
            if not more:
                return bytes(said)
            said += more
        raise ValueError("it says too much")


def follow(leash: str) -> None:
    """In the child: has this process and all of its group end with the one that started it."""

    def wait() -> None:
        os.read(int(leash), 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
