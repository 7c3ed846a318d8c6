"""The body of a watch, from its bytes to its events; what an event means is `watch`'s business."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.reading import shown

_MAX_LINE_BYTES = 32 << 20
# Servers use decimal numbers of up to twenty digits, and promise no more than that it is text.
_MAX_VERSION = 128
# On the bookmark behind the last object of a streaming list (KEP-3157).
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"


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
        return version_in(self._metadata)

    @property
    def ends_initial_events(self) -> bool:
        """Whether everything there was has been told with this bookmark."""
        annotations = self._metadata.get("annotations")
        return (
            self.kind == "BOOKMARK"
            and isinstance(annotations, dict)
            and annotations.get(_INITIAL_EVENTS_END) == "true"
        )

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata = self.raw.get("metadata") if isinstance(self.raw, dict) else None
        return metadata if isinstance(metadata, dict) else {}


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


def _parsed(line: bytearray, doing: str) -> Line:
    try:
        event = json.loads(line)
        kind, raw = event["type"], event["object"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BrokenStream("a line that is no event") from None
    if kind == "ERROR":
        _raise_status(raw, doing)
    return Line(kind, raw)


def _raise_status(status: Any, doing: str) -> None:
    status = status if isinstance(status, dict) else {}
    code, message = status.get("code"), status.get("message")
    if code == 410 or status.get("reason") in ("Expired", "Gone"):
        raise Gone
    said = message if isinstance(message, str) else shown(message)
    text = f"ended the {doing}: {shown(code)} {said}"
    known = isinstance(code, int) and 400 <= code < 600
    raise ApiError("API server", text, "", code if known else 500)
