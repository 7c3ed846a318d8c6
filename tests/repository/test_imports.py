"""Each contract of imports in pyproject.toml is kept, and is noticed where it is broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.places import PROGRAM, REPOSITORY

# Where the linters are.
pytestmark = pytest.mark.once("newest")

# By contract: who is not to import what.
BREACHES = {
    "Layers import downwards": [
        ("cli", "__main__"),
        ("commands/diff", "cli"),
        ("check/facts", "commands"),
        ("check/facts", "observe"),
        ("explain/facts", "check"),
        ("sync/agent", "observe"),
        ("apiserver/client", "iptables"),
        ("iptables/table", "sync"),
        ("host/procfs", "rules"),
        ("rules/claims", "host"),
        ("config/settings", "rules"),
        ("nat/chains", "config"),
        ("model/objects", "nat"),
        ("errors", "model"),
        ("backoff", "errors"),
    ],
    "Commands know output alone": [("commands/render", "commands.run")],
    "Sync is told of the outside": [("sync/agent", "apiserver"), ("sync/agent", "host")],
    "Check and explain look for themselves": [("check/facts", "sync"), ("explain/facts", "sync")],
    "The API server's side knows no rules": [
        ("apiserver/client", "rules"),
        ("apiserver/client", "nat"),
    ],
    "The core is values": [
        ("model/objects", "os"),
        ("nat/chains", "subprocess"),
        ("rules/claims", "threading"),
        ("rules/planner", "logging"),
        ("rules/render", "urllib3"),
        ("config/settings", "yaml"),
        ("model/addresses", "sh"),
    ],
}

LIBRARIES = {imported for _, imported in BREACHES["The core is values"]}


def looked_at(directory: Path) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """KEPT or BROKEN, by contract, of the program in `directory`; and the imports in question."""
    if not shutil.which("lint-imports"):
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        ["lint-imports", "--no-cache", "--config", str(REPOSITORY / "pyproject.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "NO_COLOR": "1", "COLUMNS": "200"},
    )
    found = dict(re.findall(r"^(\S.*?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))
    assert found.keys() == BREACHES.keys(), done.stdout + done.stderr
    return found, set(re.findall(r"(\S+) -> (\S+) \(l\.", done.stdout))


def test_all_contracts_are_kept() -> None:
    found, _ = looked_at(REPOSITORY)
    assert set(found.values()) == {"KEPT"}


@pytest.mark.parametrize("contract", BREACHES)
def test_each_breach_is_noticed(contract: str, tmp_path: Path) -> None:
    program = tmp_path / PROGRAM.name
    shutil.copytree(PROGRAM, program, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = set()
    for module, imported in BREACHES[contract]:
        name = imported if imported in LIBRARIES else f"{PROGRAM.name}.{imported}"
        with (program / f"{module}.py").open("a") as file:
            file.write(f"import {name}\n")
        wanted.add((f"{PROGRAM.name}.{module}".replace("/", "."), name))
    found, questioned = looked_at(tmp_path)
    assert found[contract] == "BROKEN"
    assert wanted - questioned == set()
