"""The simulation of the whole mind, as `search` wants it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tests.simulation import history
from tests.simulation.history import Backend, Step
from tests.simulation.world import World


class Mind:
    """`agent.Agent` in a world that a seed decides."""

    name = "mind"

    def history(self, seed: int) -> Sequence[Step]:
        """See `history.history`."""
        return history.history(seed)

    def play(self, steps: Sequence[Step]) -> None:
        """Lets all of it happen, and then waits until the world has been quiet for long."""
        logging.disable(logging.CRITICAL)
        try:
            world = World(any(isinstance(step, Backend) and step.tells for step in steps))
            for step in steps:
                world.do(step)
            world.end()
        finally:
            logging.disable(logging.NOTSET)


SIMULATION = Mind()
