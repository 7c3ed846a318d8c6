"""Breaks the program in each way that a simulation is to see, and tells which seed saw it.

    python3 -m tests.simulation.mutate mind [--minutes 2]

Each mutation is made in a copy of the program, where the simulation runs until it fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.simulation import mutations_follower, mutations_mind
from tests.support.places import PROGRAM, TESTS

MUTATIONS = {"mind": mutations_mind.MUTATIONS, "follower": mutations_follower.MUTATIONS}


def seen(simulation: str, module: str, old: str, new: str, minutes: float) -> str:
    """How the simulation saw the mutation; empty where it did not."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, PROGRAM.name)
        shutil.copytree(PROGRAM, copy, ignore=shutil.ignore_patterns("__pycache__"))
        Path(directory, "tests").symlink_to(TESTS)
        path = copy / module
        path.write_text(path.read_text().replace(old, new))
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", simulation, "--minutes", str(minutes)],
            cwd=directory,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return ""
    found = re.search(r"^(seed \d+) fails.*^(after .*)", done.stdout, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"the simulation does not run:\n{done.stdout}{done.stderr}")
    return f"{found[1]}, {found[2].strip()}"


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m tests.simulation.mutate", description=__doc__)
    parser.add_argument("name", choices=MUTATIONS)
    parser.add_argument("--minutes", type=float, default=2.0, help="for each mutation at most")
    parser.add_argument("--only", metavar="WORDS", default="", help="those with it in their name")
    options = parser.parse_args()
    missed = 0
    for module, mutations in MUTATIONS[options.name].items():
        for name, (old, new) in mutations.items():
            if options.only in name:
                how = seen(options.name, module, old, new, options.minutes)
                missed += not how
                print(f"{name}: {how or 'NOT SEEN'}", flush=True)
    print(f"{missed} were not seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
