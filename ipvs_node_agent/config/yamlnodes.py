"""Strict reading of YAML nodes: each reader gives the value of one node, or says what was wanted.

PyYAML composes the nodes without making values of them, so that each still knows its line, and a
word that YAML 1.1 would take for something else is still what was written. Readers take the node
and the path of its key, for messages; they raise `Bad`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import yaml
from yaml.reader import ReaderError

from ipvs_node_agent.config.yamlloader import Loader
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.addresses import Network, parse_host_port, parse_network

_DURATION = re.compile(
    r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?",
    re.ASCII,  # Or ٢ would be a digit.
)


class Bad(Exception):
    """A node that does not say what its key wants."""

    def __init__(self, node: yaml.Node, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.node, self.why, self.hint = node, why, hint


Reader = Callable[[yaml.Node, str], Any]


def compose(text: str, what: str) -> yaml.Node | None:
    """The one document in `text`, None where it is empty. Raises UsageError; `what` names it."""
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        why = error.problem
        if why == "but found another document":
            why = f"{error.context}, {why}"
        raise UsageError(f"{what}{where}", f"is not YAML: {why}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        why = f"unacceptable character #x{error.character:04x}"
        raise UsageError(f"{what} line {line}", f"is not YAML: {why}") from None
    # \UFFFFFFFF, which is no character.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(what, f"is not YAML: {error}") from None
    except RecursionError:
        raise UsageError(what, "is nested too deeply") from None


def mapping(node: yaml.Node, at: str, keys: Mapping[str, Reader]) -> dict[str, Any]:
    """The values in `node` by their attributes: podCIDRs is read as `keys` has it to pod_cidrs."""
    if not isinstance(node, yaml.MappingNode):
        raise wanted(node, at or "the file", "a mapping of keys to values")
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "(no text)"
        path = f"{at}.{key}" if at else key
        if key not in keys:
            raise Bad(key_node, f"unknown key {path}", _suggestion(key, list(keys)))
        if attribute(key) in values:
            raise Bad(key_node, f"{path} is given twice", "keep one of them")
        values[attribute(key)] = keys[key](value_node, path)
    return values


def attribute(key: str) -> str:
    """The attribute of a key: pod_cidrs of podCIDRs."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", key).lower()


def _suggestion(word: str, known: Sequence[str]) -> str:
    try:
        # Half a megabyte for as long as the agent runs, and most files have no such fault.
        import difflib
    except ImportError:  # An upgrade has replaced the Python that runs this.
        return "known are " + ", ".join(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1)
    return f"did you mean {lower[close[0]]}?" if close else "known are " + ", ".join(known)


def wanted(node: yaml.Node, at: str, expected: str, hint: str = "") -> Bad:
    """A `Bad` that shows what there is instead of `expected`."""
    return Bad(node, f"{at}: wanted {expected}, got {_shown(node)}", hint)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "null"
    value = str(node.value)
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f'"{shown}"' if _is(node, "str") else shown


def _is(node: yaml.Node, tag: str) -> bool:
    return isinstance(node, yaml.ScalarNode) and str(node.tag).rpartition(":")[2] == tag


def is_null(node: yaml.Node) -> bool:
    """Whether `node` is null, or nothing at all."""
    return _is(node, "null")


def string(node: yaml.Node, at: str) -> str:
    """Text, which YAML must not take for a number or the like."""
    if not _is(node, "str"):
        raise wanted(node, at, "text")
    return str(node.value)


def boolean(node: yaml.Node, at: str) -> bool:
    """True or false, in any of YAML's spellings."""
    # A tag may claim to be a boolean what is none.
    value = yaml.SafeLoader.bool_values.get(node.value.lower()) if _is(node, "bool") else None
    if value is None:
        raise wanted(node, at, "true or false")
    return bool(value)


def integer(low: int, high: int) -> Reader:
    """A reader of whole numbers from `low` to `high`."""

    def read(node: yaml.Node, at: str) -> int:
        # YAML 1.1 would take 010 for 8 and 1:30 for 90; nobody means that here.
        whole = _is(node, "int") and re.fullmatch(r"0|-?[1-9]\d{0,9}", node.value)
        if not whole or not low <= int(node.value) <= high:
            raise wanted(node, at, f"a whole number from {low} to {high}")
        return int(node.value)

    return read


def one_of(*choices: str) -> Reader:
    """A reader of one of the words in `choices`."""

    def read(node: yaml.Node, at: str) -> str:
        word = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if word not in choices:
            close = {c.lower(): c for c in choices}.get(word.lower())
            hint = f"did you mean {close}?" if close else ""
            raise wanted(node, at, " or ".join(choices), hint)
        return word

    return read


def or_null(read: Reader) -> Reader:
    """A reader that gives None for null, and else what `read` gives."""
    return lambda node, at: None if is_null(node) else read(node, at)


def path(node: yaml.Node, at: str) -> str:
    """An absolute path."""
    text = string(node, at)
    # It is shown in log lines, and no file has half a character in its name.
    if not text.startswith("/") or not text.isprintable():
        raise wanted(node, at, "an absolute path")
    return text


def sequence(read: Reader, example: str) -> Reader:
    """A list of what `read` reads, such as `example`."""

    def read_all(node: yaml.Node, at: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise wanted(node, at, f"a list of {example}")
        return tuple(read(item, f"{at}[{index}]") for index, item in enumerate(node.value))

    return read_all


def cidrs(node: yaml.Node, at: str) -> tuple[Network, ...]:
    """A list of prefixes."""
    found: tuple[Network, ...] = sequence(_cidr, "CIDRs such as [10.240.2.128/25]")(node, at)
    return found


def _cidr(node: yaml.Node, at: str) -> Network:
    text = string(node, at)
    try:
        return parse_network(text)
    except ValueError as error:
        why = f'{at}: wanted a CIDR such as 10.240.2.128/25, got "{text}", which {error}'
        raise Bad(node, why) from None


def duration(low: float, high: float) -> Reader:
    """A reader of durations such as 2s or 1m30s from `low` to `high` seconds."""

    def read(node: yaml.Node, at: str) -> float:
        match = _DURATION.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        parts = match.groups() if match is not None else (None,) * 4
        hours, minutes, seconds, millis = (float(part or 0) for part in parts)
        total = hours * 3600 + minutes * 60 + seconds + millis / 1000
        if not low <= total <= high:
            expected = f"a duration from {low:g}s to {high:g}s, such as 2s or 500ms"
            raise wanted(node, at, expected)
        return total

    return read


def bind_address(node: yaml.Node, at: str) -> str:
    """HOST:PORT to listen on, or an empty text."""
    text = string(node, at)
    try:
        if text:
            parse_host_port(text)
    except ValueError:
        expected = 'HOST:PORT such as 127.0.0.1:10273, or "" to turn it off'
        raise wanted(node, at, expected) from None
    return text


@dataclass(frozen=True)
class Section:
    """A reader of a mapping of `keys` into `cls`; null means its defaults."""

    cls: Callable[..., Any]
    keys: Mapping[str, Reader]

    def __call__(self, node: yaml.Node, at: str) -> Any:
        """The value of one node."""
        return self.cls() if is_null(node) else self.cls(**mapping(node, at, self.keys))


def section(cls: Callable[..., Any], **keys: Reader) -> Section:
    """A reader of a mapping of `keys` into `cls`."""
    return Section(cls, keys)
