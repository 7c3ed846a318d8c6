"""Breaks the program in a hundred ways, spread over its packages, and tells which the tests notice.

    python3 -m tests.mutation [--each 9] [--only sync] [--jobs 2]

A mutation changes one expression or leaves one statement out. Which ones are taken goes by a hash
of what they change, and of neither file nor line: so a move does not change the sample, and a run
before and one after a change of the tests can be compared. For each, the tests of its package run
until one fails, and then those files of tests/unit and tests/simulation that execute the mutated
function; a run without mutations tells which. It is noticed where a test fails that passes without
it, or does not end; what is left is for a reader to judge, as not every mutation is a fault.

It needs Debian's python3-coverage, takes an hour or so on two cores, and is no part of CI.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.places import PROGRAM, REPOSITORY, modules

_SECONDS = 900
_NO_TESTS = 5  # pytest's exit status.
ELSEWHERE = ["tests/unit", "tests/simulation"]
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_CALCULATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
}


class Mutation(NamedTuple):
    """In `module`, `new` in the place of the text from `start` to `end`, which is `old`.

    `context` is the line on which it begins.
    """

    module: str
    line: int
    start: int
    end: int
    old: str
    new: str
    context: str

    @property
    def rank(self) -> str:
        """Where it stands in the order in which mutations are taken."""
        return hashlib.sha256("\0".join((self.context, self.old, self.new)).encode()).hexdigest()

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.module}.py:{self.line}: {old}  ->  {new}"


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What `node` could be instead."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        operator = _COMPARED[type(node.ops[0])]()
        yield ast.Compare(node.left, [operator, *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _CALCULATED:
        yield ast.BinOp(node.left, _CALCULATED[type(node.op)](), node.right)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Raise)):
        is_own = isinstance(node, ast.Raise) or any(
            isinstance(target, ast.Attribute)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        )
        if is_own:
            yield ast.Pass()


def is_told(node: ast.AST) -> bool:
    """Whether `node` only makes a log line, which documents are held to and nothing else."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id == "log"
    )


def mutations(module: str, text: str) -> Iterator[Mutation]:
    """All mutations of a module's `text`."""
    starts = [0]
    for each in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(each))
    for node in ast.walk(ast.parse(text)):
        if is_told(node):
            continue
        for other in changed(node):
            line, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
            start = starts[line - 1] + getattr(node, "col_offset", 0)
            end = starts[last - 1] + getattr(node, "end_col_offset", 0)
            new = ast.unparse(ast.fix_missing_locations(other))
            if not isinstance(other, ast.Pass):
                new = f"({new})"
            old, context = text.encode()[start:end].decode(), text.split("\n")[line - 1].strip()
            yield Mutation(module, line, start, end, old, new, context)


def package_of(module: str) -> str:
    """The package that `module` is in; "top" for those beside the packages."""
    return module.split("/")[0] if "/" in module else "top"


def sample(each: int, only: str) -> list[Mutation]:
    """`each` mutations of every package, those that come first in their order."""
    found: dict[str, list[Mutation]] = {}
    for module, path in modules().items():
        found.setdefault(package_of(module), []).extend(mutations(module, path.read_text("utf-8")))
    return [
        mutation
        for package, all_of_it in sorted(found.items())
        if only in package
        for mutation in sorted(all_of_it, key=lambda mutation: mutation.rank)[:each]
    ]


def copy_to(folder: Path) -> None:
    """The repository, to be changed."""
    ignored = shutil.ignore_patterns("__pycache__", ".git", "dist", ".*cache")
    shutil.copytree(REPOSITORY, folder, ignore=ignored, dirs_exist_ok=True, symlinks=True)


