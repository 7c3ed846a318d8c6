"""A list is read object by object, and a watch line by line, in whatever pieces they arrive."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver import bodies
from ipvs_node_agent.apiserver.bodies import (
    BrokenList,
    BrokenStream,
    Gone,
    read_lines,
    read_list,
    without_managed_fields,
)
from ipvs_node_agent.apiserver.client import ApiError
from tests.support.growth import grows_no_faster_than_linear


def read(chunks: Iterable[bytes]) -> tuple[list[Any], Any]:
    """The items and the metadata."""
    items: list[Any] = []
    metadata = read_list(chunks, items.append)
    return items, metadata


def told(pieces: Iterable[bytes]) -> list[tuple[Any, Any]]:
    """The events of a watch: type and object."""
    return [tuple(line) for line in read_lines(pieces, "watch of services")]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


# 1. Lists

SERVICES = {
    "kind": "ServiceList",
    "metadata": {"resourceVersion": "7"},
    "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}],
}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(json.dumps(SERVICES), id="compact"),
        pytest.param(" \t\r\n" + json.dumps(SERVICES, indent=4) + "\n", id="white space"),
        pytest.param(json.dumps(dict(reversed(SERVICES.items()))), id="items first"),
        pytest.param('{"items": [null, true, false, [], {}, [[]], {"items": [1]}]}', id="types"),
        pytest.param('{"items": [0, -1, 12, 1.5, -2.5e-3, 1e5, 1E+5]}', id="numbers"),
        pytest.param('{"items":[-1.25e-2]}', id="a number to the end"),
        pytest.param(r'{"items": ["", "\"", "\\", "]}", "\u2028", "\ud800"]}', id="escapes"),
        pytest.param('{"items": ["é€😀\u2028"]}', id="no ASCII"),
        pytest.param("{}", id="nothing"),
        pytest.param('{"items": null, "metadata": null}', id="null"),
        pytest.param('{"items": {"a": 1}, "metadata": {"continue": "x"}}', id="no list"),
        pytest.param('{"metadata": 1, "x": [1]}', id="no mapping"),
    ],
)
def test_a_list_is_what_the_json_module_reads_wherever_it_is_cut(text: str) -> None:
    data, document = text.encode(), json.loads(text)
    items = document.get("items")
    wanted = (items if isinstance(items, list) else [], document.get("metadata", {}))
    assert read(cut(data, 1)) == wanted
    for at in range(len(data) + 1):
        assert read([data[:at], b"", data[at:]]) == wanted


def test_items_are_given_before_the_list_ends() -> None:
    found: list[Any] = []

    def chunks() -> Iterator[bytes]:
        yield b'{"items": [{"a": 1}, {"a'
        yield b'": 2}, '
        assert found == [{"a": 1}, {"a": 2}]
        yield b"3]}"

    read_list(chunks(), found.append)
    assert found == [{"a": 1}, {"a": 2}, 3]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"   ", "the list breaks off"),
        (b"[]", "wanted '{', got '['"),
        (b"<html>", "wanted '{', got '<'"),
        (b"{1: 2}", "wanted a key, got '1'"),
        (b'{"a" 1}', "wanted ':', got '1'"),
        (b'{"a": 1 "b": 2}', "wanted ',', got '\"'"),
        (b'{"items": [1 2]}', "wanted ',', got '2'"),
        (b'{"items": [1,]}', "a comma before the end"),
        (b'{"items": [],}', "a comma before the end"),
        (b'{"items": [nothing]}', "the list breaks off"),
        (b'{"items": ["\xff"]}', "not UTF-8"),
        (b'{"items": ["\xc3"]}', "not UTF-8"),
        pytest.param(b'{"items": ' + b"[" * 200000, "nested too deeply", id="deep items"),
        pytest.param(b'{"items": [' + b"[" * 200000, "nested too deeply", id="a deep item"),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(BrokenList) as caught:
        read([data])
    assert str(caught.value) == complaint


def test_an_object_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_OBJECT_CHARACTERS", 10_000)
    pieces = iter([b'{"items": ["', *[b"x" * 1000] * 40])
    with pytest.raises(BrokenList, match="too large"):
        read(pieces)
    assert next(pieces)


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize(
    "document",
    [
        lambda size: {"items": [{"a": "x" * size}]},
        lambda size: {"items": [{"a": "é" * (size // 2)}]},
        lambda size: {"items": [{"a": 1}] * (size // 8)},
        lambda size: {"items": [{str(number): number for number in range(size // 15)}]},
        lambda size: {"a" * size: "b", "items": []},
    ],
    ids=["a text", "no ASCII", "objects", "keys", "a key"],
)
def test_time_grows_with_the_size_of_a_list_alone(document: Any, chunk: int) -> None:
    def work(size: int) -> None:
        read(cut(json.dumps(document(size), ensure_ascii=False).encode(), chunk))

    grows_no_faster_than_linear(work, 20_000)


def test_tiny_pieces_take_no_more_memory_than_the_object_does() -> None:
    data = json.dumps({"items": [{"a": "xy" * 100_000}]}).encode()
    tracemalloc.start()
    try:
        read(cut(data, 2))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(data)


# 2. Watches


def event(kind: Any, raw: Any) -> bytes:
    return json.dumps({"type": kind, "object": raw}, ensure_ascii=False).encode() + b"\n"


BODY = event("ADDED", {"a": "ü"}) + b"\n \r\n" + event("DELETED", 7)[:-1] + b"\r\n"
LINES = [("ADDED", {"a": "ü"}), ("DELETED", 7)]


def test_events_may_arrive_in_any_pieces() -> None:
    for size in range(1, len(BODY) + 1):
        assert told(cut(BODY, size)) == LINES


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
        pytest.param(b"garbage", id="a word"),
        pytest.param(b"[1]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"type":"ADDED"}', id="no object"),
        pytest.param(b'{"object":{}}', id="no type"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(b"[" * 200_000, id="nested too deeply"),
        pytest.param(event("ADDED", {})[:20], id="half an event"),
    ],
)
def test_a_line_that_is_no_event_ends_the_stream(line: bytes) -> None:
    lines = read_lines([event("ADDED", 1) + line + b"\n" + event("ADDED", 2)], "watch of services")
    assert next(lines) == ("ADDED", 1)
    with pytest.raises(BrokenStream, match=r"^a line that is not an event$"):
        next(lines)


def test_every_cut_of_an_event_is_noticed() -> None:
    whole = event("ADDED", {"a": 1})
    for length in range(1, len(whole)):
        with pytest.raises(BrokenStream, match=r"^the stream broke off within an event$"):
            told([whole[:length]])


def test_a_line_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_MAX_LINE_BYTES", 1000)
    pieces = iter([b"x" * 100] * 12)
    with pytest.raises(BrokenStream, match=r"^a line that is too long$"):
        told(pieces)
    assert len([*pieces]) == 1


def compact(value: Any) -> bytearray:
    return bytearray(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


MANAGED = [{"manager": "kubectl", "fieldsV1": {"f:spec": {'k:{"port":80}': {}}}}, {}]


def managed(fields: Any, **more: Any) -> dict[str, Any]:
    """A Service's event as the API server orders it."""
    metadata = {"name": "web", "managedFields": fields, **more}
    return {"type": "ADDED", "object": {"metadata": metadata, "spec": {"a": [1]}}}


