"""YAML from outside: plain data, within bounds."""

from __future__ import annotations

import math
from typing import Any, Callable

import yaml

# Nothing that the agent reads comes near it, and Python's own limit is far above.
DEPTH = 100
# How many values a file has at most. The largest kubeconfigs have a tenth of it, and a second goes
# by until so many are read.
NODES = 50_000
# How much all aliases of a file stand for at most, in values and characters. A few hundred bytes
# of aliases to aliases ("a billion laughs") are more than any walk through the data comes to an end
# of.
ALIASED = 1 << 20


class NotYaml(Exception):
    """A text is no plain YAML, or out of bounds; why ends a sentence that shows none of it."""


class TooMuch(yaml.composer.ComposerError):
    """What is out of bounds."""


class Bounded(yaml.composer.Composer):
    """For a loader's bases: raises RecursionError at `DEPTH`, and TooMuch for the rest.

    Leaving the depth to the interpreter's own limit is not safe: Python 3.9 may abort while it
    unwinds, and the loader in C crashes.
    """

    most_nodes: float = NODES
    _depth = 0
    _nodes = 0
    # Of what was composed so far, aliases expanded.
    _size: float = 0
    _aliased: float = 0

    def __init__(self) -> None:
        yaml.composer.Composer.__init__(self)
        # By the names of anchors.
        self._sizes: dict[str, float] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, with all that is in it."""
        self._depth += 1
        if self._depth > DEPTH:
            raise RecursionError("it is nested too deeply")
        event = self.peek_event()  # type: ignore[attr-defined]  # The loader has it.
        try:
            if isinstance(event, yaml.AliasEvent):
                return self._compose_alias(event, parent, index)
            return self._compose_other(event, parent, index)
        finally:
            self._depth -= 1

    def _compose_alias(self, event: Any, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        # It has no size yet where the alias is inside of what it stands for.
        size = self._sizes.get(event.anchor, math.inf)
        self._aliased += size
        self._size += size
        if self._aliased > ALIASED:
            raise _too_much("aliases that stand for too much", event)
        return node

    def _compose_other(self, event: Any, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > self.most_nodes:
            raise _too_much(f"more than {NODES} values", event)
        before = self._size
        self._sizes.pop(event.anchor, None)
        node = super().compose_node(parent, index)
        self._size += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if event.anchor is not None:
            self._sizes[event.anchor] = self._size - before
        return node


def _too_much(what: str, event: Any) -> TooMuch:
    return TooMuch(None, None, f"it has {what}", event.start_mark)


class Loader(Bounded, yaml.SafeLoader):
    """PyYAML's safe loader, within bounds."""

    def __init__(self, stream: str) -> None:
        yaml.SafeLoader.__init__(self, stream)
        Bounded.__init__(self)


def compose(text: str) -> yaml.Node | None:
    """The nodes of the one document in `text`, no values made of them. Raises NotYaml."""
    root: yaml.Node | None = _read(yaml.compose, text)
    return root


def load(text: str) -> Any:
    """What the one document in `text` says. Raises NotYaml."""
    return _read(yaml.load, text)


def _read(read: Callable[..., Any], text: str) -> Any:
    try:
        return read(text, Loader=Loader)
    except RecursionError:
        raise NotYaml("is nested too deeply") from None
    except TooMuch as error:
        raise NotYaml(f"is out of bounds: {error.problem}") from None
    # What does not fit its tag, such as `!!bool x`, makes PyYAML raise what it runs into first.
    except Exception:
        raise NotYaml("is not YAML") from None