class Tests:
    """Which test files execute what, and the tests that prove nothing as they fail anyway."""

    def __init__(self, folder: Path) -> None:
        # Not for those who import this module without it.
        import coverage

        self._folder = folder
        rules = folder / "coverage.ini"
        rules.write_text(f"[run]\ndynamic_context = test_function\nsource = {PROGRAM.name}\n")
        self.broken = failing(folder, ELSEWHERE, f"-m coverage run --rcfile={rules} -m pytest")
        self._data = coverage.CoverageData(str(folder / ".coverage"))
        self._data.read()

    def executing(self, mutation: Mutation) -> list[str]:
        """The files with tests that execute the function that `mutation` is in.

        Of what is in no function, they are those that execute any of its module.
        """
        path = self._folder / PROGRAM.name / f"{mutation.module}.py"
        around = [
            range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            for node in ast.walk(ast.parse((PROGRAM / f"{mutation.module}.py").read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
            and node.lineno <= mutation.line <= (node.end_lineno or 0)
        ]
        within = min(around, key=len, default=range(1, sys.maxsize))
        lines = self._data.contexts_by_lineno(str(path))
        names = {name for line in lines if line in within for name in lines[line] if name}
        return sorted({f for name in names if (f := _file_of(name))})


def _file_of(test: str) -> str:
    """The file of a test that is called as Python calls it: tests.unit.test_cli.Test.test_name."""
    parts = test.split(".")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length]) + ".py"
        if (REPOSITORY / name).is_file():
            return name
    return ""


def noticed(folder: Path, mutation: Mutation, tests: Tests) -> str:
    """The first test that notices `mutation`; empty where none does."""
    path = folder / PROGRAM.name / f"{mutation.module}.py"
    whole = path.read_bytes()
    mutated = whole[: mutation.start] + mutation.new.encode() + whole[mutation.end :]
    own = f"tests/unit/{package_of(mutation.module)}"
    but = list(tests.broken)
    others = [name for name in tests.executing(mutation) if not name.startswith(f"{own}/")]
    for some in ([own] if (folder / own).is_dir() else [], others):
        while some:
            path.write_bytes(mutated)
            found = failing(folder, ["-x", *(f"--deselect={name}" for name in but), *some])
            path.write_bytes(whole)
            if not found:
                break
            # A machine that is busy fails tests too.
            if "::" not in found[0] or not failing(folder, found[:1]):
                return found[0]
            but.append(found[0])
    return ""


def failing(folder: Path, arguments: Sequence[str], pytest: str = "-m pytest") -> list[str]:
    """The tests that fail, of those that pytest runs with `arguments`."""
    options = ["-q", "-p", "no:cacheprovider", "--tb=no"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    # All of tests/unit run there, with a tenth of the examples.
    environment["IPVS_NODE_AGENT_ENVIRONMENT"] = "oldest"
    try:
        done = subprocess.run(
            [sys.executable, *pytest.split(), *options, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"no end within {_SECONDS} s"]
    if done.returncode in (0, _NO_TESTS):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    names = [line.split(" ", 1)[1].partition(" - ")[0] for line in lines]
    return names or [f"status {done.returncode}: {(done.stdout + done.stderr)[-200:]}"]


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m tests.mutation", description=__doc__)
    parser.add_argument("--each", type=int, default=9, help="so many mutations of each package")
    parser.add_argument("--only", default="", metavar="PACKAGE")
    parser.add_argument("--jobs", type=int, default=2, help="so many at the same time")
    options = parser.parse_args()
    chosen = sample(options.each, options.only)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        # Some tests become nobody, who has to get there.
        Path(work).chmod(0o755)
        folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            folder = Path(work) / str(number)
            copy_to(folder)
            folders.put(folder)
        # Whatever fails without a mutation proves nothing with one.
        tests = Tests(folder)
        print(f"without any mutation, these fail and are left out: {tests.broken}", flush=True)

        def look(mutation: Mutation) -> str:
            folder = folders.get()
            try:
                return noticed(folder, mutation, tests)
            finally:
                folders.put(folder)

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for number, (mutation, by) in enumerate(zip(chosen, pool.map(look, chosen)), 1):
                seen[package_of(mutation.module)] += bool(by)
                print(f"{number}/{len(chosen)} {mutation}\n    {by or 'NOT NOTICED'}", flush=True)
    of = Counter(package_of(mutation.module) for mutation in chosen)
    for package, all_of_it in of.items():
        print(f"{package:12} {seen[package]} of {all_of_it}")
    print(f"{sum(seen.values())} of {len(chosen)} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
