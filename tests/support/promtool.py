"""Prometheus' own judge of rules, metrics and queries, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.examples import ENVIRONMENT


def need_prometheus() -> None:
    """Passes over a test where there is no Prometheus; Debian 12's and 13's environment have it."""
    if not ENVIRONMENT.startswith("debian") and not shutil.which("promtool"):
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
