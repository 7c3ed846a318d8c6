"""Kubernetes objects in files, as kubectl prints them: JSON, YAML, lists, many documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Callable

import yaml

from ipvs_node_agent.config.yamlloader import Bounded, Loader

if yaml.__with_libyaml__:

    class _Base(Bounded, yaml.CSafeLoader):
        """Scans in C, and composes in Python."""

        def __init__(self, stream: str) -> None:
            yaml.CSafeLoader.__init__(self, stream)
            Bounded.__init__(self)

else:
    _Base = Loader  # type: ignore[assignment,misc]


class _Loader(_Base):
    """Plain data only, as much as there is, and a timestamp stays the text that it is in JSON."""

    most_nodes = math.inf


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def read_objects(text: str, broken: Callable[[str], None]) -> Iterator[Any]:
    """The objects in `text`, lists taken apart.

    What cannot be parsed is passed to `broken` as a sentence's end, and ends the text.
    """
    for document in _documents(text, broken):
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from document["items"]
        elif document is not None:
            yield document


def _documents(text: str, broken: Callable[[str], None]) -> Iterator[Any]:
    if text.lstrip().startswith("{"):
        try:
            yield json.loads(text)
            return
        except (ValueError, RecursionError):
            pass  # A brace may open a YAML mapping as well.
    documents = yaml.load_all(text, Loader=_Loader)
    while True:
        try:
            document = next(documents)
        except StopIteration:
            return
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f" in line {mark.line + 1}" if mark else ""
            broken(f"is no YAML{where}: {error.problem}")
            return
        # What does not fit its tag, such as `!!int x`, makes PyYAML raise what it runs into first.
        except Exception as error:
            broken(f"is no YAML: {error}")
            return
        yield document
