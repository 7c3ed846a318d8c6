"""Pages of this node's own programs: what is no page is nothing."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ipvs_node_agent.host import kubeproxy
from ipvs_node_agent.host.kubeproxy import page
from tests.support.dripping import dripping


class Refusing(BaseHTTPRequestHandler):
    """Knows no method, and says so at length."""

    def log_message(self, *_: object) -> None:
        pass


def test_an_error_is_no_page_whatever_it_says_and_neither_is_silence() -> None:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    address = ("127.0.0.1", server.server_port)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert page(address, "/proxyMode") == ""
    thread.join()
    server.server_close()
    assert page(address, "/proxyMode") == ""


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
            assert time.monotonic() - began < 2


def test_an_answer_without_an_end_has_so_many_bytes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as endless:

        def answer() -> None:
            one, _ = endless.accept()
            with one:
                one.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    while True:
                        one.sendall(b"x" * 65536)
                except OSError:  # It has seen enough.
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        assert len(page(endless.getsockname(), "/")) in range(60_000, 65_537)
        thread.join()
