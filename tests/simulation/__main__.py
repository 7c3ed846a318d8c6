"""Runs a simulation from the command line; see tests/simulation/README.md."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation import follower, search, world

SIMULATIONS = {each.name: each for each in (world.SIMULATION, follower.SIMULATION)}


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m tests.simulation", description=__doc__)
    parser.add_argument("name", choices=SIMULATIONS, help="what is simulated")
    parser.add_argument("--seed", type=int, help="play this seed alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to play")
    options = parser.parse_args()
    simulation = SIMULATIONS[options.name]
    started = time.monotonic()
    seeds = search.seeds_until(options.first, started + options.minutes * 60)
    if options.seed is not None:
        seeds = iter([options.seed])
    count = 0
    for count, failure in enumerate(search.failures(simulation, seeds), 1):
        if failure is not None:
            print(failure.text(simulation))
            print(f"after {count} seeds and {time.monotonic() - started:.1f} s")
            return 1
    seconds = time.monotonic() - started
    print(f"{count} seeds in {seconds:.0f} s, {count / seconds * 60:.0f} a minute: none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
