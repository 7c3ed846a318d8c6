"""The bodies of lists and watches: from their bytes to raw objects, which may be anything.

A list is read object by object and never held in memory whole: one of 10,000 Services is 22 MB of
JSON, and would take 150 MiB at once. The json module decodes each object in C; only the braces
around `items` are walked here. A watch is a line of JSON for each event. Half of it says who set
which field, which nobody here asks for: it is not decoded.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, Callable, NamedTuple

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.reading import child, shown

MAX_OBJECT_CHARACTERS = 32 << 20
_MAX_LINE_BYTES = 32 << 20
# Servers use decimal numbers of up to twenty digits, and promise no more than that it is text.
_MAX_VERSION = 128
# What stands before and behind the list of who set which field.
_MANAGED_FIELDS, _BEHIND_METADATA = b',"managedFields":[', b']},"spec":'
# On the bookmark behind the last object of a streaming list (KEP-3157).
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class BrokenList(ValueError):
    """The bytes end early, or are no JSON list."""


def read_list(chunks: Iterable[bytes], found: Callable[[Any], None]) -> Any:
    """Calls `found` with each element of `items`, and gives the list's `metadata` ({} without one).

    Raises BrokenList; `found` may then have been called for a part of the list.
    """
    cursor = _Cursor(chunks)
    metadata: Any = {}
    for _ in cursor.each("{", "}"):
        key = cursor.key()
        if key == "items" and cursor.peek() == "[":
            for _ in cursor.each("[", "]"):
                found(cursor.value())
        elif key == "metadata":
            metadata = cursor.value()
        else:
            cursor.value()
    return metadata


class _Cursor:
    """A place in a JSON text that is still arriving."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no white space."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            self._more(1)

    def expect(self, character: str) -> None:
        """Steps over `character`."""
        if self.peek() != character:
            raise BrokenList(f"wanted {character!r}, got {self.peek()!r}")
        self._at += 1

    def each(self, begin: str, end: str) -> Iterator[None]:
        """Stops in front of each element between the two, which has to be stepped over there."""
        self.expect(begin)
        while self.peek() != end:
            yield
            if self.peek() != end:
                self.expect(",")
                if self.peek() == end:
                    raise BrokenList("a comma before the end")
        self.expect(end)

    def key(self) -> str:
        """Steps over a mapping's key and the colon behind it, and gives the key."""
        if self.peek() != '"':
            raise BrokenList(f"wanted a key, got {self.peek()!r}")
        key = str(self.value())
        self.expect(":")
        return key

    def value(self) -> Any:
        """Steps over the next JSON value, and gives it."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise BrokenList("nested too deeply") from None
            except ValueError:
                end = len(self._text)
            # A number may go on in the next chunk: at the text's end, or cut within 1.5 or 1e5.
            if end < len(self._text) and self._text[end] not in ".eE":
                self._at = end
                return value
            if len(self._text) - self._at > MAX_OBJECT_CHARACTERS:
                raise BrokenList("an object that is too large or not JSON")
            # Twice as much each time, or a large object would be decoded once for each chunk.
            self._more(len(self._text) - self._at)

    def _more(self, wanted: int) -> None:
        """Reads on for at least `wanted` bytes, and forgets what lies behind."""
        arrived = bytearray()
        while len(arrived) <= wanted:
            chunk = next(self._chunks, None)
            if chunk is None:
                if not arrived:
                    raise BrokenList("the list breaks off")
                break
            arrived += chunk
        try:
            self._text = self._text[self._at :] + self._utf8.decode(arrived)
        except UnicodeDecodeError:
            raise BrokenList("not UTF-8") from None
        self._at = 0


class Gone(Exception):
    """The server no longer knows the version to watch from (410)."""


class BrokenStream(Exception):
    """Bytes that are no event, or an end in the middle of one."""


class Line(NamedTuple):
    """One event: its type, such as ADDED, and its raw object, which may be anything."""

    kind: str
    raw: Any

    @property
    def version(self) -> str:
        """The object's version; empty where it has none that could be asked for."""
        return version_in(child(self.raw, "metadata"))

    @property
    def ends_initial_events(self) -> bool:
        """Whether everything there was has been told with this bookmark."""
        annotations = child(child(self.raw, "metadata"), "annotations")
        return self.kind == "BOOKMARK" and annotations.get(_INITIAL_EVENTS_END) == "true"


def version_in(metadata: Any) -> str:
    """The version in an object's or list's `metadata`; empty where no request could name it."""
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or len(version) > _MAX_VERSION:
        return ""
    return version if version.isascii() and version.isprintable() else ""


def read_lines(pieces: Iterable[bytes], doing: str) -> Iterator[Line]:
    """The events in a watch's body, each as soon as its last piece has arrived.

    Raises BrokenStream, and for an ERROR event Gone or ApiError, which says what it was `doing`.
    """
    line = bytearray()
    for piece in pieces:
        first, *more = piece.split(b"\n")
        line += first
        for start in more:
            if line.strip():
                yield _parsed(line, doing)
            line = bytearray(start)
        if len(line) > _MAX_LINE_BYTES:
            raise BrokenStream("a line that is too long")
    if line.strip():
        # The server was cut off in the middle of an event; it comes again with the next watch.
        raise BrokenStream("the stream broke off within an event")


def without_managed_fields(line: bytearray) -> bytearray:
    """`line` of JSON without a member `managedFields` where a Service or Node mostly has it.

    Where `line` is JSON, nothing else is lost, whatever its texts are: a quote behind a comma
    begins a text, or no word could follow it, so neither end is within one. With no other bracket
    in between, the second one closes what the first one opens. Else `line` stays as it is.
    """
    begin = line.find(_MANAGED_FIELDS)
    inside = begin + len(_MANAGED_FIELDS)
    end = line.find(b"]", inside) if begin >= 0 else -1
    if end < 0 or not line.startswith(_BEHIND_METADATA, end) or line.find(b"[", inside, end) >= 0:
        return line
    return line[:begin] + line[end + 1 :]


def _parsed(line: bytearray, doing: str) -> Line:
    try:
        event = json.loads(without_managed_fields(line))
        kind, raw = event["type"], event["object"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BrokenStream("a line that is not an event") from None
    if kind != "ERROR":
        return Line(kind, raw)
    status: Any = raw if isinstance(raw, dict) else {}
    code, message = status.get("code"), status.get("message")
    if code == 410 or status.get("reason") in ("Expired", "Gone"):
        raise Gone
    said = message if isinstance(message, str) else shown(message)
    text = f"ended the {doing}: {shown(code)} {said}"
    known = isinstance(code, int) and 400 <= code < 600
    raise ApiError("API server", text, "", code if known else 500)
