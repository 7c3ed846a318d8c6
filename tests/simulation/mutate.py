"""Breaks the program in each way that a simulation is to see, and tells which seed saw it.

    python3 -m tests.simulation.mutate mind [--minutes 2]

Each mutation is made in a copy of the program, where the simulation runs until it fails.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.simulation.__main__ import NAMES

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "ipvs_node_agent"


def mutated(directory: Path, module: str, old: str, new: str) -> None:
    """A copy of the program in `directory`, with `new` in the place of `old`."""
    shutil.copytree(
        REPOSITORY / PACKAGE, directory / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    (directory / "tests").symlink_to(REPOSITORY / "tests")
    path = directory / PACKAGE / module
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{module} has this {text.count(old)} times, not once:\n{old}")
    path.write_text(text.replace(old, new))


def seen(simulation: str, module: str, old: str, new: str, minutes: float) -> str:
    """How the simulation saw the mutation; empty where it did not."""
    with tempfile.TemporaryDirectory() as name:
        mutated(Path(name), module, old, new)
        command = [sys.executable, "-m", "tests.simulation", simulation, "--minutes", str(minutes)]
        done = subprocess.run(
            command,
            cwd=name,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    seed = re.search(r"^seed (\d+) fails", done.stdout, re.MULTILINE)
    after = re.search(r"^after .*", done.stdout, re.MULTILINE)
    if done.returncode == 1 and seed and after:
        return f"seed {seed[1]}, {after[0]}"
    if done.returncode != 0:
        raise SystemExit(f"the simulation does not run:\n{done.stdout}{done.stderr}")
    return ""


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m tests.simulation.mutate", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--minutes", type=float, default=2.0, help="for each mutation at most")
    parser.add_argument("--only", metavar="WORDS", default="", help="those with it in their name")
    options = parser.parse_args()
    module = importlib.import_module(f"tests.simulation.mutations_{options.name}")
    mutations = [mutation for mutation in module.MUTATIONS if options.only in mutation[0]]
    missed = 0
    for name, path, old, new in mutations:
        how = seen(options.name, path, old, new, options.minutes)
        missed += not how
        print(f"{name}: {how or 'NOT SEEN'}", flush=True)
    print(f"{len(mutations) - missed} of {len(mutations)} seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
