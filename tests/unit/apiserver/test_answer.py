"""An answer is handed on as it arrives, waited for and ended, whatever it says of itself."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ipvs_node_agent.apiserver.answer import Answer, Superseded
from ipvs_node_agent.apiserver.client import Api, ApiError
from tests.support.apiclient import Asking
from tests.support.kubeconfigs import document, write
from tests.support.pki import Pki
from tests.support.rawserver import RawServer, proxied

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
CLOSES = b"\r\nConnection: close\r\n\r\n"
HEADS = {
    "chunks": CHUNKS,
    "chunks, then it closes": CHUNKS.replace(b"\r\n\r\n", CLOSES),
    "a length": LENGTH,
    "a length, then it closes": LENGTH.replace(b"\r\n\r\n", CLOSES),
    "neither, then it closes": b"HTTP/1.1 200 OK" + CLOSES,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n",
}
WAYS = ("plain", "TLS", "TLS through a proxy")
# Each body over the plainest connection, and the one that hides its socket over all of them.
CASES = [
    *(pytest.param(head, "plain", id=head) for head in HEADS),
    *(pytest.param("chunks, then it closes", way, id=way) for way in WAYS[1:]),
]


class Asked:
    """A request that has its answer's head: both ends of it."""

    def __init__(self, server: RawServer, api: Api, head: bytes) -> None:
        self.server, self.api = server, api
        self._chunked = b"chunked" in head

    def send(self, data: bytes) -> None:
        """Sends a part of the body."""
        framed = b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
        self.connection.sendall(framed)

    @contextmanager
    def get(self, timeout: float = 10.0) -> Iterator[Answer]:
        """Asks, and has the answer begin."""
        with self.api.get("/x", {}, "watch services", timeout) as answer:
            self.connection = self.server.asked()
            yield answer


@pytest.fixture
def asked(head: str, way: str, pki: Pki, node_pem: Path, tmp_path: Path) -> Iterator[Asked]:
    tls = None if way == "plain" else pki.server_context(["127.0.0.1"])
    pki.write_ca(tmp_path / "ca.crt")
    user = {"client-certificate": node_pem.name}
    cluster = {"certificate-authority": "ca.crt"}
    with ExitStack() as stack:
        server = stack.enter_context(RawServer(HEADS[head], tls))
        if "proxy" in way:
            cluster["proxy-url"] = stack.enter_context(proxied(server.port))
        content = document(user, server=server.url, **cluster)
        yield Asked(server, Api(write(tmp_path / "kubeconfig", content)), HEADS[head])


@pytest.mark.parametrize(("head", "way"), CASES)
def test_each_piece_is_handed_on_when_it_arrives(asked: Asked) -> None:
    with asked.get() as answer:
        pieces = answer.pieces()
        for data in (b"ab", b"c", b"def"):
            asked.send(data)
            assert next(pieces) == data


@pytest.mark.parametrize(("head", "way"), CASES)
def test_a_pause_may_be_as_long_as_is_said(asked: Asked) -> None:
    with asked.get(timeout=5.0) as answer:
        asked.send(b"ab")
        pieces = answer.pieces()
        assert next(pieces) == b"ab"
        answer.be_patient(0.1)
        started = time.monotonic()
        with pytest.raises(socket.timeout):
            next(pieces)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(("head", "way"), CASES)
def test_it_can_be_ended_while_it_is_waited_for(asked: Asked) -> None:
    reading = threading.Event()

    def read() -> list[bytes]:
        with asked.get() as answer:
            pieces = answer.pieces()
            asked.send(b"ab")
            next(pieces)
            reading.set()
            return [*pieces]

    asking = Asking(read)
    assert reading.wait(10)
    asked.api.close()
    assert isinstance(asking.got(), Superseded)


def test_a_server_name_changes_nothing_without_tls(tmp_path: Path) -> None:
    with RawServer(HEADS["a length"]) as server:
        content = document({}, server=server.url, **{"tls-server-name": "api.invalid"})
        api = Api(write(tmp_path / "kubeconfig", content))
        with api.get("/x", {}, "watch services", 10.0) as answer:
            server.asked().sendall(b"abcdef")
            assert b"".join(answer.pieces()) == b"abcdef"


@pytest.mark.parametrize(
    ("head", "way", "again"),
    [
        ("chunks", "plain", True),
        ("chunks", "TLS", True),
        ("chunks", "TLS through a proxy", True),
        ("a length", "plain", True),
        ("chunks, then it closes", "plain", False),
        ("HTTP/1.0", "plain", False),
    ],
)
def test_a_connection_whose_answer_was_read_to_its_end_serves_again(
    asked: Asked, again: bool
) -> None:
    for _ in range(2):
        with asked.get() as answer:
            asked.send(b"abcdef")
            if "chunked" in str(asked.server.head):
                asked.connection.sendall(b"0\r\n\r\n")
            if not again:
                asked.connection.shutdown(socket.SHUT_WR)
            assert b"".join(answer.pieces()) == b"abcdef"
    assert asked.server.connections == ([0, 0] if again else [0, 1])


@pytest.mark.parametrize(("head", "way"), [("chunks", "plain"), ("a length", "plain")])
def test_a_connection_whose_answer_was_left_serves_nobody(asked: Asked) -> None:
    for _ in range(2):
        with asked.get() as answer:
            asked.send(b"abc")
            next(answer.pieces())
    assert asked.server.connections == [0, 1]


@pytest.mark.parametrize("way", ["plain"])
@pytest.mark.parametrize(
    ("head", "sent"),
    [
        ("chunks", b"3\r\nab"),
        ("chunks", b"2\r\nab\r\n"),
        ("chunks", b"2\r\nab"),
        ("a length", b"ab"),
    ],
)
def test_a_body_that_is_cut_is_no_end(asked: Asked, sent: bytes) -> None:
    def read() -> None:
        with asked.get() as answer:
            asked.connection.sendall(sent)
            asked.connection.shutdown(socket.SHUT_WR)
            assert b"".join(answer.pieces()) == b"ab"

    with pytest.raises(ApiError, match="the connection broke"):
        read()


@pytest.mark.parametrize(("head", "way"), [("a length", "plain")])
def test_patience_with_what_has_ended_does_no_harm(asked: Asked) -> None:
    with asked.get() as answer:
        asked.send(b"abcdef")
        assert b"".join(answer.pieces()) == b"abcdef"
        answer.close()
        answer.be_patient(1.0)
