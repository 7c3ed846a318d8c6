"""What the service manager is told: the protocol, on a real socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

import pytest

from ipvs_node_agent.host.systemd import ServiceManager
from tests.support.notifysocket import NotifySocket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told(tmp_path: Path) -> NotifySocket:
    return NotifySocket(str(tmp_path / "notify"))


def manager(told: NotifySocket, clock: Clock | None = None, **variables: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": told.name, **variables}, clock or Clock())


def test_each_message_is_a_datagram_of_its_own(told: NotifySocket) -> None:
    it = manager(told)
    it.status("Waiting: for nothing")
    it.ready()
    it.stopping()
    assert told.messages() == ["STATUS=Waiting: for nothing", "READY=1", "STOPPING=1"]


def test_a_socket_outside_of_the_file_system_will_do() -> None:
    told = NotifySocket(f"@ipvs-node-agent-test-{os.getpid()}")
    manager(told).ready()
    assert told.messages() == ["READY=1"]


def test_without_a_service_manager_nothing_happens() -> None:
    it = ServiceManager({})
    it.ready()
    it.alive()
    with it.reloading():
        it.status("In sync")
    it.stopping()


def test_children_get_none_of_the_variables(told: NotifySocket) -> None:
    variables = {
        "NOTIFY_SOCKET": told.name,
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
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


def test_a_reload_is_told_with_its_time_and_its_end(told: NotifySocket) -> None:
    it = manager(told)
    it.ready()
    told.messages()
    with it.reloading():
        (begun,) = told.messages()
        kind, time = begun.split("\n")
        assert kind == "RELOADING=1"
        assert time.partition("=")[0] == "MONOTONIC_USEC"
        assert int(time.partition("=")[2]) > 0
    assert told.messages() == ["READY=1"]


def test_a_reload_before_it_is_ready_says_nothing_of_readiness(told: NotifySocket) -> None:
    with manager(told).reloading():
        pass
    assert not told.messages()


@pytest.mark.parametrize("name", ["/nonexistent/notify", "no/such", "x" * 200, "@", "a\0b"])
def test_a_socket_that_nobody_listens_to_ends_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ServiceManager({"NOTIFY_SOCKET": name}).ready()
    (record,) = caplog.records
    assert record.getMessage().startswith("cannot tell the service manager READY: ")


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
    assert "cannot tell the service manager READY: timed out" in caplog.text


def test_a_service_manager_that_cannot_be_told_is_said_once_until_it_can(
    told: NotifySocket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    made = ServiceManager({"NOTIFY_SOCKET": told.name})
    name, away = Path(told.name), Path(f"{told.name}.away")
    for count in (1, 2):
        name.rename(away)
        made.status(f"one {count}")
        made.status(f"two {count}")
        assert len(caplog.records) == count
        away.rename(name)
        made.status(f"three {count}")
