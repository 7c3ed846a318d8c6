"""The server that many may connect to: what its answers cost, taken or not.

That nobody keeps it from answering others is shown of the servers that stand on it.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Callable

import pytest

from ipvs_node_agent.observe import boundedserver
from ipvs_node_agent.observe.boundedserver import BoundedServer
from tests.support.waiting import eventually

LARGE = 8 << 20


@contextmanager
def serving(answer: Callable[[bytes], bytes]) -> Iterator[BoundedServer[bytes]]:
    """A server that makes an answer of each line."""

    def question(said: bytes, over: bool) -> bytes | None:
        return said if over or said.endswith(b"\n") else None

    listener = socket.create_server(("127.0.0.1", 0))
    server = BoundedServer(listener, question, answer, 10, 20, 1)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def ask(server: BoundedServer[bytes], line: bytes) -> socket.socket:
    made = socket.create_connection(server._listener.getsockname(), 10)
    made.sendall(line)
    return made


def rest(one: socket.socket) -> int:
    """How many bytes still come."""
    count = 0
    while more := one.recv(1 << 16):
        count += len(more)
    return count


def test_many_who_take_nothing_cost_so_much_memory_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each comes when the answer of the one before was handed out, and has another one made."""
    monkeypatch.setattr(boundedserver, "_MOST_HELD", 20 << 20)
    with serving(lambda asked: bytes(LARGE)) as server, ExitStack() as stack:
        for _ in range(10):
            last = stack.enter_context(ask(server, b"large\n"))
            assert last.recv(1) == b"\0"
        # Those that took nothing for longest went: two of these fit.
        eventually(lambda: len(server._connections) <= 2)
        assert rest(last) == LARGE - 1


def test_many_who_take_nothing_of_the_same_answer_cost_no_more_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boundedserver, "_MOST_HELD", 1 << 20)
    text = bytes(LARGE)
    with serving(lambda asked: text) as server, ExitStack() as stack:
        all_of_them = [stack.enter_context(ask(server, b"large\n")) for _ in range(10)]
        assert [rest(one) for one in all_of_them] == [LARGE] * 10


def test_an_answer_is_let_go_of_once_it_is_given() -> None:
    """With many Services it has megabytes."""
    text = bytes(LARGE)
    before = sys.getrefcount(text)
    with serving(lambda asked: text) as server:
        for _ in range(3):
            with ask(server, b"large\n") as one:
                assert rest(one) == LARGE
        eventually(lambda: sys.getrefcount(text) == before, timeout=2)
