"""The HTTP server: what it answers, and that nobody can keep it from answering others."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from ipvs_node_agent import webserver
from ipvs_node_agent.boundedserver import BoundedServer
from ipvs_node_agent.webserver import Page, WebServer
from tests.support.dripping import dripping
from tests.support.sockets import free_port
from tests.support.waiting import eventually


def pages(path: str) -> Page:
    if path == "/bug":
        raise ValueError("a mistake")
    if path == "/page-of-64-megabytes":
        return Page(200, bytes(64 << 20))
    return Page(200, f"this is {path}\n".encode()) if path.startswith("/page") else Page(404, b"?")


class Served:
    """A server with a port of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.server = WebServer(f"{host}:{self.port}", pages)
        self.reach = "::1" if host == "[::1]" else "127.0.0.1"

    def connect(self) -> socket.socket:
        return socket.create_connection((self.reach, self.port), 10)

    def up(self) -> None:
        def answers() -> bool:
            try:
                self.connect().close()
            except OSError:
                return False
            return True

        eventually(answers)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as one:
            one.sendall(request)
            return rest(one)


def rest(one: socket.socket) -> bytes:
    """All that still comes."""
    found = b""
    while True:
        try:
            more = one.recv(65536)
        except ConnectionResetError:
            return found
        if not more:
            return found
        found += more


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(webserver, "_RETRY_SECONDS", 0.05)
    made = Served()
    made.up()
    yield made
    made.server.stop()


def test_a_page_is_served_with_its_length(served: Served) -> None:
    head, _, body = served.ask(get("/page?x=1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 14\r\n" in head
    assert b"\r\nConnection: close" in head
    assert body == b"this is /page\n"


def test_head_is_a_page_without_its_body(served: Served) -> None:
    head, _, body = served.ask(get("/page", "HEAD")).partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: 14\r\n" in head
    assert body == b""


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (get("/other"), 404),
        (get("/page", "POST"), 405),
        (get("/page", "DELETE"), 405),
        (get("page"), 400),
        (get("/a b"), 400),
        (get("/\x00"), 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (get("/bug"), 500),
    ],
)
def test_what_cannot_be_served_is_an_error(
    served: Served, request_text: bytes, status: int
) -> None:
    assert served.ask(request_text).startswith(f"HTTP/1.1 {status} ".encode())
    assert served.ask(get("/page")).endswith(b"this is /page\n")


def test_a_mistake_in_a_page_is_not_shown_to_clients(served: Served) -> None:
    assert b"mistake" not in served.ask(get("/bug"))


def test_a_mistake_in_a_page_is_said_in_one_line_and_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        served.ask(get("/bug"))
    (record,) = caplog.records
    assert record.getMessage() == "cannot make /bug: ValueError: a mistake (please report it)"
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)


def test_a_request_that_does_not_end_in_time_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_REQUEST_SECONDS", 0.2)
    with served.connect() as one, dripping(lambda: one, b"G"):
        assert rest(one)[:12] in (b"HTTP/1.1 408", b"")


def test_many_who_say_nothing_only_delay_the_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_REQUEST_SECONDS", 0.3)
    before = threading.active_count()
    silent = [served.connect() for _ in range(60)]
    try:
        assert served.ask(get("/page")).endswith(b"this is /page\n")
        assert threading.active_count() <= before + BoundedServer.at_once
    finally:
        for one in silent:
            one.close()


def test_who_does_not_take_the_answer_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_ANSWER_SECONDS", 0.2)
    before = threading.active_count()
    with served.connect() as one:
        one.sendall(get("/page-of-64-megabytes"))
        one.recv(1)
        eventually(lambda: threading.active_count() <= before)


def test_an_ipv6_address_is_in_brackets() -> None:
    made = Served("[::1]")
    made.up()
    assert made.ask(get("/page")).endswith(b"this is /page\n")
    made.server.stop()


def test_without_a_host_all_addresses_are_served() -> None:
    made = Served("")
    made.up()
    assert made.ask(get("/page")).endswith(b"this is /page\n")
    made.server.stop()


def test_an_address_that_is_taken_is_said_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_RETRY_SECONDS", 0.02)
    caplog.set_level(logging.INFO)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        real, tries = webserver._resolved, []

        def resolved(text: str) -> Any:
            tries.append(text)
            return real(text)

        monkeypatch.setattr(webserver, "_resolved", resolved)
        server = WebServer(address, pages)
        eventually(lambda: len(tries) > 5)
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warning == (
            f"cannot serve metrics and health at {address}: Address already in use"
            " (trying again; see metricsBindAddress)"
        )
    eventually(lambda: f"metrics and health are served at {address}" in caplog.text)
    server.stop()


def test_a_server_takes_the_place_of_another_at_the_same_port(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.server.stop()
    after = WebServer(f"localhost:{served.port}", pages, served.server)
    eventually(lambda: not served.server._thread.is_alive())
    served.up()
    assert served.ask(get("/page")).endswith(b"this is /page\n")
    assert "cannot serve" not in caplog.text
    after.stop()
    after.join()
    with pytest.raises(ConnectionRefusedError):
        served.connect()
