"""The socket that tells the status: who may ask, and what one hears from whom."""

from __future__ import annotations

import grp
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.observe import status, statussocket
from ipvs_node_agent.observe.status import Report
from ipvs_node_agent.observe.statussocket import NAME, StatusSocket, Unanswered, ask
from tests.support.dripping import dripping

TOLD = Report(status.IN_SYNC, "All is well", 1_764_072_000.0, "0.1.0", "worker-1", "nft")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Path]:
    """A directory in which an agent tells TOLD."""
    made = StatusSocket(tmp_path, lambda: TOLD)
    yield tmp_path
    made.stop()


def unanswered(directory: Path) -> Unanswered:
    with pytest.raises(Unanswered) as raised:
        ask(directory)
    assert raised.value.exit_status == 1
    return raised.value


def test_who_asks_is_told_the_report(told: Path) -> None:
    for _ in range(3):
        assert ask(told) == TOLD


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_owner_and_the_group_may_ask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    made = StatusSocket(tmp_path, lambda: TOLD)
    os.umask(before)
    found = os.stat(tmp_path / NAME)
    made.stop()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    if os.geteuid() == 0:
        assert grp.getgrgid(found.st_gid).gr_name == "adm"


def test_a_node_without_the_group_has_the_socket_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statussocket, "GROUP", "nobody-has-this-group")
    made = StatusSocket(tmp_path, lambda: TOLD)
    assert ask(tmp_path) == TOLD
    made.stop()


def test_a_path_may_be_longer_than_a_sockets_name(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    made = StatusSocket(deep, lambda: TOLD)
    assert ask(deep) == TOLD
    made.stop()


def test_a_socket_that_a_killed_agent_left_is_replaced(told: Path) -> None:
    made = StatusSocket(told, lambda: Report(status.NOT_IN_SYNC, "Another"))
    assert ask(told).sentence == "Another"
    made.stop()


def test_without_an_agent_it_is_not_running(tmp_path: Path) -> None:
    assert unanswered(tmp_path).state == status.NOT_RUNNING
    assert unanswered(tmp_path / "not-even-a-directory").state == status.NOT_RUNNING
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / NAME))
    error = unanswered(tmp_path)
    assert str(error) == "status: the agent is not running (journalctl -u ipvs-node-agent)"


def test_an_agent_that_was_stopped_leaves_no_socket(told: Path) -> None:
    made = StatusSocket(told, lambda: TOLD)
    made.stop()
    assert unanswered(told).state == status.NOT_RUNNING
    assert not (told / NAME).exists()


def test_an_agent_that_does_not_answer_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statussocket, "_ASKING_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / NAME))
        silent.listen()
        error = unanswered(tmp_path)
    assert error.state == status.HANGING
    assert "runs and does not answer" in str(error)
    assert "systemctl restart ipvs-node-agent" in error.hint


@pytest.mark.parametrize("pause", [0.02, 0.0])
def test_an_answer_that_drips_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setattr(statussocket, "_ASKING_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(tmp_path / NAME))
        slow.listen()
        with dripping(lambda: slow.accept()[0], b" ", pause):
            assert unanswered(tmp_path).state == status.HANGING


def test_what_is_no_status_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / NAME))
        other.listen()

        def chatter() -> None:
            one, _ = other.accept()
            one.sendall(b"220 mail ready\r\n")
            one.close()

        thread = threading.Thread(target=chatter)
        thread.start()
        with pytest.raises(RefusedError, match="tells something else than a status"):
            ask(tmp_path)
        thread.join()


def test_a_stranger_is_refused(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(RefusedError) as raised:
        ask(told)
    assert raised.value.hint == "be root or in the group adm"


def test_who_asks_and_does_not_listen_keeps_nobody_from_asking(tmp_path: Path) -> None:
    long = Report(status.IN_SYNC, "x" * (4 << 20))
    made = StatusSocket(tmp_path, lambda: long)
    deaf = []
    for _ in range(300):
        deaf.append(socket.socket(socket.AF_UNIX))
        deaf[-1].connect(str(tmp_path / NAME))
    for _ in range(10):
        assert ask(tmp_path).state == status.IN_SYNC
    for one in deaf:
        one.close()
    made.stop()


def test_who_does_not_listen_for_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statussocket, "_ANSWER_SECONDS", 0.2)
    made = StatusSocket(tmp_path, lambda: Report(status.IN_SYNC, "x" * (4 << 20)))
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(tmp_path / NAME))
        poll = select.poll()
        poll.register(deaf, select.POLLRDHUP)
        assert poll.poll(10_000)
    made.stop()


def test_a_socket_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = StatusSocket(tmp_path / "missing", lambda: TOLD)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.endswith("so `status` will not work: No such file or directory")
    made.stop()


def test_an_answer_that_fails_is_no_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Report:
        raise ValueError("a mistake")

    made = StatusSocket(tmp_path, fail)
    with pytest.raises(RefusedError, match="something else than a status"):
        ask(tmp_path)
    made.stop()