def test_who_set_which_field_is_not_decoded() -> None:
    line = compact(managed(MANAGED))
    left = without_managed_fields(line)
    metadata, spec = {"name": "web"}, {"a": [1]}
    assert json.loads(left) == {"type": "ADDED", "object": {"metadata": metadata, "spec": spec}}
    assert told([bytes(line) + b"\n"]) == [("ADDED", {"metadata": metadata, "spec": spec})]


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({"type": "ADDED", "object": {"metadata": {}, "spec": {}}}, id="none"),
        pytest.param(managed({"a": 1}), id="a mapping"),
        pytest.param(managed(MANAGED, labels={"a": "b"}), id="not the last"),
        pytest.param(managed(MANAGED, ownerReferences=[{"name": "b"}]), id="before a list"),
        pytest.param(managed([{"a": [1]}]), id="a list inside"),
        pytest.param(managed([{"a": {"b": [1], "spec": 2}}]), id="one that looks like its end"),
        pytest.param(managed([{"a": {"b": [1]}, "spec": 2}]), id="another that does"),
        pytest.param(managed([{"manager": "]},"}, {"a": "spec"}]), id="a bracket in a text"),
        pytest.param(managed(MANAGED)["object"]["metadata"], id="without a spec"),
    ],
)
def test_what_is_not_as_usual_is_decoded_whole(event: Any) -> None:
    line = compact(event)
    assert without_managed_fields(line) == line


