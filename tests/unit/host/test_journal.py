"""Log lines in the journal: each line has its level, and nothing else is written so."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_node_agent.host import journal
from tests.support.places import REPOSITORY


@pytest.mark.parametrize(
    ("level", "sign"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
        (logging.CRITICAL, "<3>"),
    ],
)
def test_each_line_has_the_level_that_the_journal_knows(level: int, sign: str) -> None:
    record = logging.LogRecord("name", level, "path", 1, "one\ntwo %s", ("words",), None)
    assert journal.Formatter("%(message)s").format(record) == f"{sign}one\n{sign}two words"


def test_a_traceback_is_of_one_level() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("name", logging.DEBUG, "path", 1, "bug", (), sys.exc_info())
    lines = journal.Formatter("%(message)s").format(record).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<7>") for line in lines)


def failing_start(directory: Path, stream: str) -> str:
    """What `run` writes to a file where the configuration is missing."""
    with (directory / "errors").open("w+") as errors:
        status = os.fstat(errors.fileno())
        named = stream.format(f"{status.st_dev}:{status.st_ino}")
        done = subprocess.run(
            [sys.executable, "-m", "ipvs_node_agent", "--config", "/none.yaml", "run"],
            stderr=errors,
            cwd=REPOSITORY,
            env={**os.environ, "JOURNAL_STREAM": named},
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        errors.seek(0)
        return errors.read()


WHY = "ipvs-node-agent: configuration /none.yaml: no such file (name a file that exists"


def test_why_a_start_failed_is_an_error_in_the_journal(tmp_path: Path) -> None:
    assert failing_start(tmp_path, "{}").startswith(f"<3>{WHY}")


@pytest.mark.parametrize("stream", ["", "0:0", "nonsense"])
def test_what_does_not_go_to_the_journal_has_no_signs(tmp_path: Path, stream: str) -> None:
    """A service's children inherit the variable, and may write somewhere else."""
    assert failing_start(tmp_path, stream).startswith(WHY)


def test_without_a_standard_error_there_is_no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w") as closed:
        pass
    assert not journal.is_at(closed, {"JOURNAL_STREAM": "1:2"})
