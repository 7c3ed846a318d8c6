"""Runs the tests against real Kubernetes: `make cluster-test`.

python3 -m tests.cluster                                   # all, see RUNS; QUICK=1: QUICK_RUNS
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
RUNS = (("newest", "debian12", ""), ("oldest", "newest", ""))
# What the second version adds nothing to, and takes minutes; and two generations of certificates.
QUICK_RUNS = (RUNS[0], ("oldest", "newest", "not rotation and not scale"))
QUICK_MINUTES = "4"


def run(kubernetes: str, environment: str, arguments: Sequence[str]) -> int:
    """Runs the tests with one Kubernetes version, the agent in one environment; exit status."""
    print(f"Kubernetes {version(kubernetes)}, the agent in {environment}:", flush=True)
    started = time.monotonic()
    command = [
        str(REPOSITORY / "tests/environments/run"),
        *(environment, "--", "python3", "-m", "pytest", "-p", "no:cacheprovider", "-v"),
        # More than there are cores, as most of it is waiting.
        *("-n", "4", "--durations=12", "--dist", "loadgroup", "tests/cluster", *arguments),
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
    quick = os.environ.get("QUICK") == "1"
    if quick:
        os.environ.setdefault("IPVS_NODE_AGENT_ROTATION_MINUTES", QUICK_MINUTES)
    runs = QUICK_RUNS if quick else RUNS
    statuses = [run(which, where, ("-k", some)) for which, where, some in runs]
    return int(any(statuses))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotObtained as error:
        sys.exit(f"error: {error}")
