"""The loader of YAML: plain data, to a bounded depth."""

from __future__ import annotations

import pytest
import yaml

from ipvs_node_agent.yamlloader import DEPTH, load


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_what_is_nested_up_to_the_bound_is_read() -> None:
    read = load(lists(DEPTH))
    for _ in range(DEPTH - 1):
        (read,) = read
    assert read == []


def test_what_is_nested_deeper_is_refused() -> None:
    with pytest.raises(RecursionError, match="it is nested too deeply"):
        load(lists(DEPTH + 1))


def test_many_values_side_by_side_are_not_deep() -> None:
    assert load(f"[{'[], ' * DEPTH * 3}]") == [[]] * DEPTH * 3


def test_no_tag_makes_an_object() -> None:
    with pytest.raises(yaml.constructor.ConstructorError):
        load("!!python/object/apply:os.getpid []")
