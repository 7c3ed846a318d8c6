"""Commands are started by a process of its own, and how they end is told, whatever happens."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import pytest

from ipvs_node_agent.processes import launcher
from ipvs_node_agent.processes.launcher import End, Launcher, LaunchError, Running
from tests.support.places import PROGRAM
from tests.support.processes import children, has_ended
from tests.support.waiting import eventually

FOR_LONG = 60.0


def memory_file() -> BinaryIO:
    return open(os.memfd_create("stream"), "w+b", buffering=0)


class Shell:
    """Runs scripts by a launcher, with files as their standard streams."""

    def __init__(self, launcher: Launcher, files: ExitStack) -> None:
        self.launcher = launcher
        self.streams = [files.enter_context(memory_file()) for _ in range(3)]

    def start(self, script: str, limit: float = FOR_LONG) -> Running:
        return self.launcher.start(["/bin/sh", "-c", script], limit, self.streams)

    def run(self, script: str) -> End:
        return self.start(script).end()

    def printed(self, stream: int = 1) -> bytes:
        self.streams[stream].seek(0)
        return self.streams[stream].read()


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Launcher({**os.environ, "TOLD": "by the launcher"})
    with ExitStack() as files:
        files.callback(made.close)
        yield Shell(made, files)


def test_a_command_has_the_streams_the_environment_and_a_process_id(shell: Shell) -> None:
    shell.streams[0].write(b"given\n")
    shell.streams[0].seek(0)
    running = shell.start('read line; echo "$line $TOLD $$"; echo complaint >&2')
    assert running.end() == End(0, False)
    assert shell.printed().decode() == f"given by the launcher {running.process}\n"
    assert shell.printed(2) == b"complaint\n"


def test_who_waits_long_says_so_first(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    shell.launcher.busy = lambda: told.append(shell.streams[0].write(b"go on"))
    monkeypatch.setattr(launcher, "_SOON", FOR_LONG)
    assert shell.run("exit 0") == End(0, False)
    assert not told
    monkeypatch.setattr(launcher, "_SOON", 0.05)
    assert shell.run("until [ -s /proc/self/fd/0 ]; do sleep 0.01; done") == End(0, False)
    assert len(told) == 1


def test_something_else_is_waited_for_as_well(shell: Shell) -> None:
    told: list[str] = []
    shell.launcher.busy = lambda: told.append("busy")
    running = shell.start("exec sleep 60")
    ours, its = socket.socketpair()
    with ours, its:
        its.send(b"news")
        assert not running.wait(ours)
        assert not told
    os.kill(running.process, signal.SIGKILL)
    assert running.wait()
    assert running.end().status == -signal.SIGKILL


def test_once_it_is_closed_nobody_can_tell_how_a_command_ended(shell: Shell) -> None:
    running = shell.start("exit 0")
    shell.launcher.close()
    with pytest.raises(LaunchError, match="has ended"):
        running.end()


def test_arguments_pass_no_shell(shell: Shell) -> None:
    odd = ["$(id)", "a b", "'", "*", "", "-x", "\n", "\N{SNOWMAN}"]
    shell.launcher.start(["/usr/bin/printf", "%s|", *odd], FOR_LONG, shell.streams).end()
    assert shell.printed().decode() == "".join(f"{each}|" for each in odd)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 1", 1), ("exit 255", 255), ("kill -9 $$", -signal.SIGKILL)]
)
def test_how_it_ended_is_told(script: str, status: int, shell: Shell) -> None:
    assert shell.run(script) == End(status, False)


def test_what_takes_too_long_is_killed(shell: Shell) -> None:
    assert shell.start("exec sleep 60", limit=0.2).end() == End(-signal.SIGKILL, True)
    assert shell.run("true") == End(0, False)


def test_what_prints_without_end_is_ended_before_it_fills_the_memory(shell: Shell) -> None:
    assert shell.run("exec yes").status != 0
    assert os.fstat(shell.streams[1].fileno()).st_size == 256 << 20


def test_what_cannot_be_started_says_why(shell: Shell, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    with pytest.raises(LaunchError, match="No such file"):
        shell.launcher.start([str(script)], FOR_LONG, shell.streams)
    assert shell.run("true") == End(0, False)


def test_one_starts_after_the_other_has_ended(shell: Shell) -> None:
    first = shell.start("sleep 0.2; echo first; exit 3")
    second = shell.start("echo second")
    assert first.end() == End(3, False)
    assert second.end() == End(0, False)
    assert shell.printed() == b"first\nsecond\n"
    # It is told as often as somebody asks.
    assert first.end() == End(3, False)


def test_where_its_process_dies_that_is_told_and_another_one_goes_on(shell: Shell) -> None:
    before = children()
    running = shell.start("exec sleep 60")
    (process,) = children() - before
    os.kill(process, signal.SIGKILL)
    with pytest.raises(LaunchError, match="has ended"):
        running.end()
    os.kill(running.process, signal.SIGKILL)
    assert shell.run("true") == End(0, False)
    # Between commands nobody notices at all.
    (process,) = children() - before
    os.kill(process, signal.SIGKILL)
    eventually(lambda: has_ended(process), "its end")
    assert shell.run("true") == End(0, False)


def test_the_process_can_begin_before_the_first_command(shell: Shell) -> None:
    before = children()
    shell.launcher.prepare()
    begun = children() - before
    assert len(begun) == 1
    shell.run("true")
    shell.launcher.prepare()
    assert children() - before == begun


def test_to_prepare_takes_no_answer_from_who_has_not_read_it(shell: Shell) -> None:
    running = shell.start("true")
    eventually(lambda: select.select([running], [], [], 0)[0], "its end")
    shell.launcher.prepare()
    assert running.end() == End(0, False)


def test_another_python_in_place_of_this_one_does_not_look_for_this_ones_modules(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade of the system brings one, under a running agent."""
    (tmp_path / "socket.py").write_text("raise ImportError('of another Python')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(LaunchError):
        shell.run("true")
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-27")
    assert shell.run("true") == End(0, False)


def test_it_ends_with_the_agent(shell: Shell) -> None:
    before = children()
    shell.run("true")
    (process,) = children() - before
    shell.launcher.close()
    assert not Path(f"/proc/{process}").exists()
    assert children() == before


def test_one_that_nobody_needs_ends_and_the_next_command_has_another(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    shell.launcher = Launcher(os.environ, idle=0.3)
    # Each time it is about to end, so each command has a new one.
    for _ in range(2):
        assert shell.run("exec sleep 0.5") == End(0, False)
    monkeypatch.setattr(launcher, "_SPARE", 0.0)
    assert shell.run("true") == End(0, False)
    eventually(lambda: children() == before, "its end, and nothing left of it")
    assert shell.run("true") == End(0, False)
    shell.launcher.close()
    assert children() == before


def test_it_leaves_no_bytecode_where_that_is_not_wanted(tmp_path: Path) -> None:
    """prerm calls `cleanup` while the package is being removed."""
    shutil.copytree(PROGRAM, tmp_path / PROGRAM.name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import os; from ipvs_node_agent.processes.launcher import Launcher;"
        " null = open(os.devnull, 'r+b');"
        "Launcher(os.environ).start(['/bin/true'], 9, [null] * 3).end()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not [*tmp_path.rglob("*.pyc")]
