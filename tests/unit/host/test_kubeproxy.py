"""Pages of this node's own programs: what is no page is nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, repeat

import pytest

from ipvs_node_agent.host import kubeproxy
from ipvs_node_agent.host.kubeproxy import page
from tests.support.dripping import dripping


def answered(answer: Iterable[bytes]) -> str:
    """The page of a server that gives `answer` to a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            one, _ = server.accept()
            with one, suppress(OSError):  # It may have seen enough.
                one.recv(65536)
                for piece in answer:
                    one.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        found = page(server.getsockname(), "/proxyMode")
        thread.join()
        return found


def test_an_error_is_no_page_whatever_it_says_and_neither_is_silence() -> None:
    assert answered([b"HTTP/1.1 200 OK\r\n\r\nipvs"]) == "ipvs"
    assert answered([b"HTTP/1.1 501 Unsupported\r\n\r\nipvs"]) == ""
    assert answered([]) == ""
    assert page(("127.0.0.1", 1), "/proxyMode") == ""


def test_an_answer_without_an_end_has_so_many_bytes() -> None:
    endless = chain([b"HTTP/1.1 200 OK\r\n\r\n"], repeat(b"x" * 65536))
    assert len(answered(endless)) in range(60_000, 65_537)


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_an_answer_that_drips_has_no_more_time_than_any_other(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes, drop: bytes
) -> None:
    monkeypatch.setattr(kubeproxy, "_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def accept() -> socket.socket:
            one, _ = slow.accept()
            one.sendall(beginning)
            return one

        with dripping(accept, drop):
            began = time.monotonic()
            assert page(slow.getsockname(), "/") == ""
            assert time.monotonic() - began < 10
