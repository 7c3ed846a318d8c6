"""A command begins before it is needed, and is as good as one that is started when it is."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipvs_node_agent.processes import launcher
from ipvs_node_agent.processes.launcher import End, Launcher, LaunchError
from ipvs_node_agent.processes.spares import Spares, memory_file
from tests.support.processes import children, has_ended
from tests.support.waiting import eventually

NAME, FOR_LONG = "a program", 60.0
F_SETPIPE_SZ = 1031
# In this many seconds it would look more than once.
_WINDOW = 2.5


class Bed:
    """A program that waits for its input, as those do that are kept ready."""

    def __init__(self, made: Launcher, files: ExitStack, program: Path) -> None:
        self.launcher, self.files = made, files
        self.spares = Spares(made, lambda name: str(program) if name == NAME else name)
        self.command = [NAME, "an argument"]
        self.begun = program.with_name("begun")
        self.write(program, 'read line; echo "$1: $line"; exit 3')
        self.run("exit 0")

    def write(self, program: Path, script: str) -> None:
        # As a package does it, which puts another file in its place.
        fresh = program.with_name("fresh")
        fresh.write_text(f"#!/bin/sh\necho $$ >> {self.begun}\n{script}\n")
        fresh.chmod(0o700)
        fresh.rename(program)

    def run(self, script: str) -> End:
        """Another command of the same launcher."""
        with ExitStack() as files:
            streams = [files.enter_context(memory_file()) for _ in range(3)]
            return self.launcher.start(["/bin/sh", "-c", script], FOR_LONG, streams).end()

    def keep(self) -> int:
        """Has the command begin, and gives its process id once it waits."""
        before = len(self.processes)
        self.spares.keep(self.command)
        eventually(lambda: len(self.processes) > before, "one more process")
        return self.processes[-1]

    @property
    def processes(self) -> list[int]:
        return [*map(int, self.begun.read_text().split())] if self.begun.exists() else []

    def give(self, text: bytes, limit: float = FOR_LONG) -> tuple[End, bytes, int] | None:
        """How the one that waited ends, what it prints, and which process it was."""
        started = self.spares.start(self.command, limit, text)
        if started is None:
            return None
        running, (printed, complaints) = started
        with printed, complaints:
            end = running.end()
            printed.seek(0)
            return end, printed.read(), running.process


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Launcher(os.environ)
    with ExitStack() as files:
        files.callback(made.close)
        yield Bed(made, files, tmp_path / "program")


def test_it_is_the_process_that_was_there_and_does_what_it_is_given(bed: Bed) -> None:
    there = bed.keep()
    assert bed.give(b"given\n") == (End(3, False), b"an argument: given\n", there)
    assert bed.processes == [there]


def test_it_is_there_for_one_time(bed: Bed) -> None:
    bed.keep()
    bed.give(b"\n")
    assert bed.give(b"\n") is None
    assert bed.give(b"\n") is None
    again = bed.keep()
    assert bed.give(b"again\n") == (End(3, False), b"an argument: again\n", again)


def test_it_is_kept_once(bed: Bed) -> None:
    there = bed.keep()
    bed.spares.keep(bed.command)
    assert bed.run("exit 0") == End(0, False)
    assert bed.processes == [there]


def test_others_run_meanwhile(bed: Bed) -> None:
    there = bed.keep()
    assert bed.run("exit 5") == End(5, False)
    assert bed.give(b"late\n") == (End(3, False), b"an argument: late\n", there)
    assert bed.run("exit 5") == End(5, False)


def test_its_time_begins_with_its_input(bed: Bed, tmp_path: Path) -> None:
    bed.write(tmp_path / "program", "read line; exec sleep 60")
    bed.keep()
    began = time.monotonic()
    ended = bed.give(b"\n", limit=0.3)
    assert ended is not None
    assert ended[0] == End(-signal.SIGKILL, True)
    assert time.monotonic() - began >= 0.3


def test_one_that_died_is_not_used(bed: Bed) -> None:
    there = bed.keep()
    os.kill(there, signal.SIGKILL)
    eventually(lambda: has_ended(there), "its end")
    assert bed.give(b"given\n") is None
    assert bed.run("exit 5") == End(5, False)


def test_one_of_a_program_that_was_replaced_is_not_used(bed: Bed, tmp_path: Path) -> None:
    there = bed.keep()
    bed.write(tmp_path / "program", "exit 0")
    assert bed.give(b"given\n") is None
    assert bed.run("exit 5") == End(5, False)
    eventually(lambda: has_ended(there), "its end")


def test_one_of_a_program_that_was_changed_in_its_place_is_not_used(
    bed: Bed, tmp_path: Path
) -> None:
    bed.keep()
    (tmp_path / "program").chmod(0o600)
    assert bed.give(b"given\n") is None


def test_what_a_pipe_does_not_take_at_once_is_for_another(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives less where a user has many pipes (pipe(7), pipe-user-pages-soft)."""
    pipe = os.pipe

    def narrow() -> tuple[int, int]:
        reading, writing = pipe()
        fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
        return reading, writing

    monkeypatch.setattr(os, "pipe", narrow)
    there = bed.keep()
    assert bed.give(b"." * 4097) is None
    end = bed.give(b"." * 4095 + b"\n")
    assert end is not None
    assert end[2] == there


def test_one_that_does_not_read_holds_nobody_up(bed: Bed) -> None:
    there = bed.keep()
    os.kill(there, signal.SIGSTOP)
    ended = bed.give(b"given\n", limit=0.3)
    assert ended is not None
    assert ended[0] == End(-signal.SIGKILL, True)


def test_where_nobody_can_tell_how_it_ended_it_is_not_run_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = bed.keep()
    (launched,) = children()

    def send(*_: object, **__: object) -> None:
        os.kill(launched, signal.SIGKILL)
        raise LaunchError("it has just died")

    monkeypatch.setattr(launcher, "_send", send)
    with pytest.raises(LaunchError):
        bed.give(b"given\n")
    assert bed.processes == [there]


def test_where_the_process_dies_that_starts_commands_there_is_none(bed: Bed) -> None:
    (launched,) = children()
    bed.keep()
    os.kill(launched, signal.SIGKILL)
    eventually(lambda: has_ended(launched), "its end")
    assert bed.give(b"given\n") is None
    assert bed.run("exit 5") == End(5, False)


def test_what_cannot_begin_will_be_started_when_it_is_needed(bed: Bed, tmp_path: Path) -> None:
    for command in ([str(tmp_path / "missing")], [str(tmp_path)]):
        bed.spares.keep(command)
        assert bed.spares.start(command, FOR_LONG, b"") is None
    assert bed.run("exit 5") == End(5, False)


def test_one_that_is_not_needed_any_more_ends(bed: Bed) -> None:
    there = bed.keep()
    bed.spares.close()
    eventually(lambda: has_ended(there), "its end")
    assert bed.give(b"given\n") is None


def test_it_wakes_nobody_up_while_it_waits(bed: Bed) -> None:
    """A thread of sh's would look once a second, on an idle node for ever."""

    def wakeups() -> int:
        found = 0
        for status in Path(f"/proc/{launched}/task").glob("*/status"):
            (line,) = (x for x in status.read_text().split("\n") if x.startswith("voluntary"))
            found += int(line.split()[1])
        return found

    def rests() -> bool:
        before = wakeups()
        time.sleep(_WINDOW)
        return wakeups() <= before + 1

    (launched,) = children()
    bed.keep()
    # The first look has begun before anybody can stop it.
    eventually(rests, "hardly a wake-up", 20)