@pytest.mark.parametrize("text", [',"managedFields":[', ',"managedFields":[{}]},"spec":', "]},"])
def test_a_text_is_never_cut(text: str) -> None:
    for value in (text, json.dumps(text), text + '"', '"' + text, "\\" + text):
        event = managed([], annotations={"a": value, value: "b"})
        assert without_managed_fields(compact(event)) == compact(event)
        event = managed([{"manager": value}])
        left = json.loads(without_managed_fields(compact(event)))
        assert left in (event, managed_without(event))


def managed_without(event: Any) -> Any:
    metadata = {k: v for k, v in event["object"]["metadata"].items() if k != "managedFields"}
    return {**event, "object": {**event["object"], "metadata": metadata}}


def members_left_out(value: Any) -> Iterator[Any]:
    """What `value` is without one of its lists called `managedFields`, for each of them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "managedFields" and isinstance(inner, list):
                yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: left} for left in members_left_out(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], left, *value[at + 1 :]] for left in members_left_out(inner))


# What the cut looks for, and what could be taken for it.
TEXTS = st.one_of(
    st.sampled_from(
        ["managedFields", "spec", "metadata", "]},", ',"managedFields":[', "]", "[", "\\"]
    ),
    st.text(alphabet='[]{},:"\\ms', max_size=6),
)
JSON = st.recursive(
    st.one_of(st.none(), st.integers(0, 9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=20,
)


@given(JSON)
def test_nothing_else_is_lost_whatever_the_object(value: Any) -> None:
    line = compact(value)
    left = without_managed_fields(line)
    assert left == line or json.loads(left) in members_left_out(value)


@given(st.lists(JSON, max_size=3), st.dictionaries(TEXTS, JSON, max_size=3), JSON)
def test_nothing_else_is_lost_where_it_mostly_is(fields: Any, before: Any, spec: Any) -> None:
    metadata = {"a": 1, **before}
    metadata.pop("managedFields", None)
    value = {"metadata": {**metadata, "managedFields": fields}, "spec": spec}
    line = compact(value)
    left = without_managed_fields(line)
    assert left == line or json.loads(left) in members_left_out(value)


@pytest.mark.parametrize("status", [{"code": 410}, {"reason": "Expired"}, {"reason": "Gone"}])
def test_an_error_event_may_say_that_the_version_is_gone(status: Any) -> None:
    with pytest.raises(Gone):
        told([event("ERROR", {**status, "message": 1})])


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ({"code": 429, "message": "slowly"}, 429, "429 slowly"),
        ({"code": 403, "message": "two\nlines"}, 403, r"403 two\nlines"),
        # Zero would mean that nobody had answered at all.
        ({"code": 0, "message": "odd"}, 500, "0 odd"),
        ({"code": True, "message": "odd"}, 500, "True odd"),
        ({"code": "403", "message": ["odd"]}, 500, "'403' a list"),
        (None, 500, "None None"),
    ],
)
def test_an_error_event_is_an_error_with_its_status(status: Any, code: int, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        told([event("ERROR", status)])
    assert str(caught.value) == f"API server: ended the watch of services: {said}"
    assert caught.value.status == code


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("lines", [1, 50])
def test_time_grows_with_the_size_of_a_watch_alone(chunk: int, lines: int) -> None:
    def work(size: int) -> None:
        line = event("ADDED", {"a": "x" * (size // lines)})
        assert len(told(cut(line * lines, chunk))) == lines

    grows_no_faster_than_linear(work, 50_000)
