"""The mutations of tests/mutation.py: what they make of a line, and which ones are taken."""

from __future__ import annotations

import ast

import pytest

from tests.mutation import mutations, sample
from tests.support.places import PROGRAM, modules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", ["(a <= b)"]),
        ("a is not b", ["(a is b)"]),
        ("a and b", ["(a or b)"]),
        ("not a", ["(a)"]),
        ("a + b", ["(a - b)"]),
        ("a if b else c", ["(c if b else a)"]),
        ("x = True", ["(False)"]),
        ("x = 3", ["(4)"]),
        ("self.x = y", ["pass"]),
        ("x = y", []),
        ("f(x)", ["pass"]),
        ("raise x", ["pass"]),
        ("log.info('x')", []),
        ("'é' == x", ["('é' != x)"]),
    ],
)
def test_what_is_changed(text: str, expected: list[str]) -> None:
    assert [mutation.new for mutation in mutations("module", text)] == expected


def test_each_mutation_of_the_program_is_a_program_still() -> None:
    taken = sample(9, "")
    assert len(taken) > 90
    for mutation in taken:
        text = (PROGRAM / f"{mutation.module}.py").read_bytes()
        assert text[mutation.start : mutation.end].decode() == mutation.old
        ast.parse(text[: mutation.start] + mutation.new.encode() + text[mutation.end :])


def test_the_sample_is_spread_over_the_packages_and_does_not_depend_on_lines() -> None:
    packages = {name.split("/")[0] for name in modules() if "/" in name}
    taken = sample(2, "")
    assert {
        mutation.module.split("/")[0] for mutation in taken if "/" in mutation.module
    } == packages
    one, moved = mutations("a", "f(x)"), mutations("b/c", "\n\nf(x)")
    assert [mutation.rank for mutation in one] == [mutation.rank for mutation in moved]
