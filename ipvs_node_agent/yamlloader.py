"""YAML from outside: plain data, read to a bounded depth."""

from __future__ import annotations

from typing import Any

import yaml

# Nothing that the agent reads comes near it, and Python's own limit is far above.
DEPTH = 100


class Shallow(yaml.composer.Composer):
    """For a loader's bases: raises RecursionError at `DEPTH`.

    Leaving it to the interpreter's own limit is not safe: Python 3.9 may abort while it unwinds,
    and the loader in C crashes.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, with all that is in it."""
        self._depth += 1
        if self._depth > DEPTH:
            raise RecursionError("it is nested too deeply")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class Loader(Shallow, yaml.SafeLoader):
    """PyYAML's safe loader, of bounded depth."""


def load(text: str) -> Any:
    """What the one document in `text` says. Raises YAMLError, ValueError or RecursionError."""
    return yaml.load(text, Loader=Loader)  # noqa: S506  # its base is the safe one
