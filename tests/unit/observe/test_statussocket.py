"""The socket that tells the status: who may ask, and what one hears from whom."""

from __future__ import annotations

import grp
import logging
import os
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Callable

import pytest

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.observe import status, statussocket
from ipvs_node_agent.observe.status import Report
from ipvs_node_agent.observe.statussocket import NAME, StatusSocket, Unanswered, ask
from tests.support.dripping import dripping

TOLD = Report(status.IN_SYNC, "All is well", 1_764_072_000.0, "0.1.0", "worker-1", "nft")


@contextmanager
def telling(directory: Path, answer: Callable[[], Report] = lambda: TOLD) -> Iterator[None]:
    """Meanwhile an agent tells it there."""
    made = StatusSocket(directory, answer)
    made.start()
    try:
        yield
    finally:
        made.stop()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Path]:
    """A directory in which an agent tells TOLD."""
    with telling(tmp_path):
        yield tmp_path


@pytest.fixture
def other(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens where an agent would, and is none."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / NAME))
        made.listen()
        yield made


def unanswered(directory: Path) -> Unanswered:
    with pytest.raises(Unanswered) as raised:
        ask(directory)
    assert raised.value.exit_status == 1
    return raised.value


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_owner_and_the_group_may_ask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    with telling(tmp_path):
        os.umask(before)
        found = os.stat(tmp_path / NAME)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    if os.geteuid() == 0:
        assert grp.getgrgid(found.st_gid).gr_name == "adm"


def test_a_node_without_the_group_has_the_socket_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statussocket, "GROUP", "nobody-has-this-group")
    with telling(tmp_path):
        assert ask(tmp_path) == TOLD


def test_whoever_asks_is_told_the_report_also_at_a_path_longer_than_a_sockets_name(
    tmp_path: Path,
) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    with telling(deep):
        assert [ask(deep) for _ in range(3)] == [TOLD] * 3


def test_a_socket_that_a_killed_agent_left_is_replaced_and_who_stops_leaves_none(
    told: Path,
) -> None:
    with telling(told, lambda: Report(status.NOT_IN_SYNC, "Another")):
        assert ask(told).sentence == "Another"
    assert unanswered(told).state == status.NOT_RUNNING
    assert not (told / NAME).exists()


def test_without_an_agent_it_is_not_running(tmp_path: Path) -> None:
    for nothing in (tmp_path, tmp_path / "not-even-a-directory"):
        assert unanswered(nothing).state == status.NOT_RUNNING
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / NAME))
    error = unanswered(tmp_path)
    assert str(error) == "status: the agent is not running (journalctl -u ipvs-node-agent)"


@pytest.mark.parametrize("pause", [None, 0.02, 0.0], ids=["silent", "drips", "floods"])
def test_an_agent_that_does_not_answer_hangs(
    tmp_path: Path, other: socket.socket, monkeypatch: pytest.MonkeyPatch, pause: float | None
) -> None:
    monkeypatch.setattr(statussocket, "_ASKING_SECONDS", 0.3)
    with nullcontext() if pause is None else dripping(lambda: other.accept()[0], b" ", pause):
        error = unanswered(tmp_path)
    assert error.state == status.HANGING
    assert "runs but has not answered" in str(error)
    assert "systemctl restart ipvs-node-agent" in error.hint


def test_a_stranger_is_refused(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(RefusedError) as raised:
        ask(told)
    assert raised.value.hint == "be root or in the group adm"


LONG = Report(status.IN_SYNC, "x" * (4 << 20))


def test_who_asks_and_does_not_listen_keeps_nobody_from_asking(tmp_path: Path) -> None:
    with telling(tmp_path, lambda: LONG), ExitStack() as deaf:
        for _ in range(300):
            deaf.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / NAME))
        for _ in range(10):
            assert ask(tmp_path).state == status.IN_SYNC


def test_who_does_not_listen_for_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statussocket, "_ANSWER_SECONDS", 0.2)
    with telling(tmp_path, lambda: LONG), socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(tmp_path / NAME))
        poll = select.poll()
        poll.register(deaf, select.POLLRDHUP)
        assert poll.poll(10_000)


def test_a_socket_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with telling(tmp_path / "missing"):
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.endswith("so `status` will not work: No such file or directory")


def test_an_answer_that_fails_is_no_status(tmp_path: Path) -> None:
    def fail() -> Report:
        raise ValueError("a mistake")

    with (
        telling(tmp_path, fail),
        pytest.raises(RefusedError, match="sends something other than a status"),
    ):
        ask(tmp_path)
