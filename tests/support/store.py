"""The objects of the test API server: every change has a version, as in etcd."""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from tests.support.rest import API_VERSIONS, CLUSTER_WIDE

ABSENT: Final = object()


class Key(NamedTuple):
    """What tells one object from all others."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Change:
    """One object before and after a version; `ABSENT` where it did not exist."""

    version: int
    key: Key
    old: Any
    new: Any


class Store:
    """Objects, their history and one counter of versions; usable from any thread."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._objects: dict[Key, Any] = {}
        self._changes: list[Change] = []
        # Version 0 means "any" to clients, so it is never a real one.
        self._version = 1
        # The oldest that a watch can still start from.
        self.oldest = 1

    def put(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Create or replace an object, completing its metadata as a server does."""
        version = API_VERSIONS.get(obj["kind"], "v1")
        body: dict[str, Any] = {"apiVersion": version, "metadata": {}, **copy.deepcopy(obj)}
        metadata = body["metadata"]
        if body["kind"] not in CLUSTER_WIDE:
            metadata.setdefault("namespace", "default")
        key = Key(body["kind"], metadata.get("namespace", ""), metadata["name"])
        with self._lock:
            for field, value in self._identity(key).items():
                metadata.setdefault(field, value)
            self._commit(key, body)
        self._on_change()
        return copy.deepcopy(body)

    def put_raw(self, kind: str, namespace: str, name: str, obj: Any) -> None:
        """Store anything at all; only a mapping's own metadata is given its version."""
        with self._lock:
            self._commit(Key(kind, namespace, name), copy.deepcopy(obj))
        self._on_change()

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove an object; KeyError if there is none."""
        with self._lock:
            self._commit(Key(kind, namespace, name), ABSENT)
        self._on_change()

    def items(self, kind: str) -> tuple[list[Any], int]:
        """The objects of a kind, in the order of their keys, and the store's version.

        They are the store's own: only to be read.
        """
        with self._lock:
            keys = sorted(key for key in self._objects if key.kind == kind)
            return [self._objects[key] for key in keys], self._version

    def changes(self, since: int, kind: str) -> tuple[list[Change], int]:
        """What happened to a kind after a version, and the version that this leads to."""
        with self._lock:
            newer = itertools.takewhile(lambda c: c.version > since, reversed(self._changes))
            found = [change for change in newer if change.key.kind == kind]
            return found[::-1], self._version

    def compact(self) -> None:
        """Make every version that was handed out so far too old to watch from."""
        with self._lock:
            self._version += 1
            self.oldest = self._version

    def _identity(self, key: Key) -> dict[str, str]:
        try:
            known = self._objects[key]["metadata"]
            return {field: known[field] for field in ("uid", "creationTimestamp")}
        except (KeyError, TypeError):
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            return {"uid": str(uuid.uuid4()), "creationTimestamp": now}

    def _commit(self, key: Key, new: Any) -> None:
        old = self._objects[key] if new is ABSENT else self._objects.get(key, ABSENT)
        self._version += 1
        self._changes.append(Change(self._version, key, old, new))
        if new is ABSENT:
            del self._objects[key]
        else:
            self._objects[key] = _stamp(new, self._version)


def at_version(obj: Any, version: int) -> Any:
    """A copy of an object that carries another version."""
    return _stamp(copy.deepcopy(obj), version)


def _stamp(obj: Any, version: int) -> Any:
    if isinstance(obj, dict) and isinstance(obj.get("metadata"), dict):
        obj["metadata"]["resourceVersion"] = str(version)
    return obj
