"""What the service manager is told, on a real socket, and how the journal reads log lines."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_node_agent.host.systemd import JournalFormatter, ServiceManager, is_journal
from tests.support.clock import Clock
from tests.support.notifysocket import NotifySocket
from tests.support.places import REPOSITORY


@pytest.fixture
def told(tmp_path: Path) -> NotifySocket:
    return NotifySocket(str(tmp_path / "notify"))


def manager(told: NotifySocket, clock: Clock | None = None, **variables: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": told.name, **variables}, clock or Clock())


@pytest.mark.parametrize("name", ["{tmp}/notify", "@ipvs-node-agent-test-{pid}"])
def test_each_message_is_a_datagram_of_its_own(tmp_path: Path, name: str) -> None:
    told = NotifySocket(name.format(tmp=tmp_path, pid=os.getpid()))
    it = manager(told)
    it.status("Waiting: for nothing")
    it.ready()
    it.stopping()
    assert told.messages() == ["STATUS=Waiting: for nothing", "READY=1", "STOPPING=1"]


def test_without_a_service_manager_nothing_happens() -> None:
    it = ServiceManager({})
    it.ready()
    it.alive()
    with it.reloading():
        it.status("In sync")
    it.stopping()


def test_children_get_none_of_the_variables() -> None:
    variables = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    ServiceManager(variables)
    assert variables == {"PATH": "/bin"}


def test_a_sentence_is_sent_when_it_is_news_and_is_one_line(told: NotifySocket) -> None:
    it = manager(told)
    for sentence in ("one", "one", "two\nREADY=1", "one"):
        it.status(sentence)
    assert told.messages() == ["STATUS=one", "STATUS=two\\nREADY=1", "STATUS=one"]


def test_the_time_limit_of_the_start_is_extended_until_it_is_ready(told: NotifySocket) -> None:
    clock = Clock()
    it = manager(told, clock)
    for _ in range(4):
        it.alive()
        clock.now += 15
    assert told.messages() == ["EXTEND_TIMEOUT_USEC=120000000"] * 2


def test_the_watchdog_hears_four_signs_in_its_time_from_readiness_on(told: NotifySocket) -> None:
    clock = Clock()
    it = manager(told, clock, WATCHDOG_USEC="60000000", WATCHDOG_PID=str(os.getpid()))
    it.alive()
    it.ready()
    told.messages()
    for _ in range(60):
        clock.now += 1
        it.alive()
    assert told.messages() == ["WATCHDOG=1"] * 4


@pytest.mark.parametrize(
    "variables", [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}]
)
def test_a_watchdog_that_is_not_ours_is_left_alone(
    variables: dict[str, str], told: NotifySocket
) -> None:
    it = ServiceManager({"NOTIFY_SOCKET": told.name, **variables})
    it.ready()
    it.alive()
    assert told.messages() == ["READY=1"]


def test_a_reload_is_told_with_its_time_and_its_end_once_it_is_ready(told: NotifySocket) -> None:
    it = manager(told)
    with it.reloading():
        pass
    assert not told.messages()
    it.ready()
    told.messages()
    with it.reloading():
        (begun,) = told.messages()
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=[1-9]\d*", begun)
    assert told.messages() == ["READY=1"]


@pytest.mark.parametrize("name", ["/nonexistent/notify", "no/such", "x" * 200, "@", "a\0b"])
def test_a_socket_that_nobody_listens_to_ends_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager({"NOTIFY_SOCKET": name}).ready()
    (record,) = caplog.records
    assert record.getMessage().startswith("cannot notify the service manager of READY: ")


def test_a_service_manager_that_does_not_read_does_not_hold_the_agent_up(
    told: NotifySocket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ipvs_node_agent.host.systemd._SEND_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sender.sendto(b"x", told.name):
                pass
        manager(told).ready()
    assert "cannot notify the service manager of READY: timed out" in caplog.text


def test_a_service_manager_that_cannot_be_told_is_said_once_until_it_can(
    told: NotifySocket, caplog: pytest.LogCaptureFixture
) -> None:
    made = manager(told)
    name, away = Path(told.name), Path(f"{told.name}.away")
    for count in (1, 2):
        name.rename(away)
        made.status(f"one {count}")
        made.status(f"two {count}")
        assert len(caplog.records) == count
        away.rename(name)
        made.status(f"three {count}")


# The journal


SIGNS = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<3>"}


@pytest.mark.parametrize(("level", "sign"), SIGNS.items())
def test_each_line_has_the_level_that_the_journal_knows(level: str, sign: str) -> None:
    number = getattr(logging, level)
    record = logging.LogRecord("name", number, "path", 1, "one\ntwo %s", ("words",), None)
    assert JournalFormatter("%(message)s").format(record) == f"{sign}one\n{sign}two words"


def test_a_traceback_is_of_one_level() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("name", logging.DEBUG, "path", 1, "bug", (), sys.exc_info())
    lines = JournalFormatter("%(message)s").format(record).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<7>") for line in lines)


@pytest.mark.parametrize(
    ("stream", "sign"), [("{}", "<3>"), ("", ""), ("0:0", ""), ("nonsense", "")]
)
def test_why_a_start_failed_has_a_level_where_it_goes_to_the_journal(
    tmp_path: Path, stream: str, sign: str
) -> None:
    """A service's children inherit the variable, and may write somewhere else."""
    with (tmp_path / "errors").open("w+") as errors:
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
        errors.seek(0)
        said = errors.read()
    assert done.returncode == 2
    assert said.startswith(f"{sign}ipvs-node-agent: configuration /none.yaml: no such file (name")


def test_without_a_standard_error_there_is_no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w") as closed:
        pass
    assert not is_journal(closed, {"JOURNAL_STREAM": "1:2"})
