"""The layout: packages say what they are for, none is overfull, and each module has its test."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.support.places import PROGRAM, TESTS, modules

PACKAGES = sorted(path.parent.name for path in PROGRAM.glob("*/__init__.py"))
LINES = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
# Shorter than a module should be, for a reason.
SHORT = {
    "__init__": "the version",
    "__main__": "an entry point has nothing of its own",
    "check/gather_pods": "two questions to others, and no judgement",
    "iptables/settling": "one pace, and who keeps it has its own idea",
    "errors": "what all others raise",
    "commands/cleanup": "a command has a file of its own, and this one has little to do",
    "commands/config": "the same",
    "commands/run": "what comes before all that takes long to import",
    "kubeconfig/installers": "a list that grows with the installers",
    "rules/invalid": "one rule, in a table of its own",
}
# Values alone, which the tests of whoever makes them are about.
WITHOUT_TEST = {
    "__init__",
    "__main__",
    "errors",
    "check/facts",
    "iptables/anytable",
    "explain/facts",
    "explain/lines",
    "config/settings",
    "model/events",
    "kubeconfig/connections",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_belongs_there_and_has_nothing_else_in_front(package: str) -> None:
    tree = ast.parse((PROGRAM / package / "__init__.py").read_text("utf-8"))
    assert len(tree.body) == 1
    said = ast.get_docstring(tree)
    assert said is not None
    # One paragraph for what it is, and at least one for what is not there.
    assert said.count("\n\n") >= 2
    assert " not " in said or "never" in said or "nothing" in said.lower()


def test_no_package_has_more_than_some_1800_lines() -> None:
    lines: Counter[str] = Counter()
    for name, count in LINES.items():
        lines[name.partition("/")[0]] += count
    assert not {name: count for name, count in lines.items() if count > 1850}


def test_no_module_has_more_than_some_400_lines() -> None:
    assert not {name: count for name, count in LINES.items() if count > 405}


def test_a_module_of_less_than_40_lines_has_a_reason() -> None:
    short = {name for name, count in LINES.items() if count < 40 and not name.endswith("/__init__")}
    assert short == set(SHORT)


def test_each_module_has_its_test_file() -> None:
    tested = {
        name
        for name in LINES
        if (TESTS / "unit" / name).with_name(test := f"test_{name.rpartition('/')[2]}.py").exists()
        # What does nothing but ask the kernel is tested with it alone.
        or (TESTS / "kernel" / test).exists()
    }
    inits = {name for name in LINES if name.endswith("/__init__")}
    assert set(LINES) - tested - inits == WITHOUT_TEST
