"""Reads a Kubernetes list from its bytes, object by object, never holding it in memory whole.

A list of 10,000 Services is 22 MB of JSON, and would take 150 MiB at once. The json module decodes
each object in C; only the braces around `items` are walked here.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, Callable

MAX_OBJECT_CHARACTERS = 32 << 20

_WHITESPACE = " \t\r\n"


class BrokenList(ValueError):
    """The bytes end early, or are no JSON list."""


def read_list(chunks: Iterable[bytes], found: Callable[[Any], None]) -> Any:
    """Calls `found` with each element of `items`, and gives the list's `metadata` ({} without one).

    Raises BrokenList; `found` may then have been called for a part of the list.
    """
    cursor = _Cursor(chunks)
    metadata: Any = {}
    cursor.expect("{")
    while cursor.peek() != "}":
        key = cursor.key()
        cursor.expect(":")
        if key == "items" and cursor.peek() == "[":
            cursor.expect("[")
            while cursor.peek() != "]":
                found(cursor.value())
                cursor.separator("]")
            cursor.expect("]")
        elif key == "metadata":
            metadata = cursor.value()
        else:
            cursor.value()
        cursor.separator("}")
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
                if self._text[self._at] not in _WHITESPACE:
                    return self._text[self._at]
                self._at += 1
            self._more(1)

    def expect(self, character: str) -> None:
        """Steps over `character`."""
        if self.peek() != character:
            raise BrokenList(f"wanted {character!r}, got {self.peek()!r}")
        self._at += 1

    def separator(self, end: str) -> None:
        """Steps over the comma that has to come where `end` does not."""
        if self.peek() != end:
            self.expect(",")
            if self.peek() == end:
                raise BrokenList("a comma before the end")

    def key(self) -> str:
        """Steps over a mapping's key, and gives it."""
        if self.peek() != '"':
            raise BrokenList(f"wanted a key, got {self.peek()!r}")
        return str(self.value())

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
                raise BrokenList("an object that is too large, or no JSON")
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
            raise BrokenList("no UTF-8") from None
        self._at = 0
