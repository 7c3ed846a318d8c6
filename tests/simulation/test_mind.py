"""The mind is never wrong for good, and never for a moment by its own doing, whatever happens.

See `world.py` for what happens, `oracle.py` for what has to hold, and `mutations_mind.py` for what
would be seen.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path

import pytest

import ipvs_node_agent
from tests.simulation import search
from tests.simulation.mind import SIMULATION
from tests.simulation.mutations_mind import MUTATIONS
from tests.support.examples import THOROUGH
from tests.support.faults import LONG

_SECONDS = 3600.0 if LONG else 30.0
_SEEDS = None if LONG else 500 if THOROUGH else 50
_FIRST = 0 if os.environ.get("CI") else random.randrange(1 << 30)


def test_no_history_has_it_be_wrong() -> None:
    seeds = search.seeds_until(_FIRST, time.monotonic() + _SECONDS)
    for failure in search.failures(SIMULATION, itertools.islice(seeds, _SEEDS)):
        assert failure is None, failure.text(SIMULATION)


def test_a_history_is_a_matter_of_its_seed() -> None:
    assert SIMULATION.history(7) == SIMULATION.history(7)
    assert SIMULATION.history(7) != SIMULATION.history(8)


@pytest.mark.parametrize(("module", "old"), [(module, old) for _, module, old, _ in MUTATIONS])
def test_each_mutation_is_of_the_program_as_it_is(module: str, old: str) -> None:
    text = (Path(ipvs_node_agent.__file__).parent / module).read_text()
    assert text.count(old) == 1
