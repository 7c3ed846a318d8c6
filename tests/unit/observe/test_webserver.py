"""The HTTP server: what it answers, and that nobody can keep it from answering others."""

from __future__ import annotations

import logging
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from ipvs_node_agent.observe import webserver
from ipvs_node_agent.observe.boundedserver import MOST_CONNECTIONS
from ipvs_node_agent.observe.webserver import Page, Pages, WebServer
from tests.support.dripping import dripping
from tests.support.meanwhile import meanwhile
from tests.support.places import REPOSITORY
from tests.support.sockets import free_port
from tests.support.waiting import eventually


def pages(path: str) -> Page:
    if path == "/bug":
        raise ValueError("a mistake")
    if path == "/page-of-8-megabytes":
        return Page(200, bytes(8 << 20))
    return Page(200, f"this is {path}\n".encode()) if path.startswith("/page") else Page(404, b"?")


class Served:
    """A server with a port of its own, until `stop`."""

    def __init__(self, host: str = "127.0.0.1", pages: Pages = pages) -> None:
        self.address = (host.strip("[]") or "127.0.0.1", free_port())
        self.server = WebServer(f"{host}:{self.address[1]}", pages)
        self.server.start()
        eventually(lambda: self.server._server)

    @property
    def connections(self) -> int:
        """How many the server has."""
        assert self.server._server is not None
        return len(self.server._server._connections)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 10)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as one:
            one.sendall(request)
            return rest(one)


@contextmanager
def serving(host: str = "127.0.0.1", pages: Pages = pages) -> Iterator[Served]:
    made = Served(host, pages)
    try:
        yield made
    finally:
        made.server.stop()


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
    with serving() as made:
        yield made


@pytest.mark.parametrize(("method", "body"), [("GET", b"this is /page\n"), ("HEAD", b"")])
def test_a_page_is_served_with_its_length(served: Served, method: str, body: bytes) -> None:
    head, _, rest = served.ask(get("/page?x=1", method)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 14\r\n" in head
    assert b"\r\nConnection: close" in head
    assert rest == body


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


def test_a_mistake_in_a_page_is_not_shown_to_clients_but_said_in_one_line_and_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # That it serves is said at any moment, by its own thread.
    for _ in range(3):
        assert b"mistake" not in served.ask(get("/bug"))
    (record,) = caplog.records
    assert record.getMessage() == "cannot make /bug: ValueError: a mistake (please report it)"
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)


def test_a_request_that_does_not_end_in_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webserver, "_REQUEST_SECONDS", 0.2)
    with serving() as hasty:
        with hasty.connect() as one, dripping(lambda: one, b"G"):
            assert rest(one)[:12] in (b"HTTP/1.1 408", b"")
        with hasty.connect() as one:
            assert rest(one).startswith(b"HTTP/1.1 408 ")


def test_a_request_that_ends_by_half_is_answered(served: Served) -> None:
    with served.connect() as one:
        one.sendall(b"GET /page HT")
        one.shutdown(socket.SHUT_WR)
        assert rest(one).startswith(b"HTTP/1.1 408 ")


