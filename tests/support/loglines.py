"""The log lines that the source has, read off its syntax tree."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.places import modules

_METHODS = ("debug", "info", "warning", "error", "exception", "critical", "log")


class LogCall(NamedTuple):
    """A call of a logger: where, on what level, and with which text before it is filled in."""

    module: str
    level: str
    text: str
    literal: bool
    traceback: bool

    def __str__(self) -> str:
        return f"{self.module}: {self.text}"


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The program's modules, by their path in it."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in modules().items()}


def log_calls() -> list[LogCall]:
    """All calls of loggers in the package."""
    return [call for module, tree in trees().items() for call in _calls(module, tree)]


def _calls(module: str, tree: ast.Module) -> Iterator[LogCall]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        method = node.func.attr
        if method not in _METHODS or not _is_logger(node.func.value):
            continue
        arguments = node.args[1:] if method == "log" else node.args
        text = text_of(arguments[0])
        # `log` takes the level as a value, and is there for debug or info.
        level = "info" if method == "log" else method
        literal = isinstance(arguments[0], ast.Constant)
        traceback = any(keyword.arg == "exc_info" for keyword in node.keywords)
        yield LogCall(module, level, text, literal, traceback or method == "exception")


def _is_logger(node: ast.expr) -> bool:
    """Whether `node` is the module's `log`, or a logger asked for on the spot."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "getLogger"
    return isinstance(node, ast.Name) and node.id in ("log", "logger", "logging")


def text_of(node: ast.expr | None) -> str:
    """The words of a text, with ... for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            text_of(part) if isinstance(part, ast.Constant) else "..." for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "..."
