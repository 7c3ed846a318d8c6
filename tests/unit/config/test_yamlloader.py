"""The loader of YAML: plain data, within bounds."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Callable

import pytest

from ipvs_node_agent.config.yamlloader import DEPTH, NODES, NotYaml, compose, load


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_depth_has_a_bound_and_width_has_another() -> None:
    read = load(lists(DEPTH))
    for _ in range(DEPTH - 1):
        (read,) = read
    assert read == []
    assert load(f"[{'[], ' * DEPTH * 3}]") == [[]] * DEPTH * 3
    assert len(load(f"[{'0,' * (NODES - 1)}]")) == NODES - 1
    with pytest.raises(NotYaml, match="is nested too deeply"):
        load(lists(DEPTH + 1))
    with pytest.raises(NotYaml, match=f"it has more than {NODES} values"):
        load(f"[{'0,' * NODES}]")


@pytest.mark.parametrize("read", [load, compose])
@pytest.mark.parametrize("text", ["[", "a: 1\n---\nb: 2", "*a", '"\\UFFFFFFFF"'])
def test_what_is_no_document_is_refused(text: str, read: Callable[[str], Any]) -> None:
    with pytest.raises(NotYaml, match=r"^is not YAML$"):
        read(text)


def test_an_object_is_refused() -> None:
    with pytest.raises(NotYaml, match=r"^is not YAML$"):
        load("!!python/object/apply:os.getpid []")


@pytest.mark.parametrize(
    "text",
    [
        *("!!bool zz", "!!int zz", "!!float zz", "!!timestamp zz", '!!binary "\xe9"', "!!null [a]"),
        *("!!set [a]", "!!omap a", "!!pairs [a]", "!!map a", "!!seq a", "!!str [a]"),
        *("? {a: b}\n: c", "<<: a", "2026-99-99", "1:1.5", "1:" * 400 + "1.5", "9" * 5000),
    ],
)
def test_what_does_not_fit_its_tag_is_refused_or_read(text: str) -> None:
    for each in (text, f"a: {{b: [{text}]}}", f"- {text}\n"):
        with suppress(NotYaml):
            load(each)
        with suppress(NotYaml):
            compose(each)


def laughs(depth: int, width: int, joined: str = "[{}]") -> str:
    """A list of lists of lists ... that is written in `depth` lines."""
    lines = ["l0: &l0 [" + "ha, " * width + "]"]
    for n in range(1, depth):
        again = ", ".join([f"*l{n - 1}"] * width)
        lines.append(f"l{n}: &l{n} " + joined.format(again))
    return "\n".join(lines)


@pytest.mark.parametrize("read", [load, compose])
@pytest.mark.parametrize("joined", ["[{}]", "{{<<: [{}]}}"])
def test_a_billion_laughs_are_refused(joined: str, read: Callable[[str], Any]) -> None:
    text = laughs(9, 9, joined)
    assert len(text) < 800
    with pytest.raises(NotYaml, match="it has aliases that stand for too much"):
        read(text)


def test_a_long_text_again_and_again_is_refused() -> None:
    text = "a: &a " + "x" * 1000 + "\nb: [" + "{}" + "]"
    assert load(text.format("*a," * 1000))["b"] == ["x" * 1000] * 1000
    with pytest.raises(NotYaml, match="it has aliases that stand for too much"):
        load(text.format("*a," * 1100))


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: [*a]}", "&a {*a : b}", "&a {<<: *a}"])
def test_what_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(NotYaml):
        load(text)


def test_a_few_aliases_are_read() -> None:
    assert load(laughs(3, 3))["l2"] == [[["ha"] * 3] * 3] * 3
    assert load("a: &a {b: 1}\nc: {<<: *a, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
