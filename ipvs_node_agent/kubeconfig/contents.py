"""What is in a kubeconfig: the current user and cluster, and the files that it names.

Nothing is believed of the file's shape, and no error shows a value in it: any may be a secret.
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml

from ipvs_node_agent.config import regularfile, yamlloader
from ipvs_node_agent.config.regularfile import Unfit

_FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")

Identity = tuple[int, int, int]
Fingerprint = tuple[tuple[str, Optional[Identity]], ...]


def current(data: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The cluster and the user of a kubeconfig's current context, as it has them. Raises Unfit."""
    try:
        document = yamlloader.load(data.decode())
    except UnicodeDecodeError:
        raise Unfit("is not UTF-8 text") from None
    except yamlloader.NotYaml as error:
        raise Unfit(str(error)) from None
    if not isinstance(document, dict):
        raise Unfit("names no server")
    context = _entry(document, "context", document.get("current-context"))
    if context is None:
        raise Unfit("has no entry for its current-context")
    cluster = _entry(document, "cluster", context.get("cluster"))
    if cluster is None:
        raise Unfit("names no server")
    return cluster, _entry(document, "user", context.get("user")) or {}


def _entry(document: Mapping[str, Any], kind: str, name: object) -> dict[str, Any] | None:
    """The first one of this kind and name, None where there is none. Raises Unfit."""
    entries = document.get(f"{kind}s") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unfit(f"has {kind}s that are not a list of entries")
    if not all(isinstance(entry.get("name"), str) for entry in entries):
        raise Unfit(f"has a {kind} entry without a name")
    found = next((entry for entry in entries if entry["name"] == name), None)
    if found is None:
        return None
    if not isinstance(found.get(kind), dict):
        raise Unfit(f"has an entry in {kind}s without its {kind}")
    contents: dict[str, Any] = found[kind]
    return contents


def text(entry: Mapping[str, Any], key: str) -> str:
    """The text under a key, "" where there is none. Raises Unfit for anything else."""
    value = entry.get(key)
    if not isinstance(value, (str, type(None))):
        raise Unfit(f"its {key} is not text")
    return value or ""


def flag(entry: Mapping[str, Any], key: str) -> bool:
    """Whether a key is true, which it is not where there is none. Raises Unfit."""
    value = entry.get(key)
    # The text "false" is a true value to Python.
    if not isinstance(value, (bool, type(None))):
        raise Unfit(f"its {key} is neither true nor false")
    return bool(value)


def content(entry: Mapping[str, Any], key: str, base: Path) -> tuple[str, bytes] | None:
    """What to call it, and what is in it: a key's own data, or else the file that it names."""
    inline = text(entry, f"{key}-data")
    if not inline:
        return named_file(entry, key, base)
    try:
        # Line breaks do not count.
        return f"its {key}-data", base64.b64decode("".join(inline.split()), validate=True)
    except ValueError:
        raise Unfit(f"its {key}-data is not base64") from None


def named_file(entry: Mapping[str, Any], key: str, base: Path) -> tuple[str, bytes] | None:
    """The path under a key, from `base` on, and what is there; None without one. Raises Unfit."""
    path = text(entry, key)
    if not path:
        return None
    name = os.path.join(base, path)
    try:
        return name, regularfile.read(name)
    except OSError as error:
        hint = "run it as root" if isinstance(error, PermissionError) else ""
        missing = isinstance(error, FileNotFoundError)
        raise Unfit(f"cannot read {name}: {error.strerror}", hint, missing) from None
    except Unfit as error:
        raise Unfit(f"cannot read {name}: it {error.why}") from None


def fingerprint(path: Path) -> Fingerprint:
    """Changes whenever the kubeconfig, or a file that it names, does; raises nothing."""
    own = _identity(str(path))
    return tuple((name, _identity(name)) for name in (str(path), *_files_named_in(path, own)))


def _identity(name: str) -> Identity | None:
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


# Looked at every ten seconds, and parsing YAML takes longer than all the rest of these.
@functools.lru_cache(maxsize=4)
def _files_named_in(path: Path, identity: Identity | None) -> tuple[str, ...]:
    try:
        # Values are not made of it, which would be work and errors for nothing.
        root = yamlloader.compose(regularfile.read(path).decode())
    except (OSError, Unfit, UnicodeDecodeError, yamlloader.NotYaml):
        return ()
    return tuple(sorted({os.path.join(path.parent, name) for name in _named_files(root)}))


def _named_files(node: yaml.Node | None) -> Iterator[str]:
    """Every text under one of the keys that hold paths."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode):
                if key.value in _FILE_KEYS:
                    yield value.value
            else:
                yield from _named_files(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _named_files(value)
