"""Runs the tests against real Kubernetes: `make cluster-test`.

python3 -m tests.cluster                                   # all, see RUNS; QUICK=1: QUICK_RUNS
python3 -m tests.cluster newest debian12 -k rotation       # one of them, with pytest's arguments
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence

from tests.cluster.binaries import obtain, version
from tests.support.cache import NotMade
from tests.support.places import REPOSITORY

# Both Kubernetes versions, and both ends of the range of libraries that the package will meet.
RUNS = (("newest", "debian12", ""), ("oldest", "newest", ""))
# What the second version adds nothing to, and takes minutes; and two generations of certificates.
QUICK_RUNS = (RUNS[0], ("oldest", "newest", "not rotation and not scale"))
QUICK_MINUTES = "4"


async def run(kubernetes: str, environment: str, arguments: Sequence[str], alone: bool) -> int:
    """Runs the tests with one Kubernetes version, the agent in one environment; exit status.

    Who is not alone shows its output in one piece.
    """
    name = f"Kubernetes {version(kubernetes)}, the agent in {environment}"
    print(f"{name}: begins", flush=True)
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(REPOSITORY / "tests/environments/run", environment, "--"),
        *("python3", "-m", "pytest", "-p", "no:cacheprovider", "-v"),
        # More than there are cores, as most of it is waiting.
        *("-n", "4", "--durations=12", "--dist", "loadgroup", "tests/cluster", *arguments),
        env={**os.environ, "KUBEBUILDER_ASSETS": str(obtain(kubernetes))},
        stdout=None if alone else asyncio.subprocess.PIPE,
        stderr=None if alone else asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    took = time.monotonic() - started
    print((output or b"").decode(errors="replace"), end="")
    print(f"{name}: exit status {process.returncode} after {took:.0f} s", flush=True)
    return process.returncode or 0


async def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say; 0 where all passed."""
    if arguments:
        return await run(arguments[0], arguments[1], arguments[2:], alone=True)
    quick = os.environ.get("QUICK") == "1"
    if quick:
        os.environ.setdefault("IPVS_NODE_AGENT_ROTATION_MINUTES", QUICK_MINUTES)
    runs = QUICK_RUNS if quick else RUNS
    # At the same time, as most of it is waiting: certificates expire, and watches end.
    statuses = await asyncio.gather(
        *(run(which, where, ("-k", some), alone=False) for which, where, some in runs)
    )
    return int(any(statuses))


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1:])))
    except NotMade as error:
        sys.exit(f"error: {error}")