@contextmanager
def many(served: Served, count: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing, unless the test does."""
    with ExitStack() as stack:
        yield [stack.enter_context(served.connect()) for _ in range(count)]


def answers_at_once(served: Served, times: int = 20) -> None:
    for _ in range(times):
        began = time.monotonic()
        assert served.ask(get("/page")).endswith(b"this is /page\n")
        # Who had to wait for somebody else would do so until that one is given up.
        assert time.monotonic() - began < 2.5


def test_who_is_silent_or_drips_is_in_nobodys_way(served: Served) -> None:
    answers_at_once(served, 1)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def drip() -> None:
        for one in slow:
            with suppress(OSError):  # It has lost its place.
                one.send(b"G")

    with many(served, 500), many(served, 50) as slow, meanwhile(drip, 0.02):
        answers_at_once(served)
        assert threading.active_count() <= threads + 1  # the one that drips
        # The server's own ones and the test's.
        assert len(os.listdir("/proc/self/fd")) <= files + 550 + MOST_CONNECTIONS


def test_who_does_not_take_an_answer_is_in_nobodys_way(served: Served) -> None:
    with many(served, MOST_CONNECTIONS + 50) as deaf:
        for one in deaf:
            one.sendall(get("/page-of-8-megabytes"))
        answers_at_once(served)


def test_who_has_asked_keeps_his_place_before_who_is_silent(served: Served) -> None:
    with many(served, MOST_CONNECTIONS), served.connect() as reader:
        reader.sendall(get("/page-of-8-megabytes"))
        assert reader.recv(12) == b"HTTP/1.1 200"
        with many(served, MOST_CONNECTIONS):
            answers_at_once(served, 1)
            assert len(rest(reader)) > 8 << 20


def test_who_comes_meanwhile_gets_the_page_that_is_being_made() -> None:
    made: list[str] = []
    let_go = threading.Event()

    def slow(path: str) -> Page:
        if path == "/slow":
            made.append(path)
            assert let_go.wait(10)
        return Page(200, b"made")

    with serving(pages=slow) as served, many(served, 20) as askers:
        for one in askers:
            one.sendall(get("/slow"))
        eventually(lambda: made)
        # Others do not wait for it.
        assert served.ask(get("/healthz")).endswith(b"made")
        let_go.set()
        assert all(rest(one).endswith(b"made") for one in askers)
    assert len(made) < 3


WITHOUT_FILES = """
from tests.unit.observe.test_webserver import answers_without_files
answers_without_files()
"""


def answers_without_files() -> None:
    """In a process whose files are all this test's."""
    with serving() as served, many(served, 100):
        # By then the server has its ends of them all.
        answers_at_once(served, 1)
        eventually(lambda: served.connections == 100)
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
        for _ in range(3):
            with all_files_but_one_taken():
                # This one's own end takes that, and the server gives somebody up for its own.
                assert served.ask(get("/page")).endswith(b"this is /page\n")
        assert served.connections < 100


@contextmanager
def all_files_but_one_taken() -> Iterator[None]:
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    os.close(taken.pop())
    yield
    for each in taken:
        os.close(each)


def test_a_server_without_files_for_connections_lives_on() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_FILES], cwd=REPOSITORY, check=True, timeout=60)


def test_who_does_not_take_the_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(webserver, "_SECONDS", 2.0)
    with serving() as hasty, hasty.connect() as one:
        one.sendall(get("/page-of-8-megabytes"))
        assert one.recv(12) == b"HTTP/1.1 200"
        # The end of the connection would come behind what nobody reads.
        eventually(lambda: not hasty.connections)


@pytest.mark.parametrize("host", ["[::1]", ""], ids=["IPv6 in brackets", "all addresses"])
def test_other_hosts_are_served(host: str) -> None:
    with serving(host) as made:
        assert made.ask(get("/page")).endswith(b"this is /page\n")


def test_an_address_that_is_taken_is_said_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webserver, "_RETRY_SECONDS", 0.02)
    caplog.set_level(logging.INFO)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        real, tries = webserver._listener, []

        def listener(text: str) -> socket.socket:
            tries.append(text)
            return real(text)

        monkeypatch.setattr(webserver, "_listener", listener)
        server = WebServer(address, pages)
        server.start()
        eventually(lambda: len(tries) > 5)
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warning == (
            f"cannot serve metrics and health at {address}: Address already in use"
            " (trying again; see metricsBindAddress)"
        )
    eventually(lambda: f"metrics and health are served at {address}" in caplog.text)
    server.stop()


def test_a_server_that_lacks_files_at_its_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webserver, "_RETRY_SECONDS", 0.02)
    real, failures = selectors.DefaultSelector, [OSError(24, "Too many open files")]

    def selector() -> object:
        if failures:
            raise failures.pop()
        return real()

    monkeypatch.setattr(selectors, "DefaultSelector", selector)
    with serving() as here:
        assert not failures
        assert b" 200 " in here.ask(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")


def test_a_server_takes_the_place_of_another_at_the_same_port(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.connect() as silent:
        eventually(lambda: served.connections == 1)
        served.server.stop()
        assert rest(silent) == b""
    after = WebServer(f"localhost:{served.address[1]}", pages, served.server)
    after.start()
    eventually(lambda: not served.server._thread.is_alive())
    eventually(lambda: after._server)
    assert served.ask(get("/page")).endswith(b"this is /page\n")
    assert "cannot serve" not in caplog.text
    after.stop()
    after.join()
    with pytest.raises(ConnectionRefusedError):
        served.connect()
