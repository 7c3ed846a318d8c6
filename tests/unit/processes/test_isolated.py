"""A module of ours at work in a process of its own, which never outlives its block."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from ipvs_node_agent.processes import isolated
from ipvs_node_agent.processes.isolated import Child, Replacement
from tests.support.waiting import eventually

MODULE = """
import os, subprocess, sys, time
from ipvs_node_agent.processes import isolated

def main(leash, what):
    isolated.follow(leash)
    if what == "hang":
        child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        print(os.getpid(), child.pid, flush=True)
        os.close(1)
        time.sleep(1000)
    while what == "endless":
        sys.stdout.write("x" * 65536)
    sys.stdout.write(what)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that a Child can run."""
    (tmp_path / "at_work.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "at_work"


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_it_writes_is_given_once_it_has_ended(module: str) -> None:
    with Child(module, "some words") as child:
        assert child.said(30.0) == b"some words"


def test_it_ends_with_its_block_and_so_does_all_that_it_started(module: str) -> None:
    before = {*os.listdir("/proc/self/fd")}
    with Child(module, "hang") as child:
        numbers = [int(number) for number in child.said(30.0).split()]
        assert all(map(alive, numbers))
    eventually(lambda: not any(map(alive, numbers)))
    # Whoever ends it late does nobody else any harm.
    child.end()
    # Less is what other tests had left.
    assert {*os.listdir("/proc/self/fd")} <= before


def test_it_has_so_much_time_and_may_say_so_much(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_MOST_SAID", 1 << 20)
    with Child(module, "endless") as child, pytest.raises(ValueError, match="says too much"):
        child.said(30.0)
    began = time.monotonic()
    with Child(module, "hang") as child, pytest.raises(TimeoutError):
        child.said(0.0)
    assert time.monotonic() - began < 10


def test_what_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = {*os.listdir("/proc/self/fd")}
    child = Child("some_module")
    with pytest.raises(FileNotFoundError):
        child.__enter__()
    # Less is what other tests had left.
    assert {*os.listdir("/proc/self/fd")} <= before


def test_that_another_python_is_there_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Debian does it: python3 is a link, to python3.11 before an upgrade of the system."""
    python, replacement = tmp_path / "python3", Replacement()

    def become(version: str) -> list[str]:
        python.unlink(missing_ok=True)
        if version:
            (tmp_path / version).touch()
            python.symlink_to(version)
        caplog.clear()
        for _ in range(2):
            replacement.look()
        return [record.getMessage() for record in caplog.records]

    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(isolated, "_PYTHON", str(tmp_path / "python3.11"))
    assert become("python3.11") == []
    # While it is replaced.
    assert become("") == []
    (said,) = become("python3.13")
    assert f"was replaced by {tmp_path}/python3.13" in said
