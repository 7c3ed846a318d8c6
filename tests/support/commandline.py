"""Command lines, run in this process or one of their own, and how they ended."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ipvs_node_agent.cli import main
from tests.support.cluster import service
from tests.support.places import REPOSITORY, TESTS

DUAL_STACK = TESTS / "data/dual-stack.yaml"
POD_CIDR = "10.240.2.128/25"
RENDER_DUAL_STACK = ("render", "-f", str(DUAL_STACK), "--pod-cidr", POD_CIDR)
WEB = service("web", ["10.231.0.1"], ["10.19.0.1"])


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error, less the program's name."""
        match = re.fullmatch(r"ipvs-node-agent: (.*)\n", self.err)
        assert match, f"wanted one line: {self.err!r}"
        return match[1]

    @property
    def ips(self) -> list[str]:
        """The external IPs that have rules."""
        return sorted(set(re.findall(r" -d (\S+)/(?:32|128) ", self.out)))


class Command:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse ends --help and --version in this way.
            status = int(end.code or 0)
        return Result(status, *self._capsys.readouterr())

    def render(self, *arguments: str | Path) -> Result:
        """`render` with the usual pod CIDR."""
        return self("render", "--pod-cidr", POD_CIDR, *arguments)


def run(*arguments: str | Path, redirection: str = "", **options: Any) -> Result:
    """Runs the command in a process of its own, with the shell's redirection of its streams."""
    command = [sys.executable, "-m", "ipvs_node_agent", *map(str, arguments)]
    if redirection:
        command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        text=True,
        check=False,
        timeout=60,
        **{"cwd": REPOSITORY, **streams, **options},
    )
    return Result(done.returncode, done.stdout or "", done.stderr or "")


def written(name: str, *documents: Any) -> Path:
    """The file `name` with `documents` as YAML, which nobody else may write."""
    path = Path(name)
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    path.chmod(0o600)
    return path
