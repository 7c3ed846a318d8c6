"""Whatever happens, the mind and the Follower are never wrong: some hundred histories of each.

README.md tells what happens in them and who judges it, and `mutations_*.py` what would be seen.
"""

from __future__ import annotations

import itertools
import os
import random
import time

import pytest

from tests.simulation import follower, mind, mutations_follower, mutations_mind, search
from tests.support.examples import THOROUGH
from tests.support.faults import LONG
from tests.support.places import PROGRAM

SIMULATIONS: dict[str, search.Simulation] = {
    "mind": mind.SIMULATION,
    "follower": follower.SIMULATION,
}
MUTATIONS = [*mutations_mind.MUTATIONS, *mutations_follower.MUTATIONS]
# What the one judges takes ten times as long as what the other does.
SEEDS = {"mind": 500, "follower": 2000}
SECONDS = 3600.0 if LONG else 20.0
FIRST = 0 if os.environ.get("CI") else random.randrange(1 << 30)


@pytest.mark.parametrize("name", SIMULATIONS)
def test_no_history_has_it_do_what_it_should_not(name: str) -> None:
    seeds = search.seeds_until(FIRST, time.monotonic() + SECONDS)
    most = None if LONG else SEEDS[name] if THOROUGH else SEEDS[name] // 10
    for failure in search.failures(SIMULATIONS[name], itertools.islice(seeds, most)):
        assert failure is None, failure.text(SIMULATIONS[name])


@pytest.mark.parametrize("name", SIMULATIONS)
def test_a_history_is_a_matter_of_its_seed(name: str) -> None:
    assert SIMULATIONS[name].history(7) == SIMULATIONS[name].history(7)
    assert SIMULATIONS[name].history(7) != SIMULATIONS[name].history(8)


@pytest.mark.parametrize(("module", "old"), [(module, old) for _, module, old, _ in MUTATIONS])
def test_each_mutation_is_of_the_program_as_it_is(module: str, old: str) -> None:
    text = (PROGRAM / module).read_text()
    assert text.count(old) == 1
