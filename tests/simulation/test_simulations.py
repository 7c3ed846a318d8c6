"""Whatever happens, the mind and the Follower are never wrong: some hundred histories of each.

README.md tells what happens in them and who judges it, and `mutations_*.py` what would be seen.
"""

from __future__ import annotations

import itertools
import os
import random
import time

import pytest

from tests.simulation.__main__ import SIMULATIONS
from tests.simulation.mutate import MUTATIONS
from tests.simulation.search import Simulation, failures, seeds_until
from tests.support.examples import THOROUGH
from tests.support.faults import LONG
from tests.support.places import PROGRAM

# What the one judges takes ten times as long as what the other does.
SEEDS = {"mind": 500, "follower": 2000}
SECONDS = 3600.0 if LONG else 20.0
FIRST = 0 if os.environ.get("CI") else random.randrange(1 << 30)

each_simulation = pytest.mark.parametrize("simulation", SIMULATIONS.values(), ids=SIMULATIONS)


@each_simulation
def test_no_history_has_it_do_what_it_should_not(simulation: Simulation) -> None:
    seeds = seeds_until(FIRST, time.monotonic() + SECONDS)
    some = SEEDS[simulation.name]
    most = None if LONG else some if THOROUGH else some // 10
    for failure in failures(simulation, itertools.islice(seeds, most)):
        assert failure is None, failure.text(simulation)


@each_simulation
def test_a_history_is_a_matter_of_its_seed(simulation: Simulation) -> None:
    assert simulation.history(7) == simulation.history(7)
    assert simulation.history(7) != simulation.history(8)


@pytest.mark.parametrize("simulation", MUTATIONS)
def test_each_mutation_is_of_the_program_as_it_is(simulation: str) -> None:
    for module, mutations in MUTATIONS[simulation].items():
        text = (PROGRAM / module).read_text()
        for name, (old, _) in mutations.items():
            assert text.count(old) == 1, name
