"""Runs the tests against real Kubernetes: `make cluster-test`.

python3 -m tests.cluster                                   # all, see RUNS
python3 -m tests.cluster newest debian12 -k rotation       # one of them, with pytest's arguments
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries import NotObtained, obtain, version

REPOSITORY = Path(__file__).resolve().parents[2]
# Both Kubernetes versions, and both ends of the range of libraries that the package will meet.
RUNS = (("newest", "debian12"), ("oldest", "newest"))


def run(kubernetes: str, environment: str, arguments: Sequence[str]) -> int:
    """Runs the tests with one Kubernetes version, the agent in one environment; exit status."""
    print(f"Kubernetes {version(kubernetes)}, the agent in {environment}:", flush=True)
    started = time.monotonic()
    command = [
        str(REPOSITORY / "tests/environments/run"),
        *(environment, "--", "python3", "-m", "pytest", "-p", "no:cacheprovider", "-v"),
        # A process for the rotation, one for the large cluster, one for all the rest meanwhile.
        *("-n", "3", "--dist", "loadgroup", "tests/cluster", *arguments),
    ]
    assets = {"KUBEBUILDER_ASSETS": str(obtain(kubernetes))}
    status = subprocess.run(command, env={**os.environ, **assets}, check=False).returncode
    print(f"exit status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status


def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say; 0 where all passed."""
    if arguments:
        return run(arguments[0], arguments[1], arguments[2:])
    # One after the other: what is measured here needs its cores.
    statuses = [run(kubernetes, environment, ()) for kubernetes, environment in RUNS]
    return int(any(statuses))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotObtained as error:
        sys.exit(f"error: {error}")
