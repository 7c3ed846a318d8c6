"""A module of this package at work in a process of its own.

`command` is the command line that runs it; a `Child` is one that is waited for, with all that it
starts itself. The child is on a leash: a pipe whose other end closes with this process, however
that ends, has it end itself and its whole process group.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time

# Isolated, so that neither variables nor the working directory bring in other code than ours.
_PROGRAM = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"
)
_CHUNK = 1 << 16
_MOST_SAID = 64 << 20


def command(module: str, *arguments: str) -> list[str]:
    """Calls `main` of the module with `arguments`; code is found where this process finds it."""
    # A package that is being removed must not leave bytecode; isolated, a variable cannot say so.
    options = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    return [sys.executable, *options, "-c", _PROGRAM, json.dumps(sys.path), module, *arguments]


class Child:
    """Calls `main(leash, *arguments)` of the module, for the time of its block.

    Whatever it started, and is still in its process group, ends with it. To enter raises OSError.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._arguments = module, arguments
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> Child:
        watched, self._leash = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  (no shell, and the arguments are ours)
                command(self._module, str(watched), *self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[watched],
                start_new_session=True,
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
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._leash)

    def end(self) -> None:
        """Ends it at once, with all that it started; from any thread."""
        with self._lock:
            if not self._over:
                os.killpg(self._process.pid, signal.SIGKILL)

    def said(self, seconds: float) -> bytes:
        """All that it writes to its standard output.

        Raises TimeoutError where that takes longer, and ValueError where it is without end.
        """
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
