"""The body of a watch is read line by line, in whatever pieces it arrives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ipvs_node_agent.apiserver import watchlines
from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.watchlines import BrokenStream, Gone, read_lines
from tests.support.growth import grows_no_faster_than_linear


def event(kind: Any, raw: Any) -> bytes:
    return json.dumps({"type": kind, "object": raw}, ensure_ascii=False).encode() + b"\n"


def read(pieces: Iterable[bytes]) -> list[tuple[Any, Any]]:
    return [tuple(line) for line in read_lines(pieces, "watch of services")]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


BODY = event("ADDED", {"a": "ü"}) + b"\n \r\n" + event("DELETED", 7)[:-1] + b"\r\n"
LINES = [("ADDED", {"a": "ü"}), ("DELETED", 7)]


@pytest.mark.parametrize("size", [*range(1, 12), len(BODY) - 1, len(BODY)])
def test_events_may_arrive_in_any_pieces(size: int) -> None:
    assert read(cut(BODY, size)) == LINES


def test_an_event_is_given_with_its_last_byte() -> None:
    arrived = 0

    def pieces() -> Iterator[bytes]:
        nonlocal arrived
        for arrived in range(len(BODY)):
            yield BODY[arrived : arrived + 1]

    ends = [BODY.index(b"\n"), len(BODY) - 1]
    assert [arrived for _ in read_lines(pieces(), "watch of services")] == ends


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"garbage\n", id="a word"),
        pytest.param(b"{}\n", id="an empty mapping"),
        pytest.param(b"[1]\n", id="a list"),
        pytest.param(b"null\n", id="null"),
        pytest.param(b'"text"\n', id="text"),
        pytest.param(b'{"type":"ADDED"}\n', id="no object"),
        pytest.param(b'{"object":{}}\n', id="no type"),
        pytest.param(b"\xff\xfe\n", id="no UTF-8"),
        pytest.param(b"[" * 200_000 + b"\n", id="nested too deeply"),
        pytest.param(event("ADDED", {})[:20] + b"\n", id="half an event"),
    ],
)
def test_a_line_that_is_no_event_ends_the_stream(line: bytes) -> None:
    lines = read_lines([event("ADDED", 1) + line + event("ADDED", 2)], "watch of services")
    assert next(lines) == ("ADDED", 1)
    with pytest.raises(BrokenStream, match=r"^a line that is no event$"):
        next(lines)


def test_every_cut_of_an_event_is_noticed() -> None:
    whole = event("ADDED", {"a": 1})
    for length in range(1, len(whole)):
        with pytest.raises(BrokenStream, match=r"^the stream broke off within an event$"):
            read([whole[:length]])


def test_a_line_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchlines, "_MAX_LINE_BYTES", 1000)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100

    with pytest.raises(BrokenStream, match=r"^a line that is too long$"):
        read(endless())
    assert taken == 11


@pytest.mark.parametrize(
    "status",
    [{"code": 410}, {"reason": "Expired"}, {"reason": "Gone"}, {"code": 410, "message": 1}],
)
def test_an_error_event_may_say_that_the_version_is_gone(status: Any) -> None:
    with pytest.raises(Gone):
        read([event("ERROR", status)])


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ({"code": 429, "message": "slowly"}, 429, "429 slowly"),
        ({"code": 500, "message": "etcd is away"}, 500, "500 etcd is away"),
        ({"code": 403, "message": "two\nlines"}, 403, r"403 two\nlines"),
        # Zero would mean that nobody had answered at all.
        ({"code": 0, "message": "odd"}, 500, "0 odd"),
        ({"code": True, "message": "odd"}, 500, "True odd"),
        ({"code": "403", "message": ["odd"]}, 500, "'403' a list"),
        ({}, 500, "None None"),
        (None, 500, "None None"),
        ("text", 500, "None None"),
    ],
)
def test_an_error_event_is_an_error_with_its_status(status: Any, code: int, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        read([event("ERROR", status)])
    assert str(caught.value) == f"API server: ended the watch of services: {said}"
    assert caught.value.status == code


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("lines", [1, 50])
def test_time_grows_with_the_size_alone(chunk: int, lines: int) -> None:
    def work(size: int) -> None:
        line = event("ADDED", {"a": "x" * (size // lines)})
        assert len(read(cut(line * lines, chunk))) == lines

    grows_no_faster_than_linear(work, 50_000)
