"""Prometheus' own judge of rules, metrics and queries, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.examples import ENVIRONMENT

# Debian 12's and 13's environments always have it.
THERE = ENVIRONMENT.startswith("debian") or shutil.which("promtool") is not None


def need_prometheus() -> None:
    """Passes over a test where there is no Prometheus."""
    if not THERE:
        pytest.skip("the package prometheus is not installed")


def promtool(*arguments: str, stdin: str = "", directory: Path | None = None) -> tuple[int, str]:
    """What `promtool` says, and its exit status."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
        cwd=directory,
    )
    return done.returncode, done.stdout


def check_queries(queries: Sequence[str], directory: Path) -> None:
    """Holds that Prometheus takes each of `queries`, as the expression of a rule."""
    need_prometheus()
    rules = [{"record": f"query_{n}", "expr": query} for n, query in enumerate(queries)]
    groups = {"groups": [{"name": "queries", "rules": rules}]}
    (directory / "queries.yaml").write_text(yaml.safe_dump(groups))
    status, said = promtool("check", "rules", "queries.yaml", directory=directory)
    assert status == 0, said
    assert f"{len(queries)} rules found" in said
