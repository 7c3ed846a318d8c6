"""Commands that have begun before they are needed, and wait for their input.

A process takes milliseconds to fork, to start and to load its libraries, which is most of what a
small change costs. Who will run the same command again has the next one begin at once, out of
everybody's way: it reads its input, which has not come yet.

Such a process does nothing, holds no lock, and ends when its input does: also with the agent. It is
no longer used where the program was replaced on the disk meanwhile. One that has come before it in
the search path counts from the next time on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import BinaryIO, Callable, NamedTuple

from ipvs_node_agent.processes.launcher import Launcher, LaunchError, Running, Waiting

# The size of a pipe (fcntl(2)): the kernel gives less where a user has many of them.
_F_GETPIPE_SZ = 1032
# For one that is not needed any more, in seconds: its input ends.
_LEAVING = 10.0

# What tells a file from another one in its place, and from itself before somebody changed it.
_Program = tuple[int, int, int]


class Streams(NamedTuple):
    """What a command prints, and what it complains of."""

    printed: BinaryIO
    complaints: BinaryIO


class _Spare(NamedTuple):
    path: str
    program: _Program
    waiting: Waiting
    given: BinaryIO
    # What it takes at once, in bytes. Who has more to say has more to wait for than a start.
    most: int
    streams: Streams


class Spares:
    """One command each of those that are kept, in the process of `launcher`.

    Their first words are names, and `find` tells where such a program is.
    """

    def __init__(self, launcher: Launcher, find: Callable[[str], str | None]) -> None:
        self._launcher, self._find = launcher, find
        self._kept: dict[tuple[str, ...], _Spare] = {}

    def keep(self, command: Sequence[str]) -> None:
        """Has `command` begin where it has not.

        Where that cannot be done, it will be started when it is needed.
        """
        path = None if tuple(command) in self._kept else self._find(command[0])
        if path is None:
            return
        with suppress(OSError, LaunchError), ExitStack() as files:
            reading, writing = os.pipe()
            with open(reading, "rb", buffering=0) as read:
                given = files.enter_context(open(writing, "wb", buffering=0))
                # To wait for who reads would be to wait without a limit.
                os.set_blocking(writing, False)
                most = fcntl.fcntl(writing, _F_GETPIPE_SZ)
                streams = Streams(*(files.enter_context(memory_file()) for _ in range(2)))
                program = _program(path)
                waiting = self._launcher.begin([path, *command[1:]], (read, *streams))
            files.pop_all()
            self._kept[tuple(command)] = _Spare(path, program, waiting, given, most, streams)

    def start(
        self, command: Sequence[str], limit: float, given: bytes
    ) -> tuple[Running, Streams] | None:
        """Gives the one that waits its input, as `Launcher.start` would; None without one."""
        spare = self._kept.get(tuple(command))
        if spare is None or len(given) > spare.most:
            return None
        del self._kept[tuple(command)]
        with ExitStack() as files:
            for stream in spare.streams:
                files.enter_context(stream)
            with suppress(OSError, LaunchError), spare.given:
                if spare.program == _program(spare.path):
                    running = self._launcher.use(spare.waiting, limit, lambda: _give(spare, given))
                    files.pop_all()
                    return running, spare.streams
        with suppress(LaunchError):
            # It ends, as its input has.
            self._launcher.use(spare.waiting, _LEAVING, lambda: None)
        return None

    def drop(self, command: Sequence[str]) -> None:
        """Has the one that waits end."""
        if tuple(command) in self._kept:
            self.start(command, _LEAVING, b"")

    def close(self) -> None:
        """Has all of them end."""
        for command in [*self._kept]:
            self.drop(command)


def _give(spare: _Spare, text: bytes) -> None:
    with spare.given:
        if spare.given.write(text) != len(text):
            raise BlockingIOError("it does not take its input")


def memory_file() -> BinaryIO:
    """An unnamed file in memory: it works with a full disk and a read-only file system."""
    return open(os.memfd_create("ipvs-node-agent"), "w+b", buffering=0)


def _program(path: str) -> _Program:
    """Which program is there. Raises OSError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_ctime_ns
