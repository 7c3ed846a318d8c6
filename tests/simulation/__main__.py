"""Runs a simulation from the command line; see tests/simulation/README.md."""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time

from tests.simulation.search import Simulation, failures, seeds_until

NAMES = ("mind", "follower")
_PROGRESS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m tests.simulation", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="what is simulated")
    parser.add_argument("--seed", type=int, help="play this seed alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, help="play so many seeds")
    parser.add_argument("--minutes", type=float, default=1.0, help="or as long as that")
    options = parser.parse_args()
    module = importlib.import_module(f"tests.simulation.{options.name}")
    simulation: Simulation = module.SIMULATION
    started = time.monotonic()
    seeds = seeds_until(options.first, started + options.minutes * 60)
    if options.seed is not None:
        seeds = iter([options.seed])
    elif options.seeds is not None:
        seeds = itertools.islice(itertools.count(options.first), options.seeds)
    said, count = started, 0
    for count, failure in enumerate(failures(simulation, seeds), 1):
        if failure is not None:
            print(failure.text(simulation))
            print(f"after {count} seeds and {time.monotonic() - started:.1f} s")
            return 1
        if sys.stderr.isatty() and time.monotonic() - said > _PROGRESS:
            said = time.monotonic()
            print(f"{count} seeds, none failed", file=sys.stderr)
    seconds = time.monotonic() - started
    print(f"{count} seeds in {seconds:.0f} s, {count / seconds * 60:.0f} a minute: none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
