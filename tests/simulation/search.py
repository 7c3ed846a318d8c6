"""Finds seeds under which a simulation fails, and the shortest history that still does.

A history is a list of steps, made from a seed and from nothing else, and each step is a plain value
that says all that happens in it: a method of the simulated world, and what it is called with. So a
history can be played again, printed, and shortened: what is left of it after some steps are taken
away is a history too.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, NamedTuple

# So many histories at most are played to find a shorter one that fails.
_SHRINKS = 2000
_FRAMES = 6


class Violation(AssertionError):
    """Something that has to hold at every moment did not."""


class Step(NamedTuple):
    """A method of a world, and its arguments."""

    name: str
    arguments: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.arguments))})"

    def happen(self, world: object) -> None:
        getattr(world, self.name)(*self.arguments)


def step(name: str, *arguments: object) -> Step:
    return Step(name, arguments)


class Simulation(NamedTuple):
    """A world that a seed decides; `play` raises Violation, or whatever the program raises."""

    name: str
    history: Callable[[int], Sequence[Any]]
    play: Callable[[Sequence[Any]], None]


class Failure(NamedTuple):
    """A seed that fails, its shortest history, and what that ends in."""

    seed: int
    steps: Sequence[Any]
    why: str

    def text(self, simulation: Simulation) -> str:
        """For people: the story, and how to see it again."""
        story = "".join(f"\n  {number:3} {each}" for number, each in enumerate(self.steps, 1))
        again = f"python3 -m tests.simulation {simulation.name} --seed {self.seed}"
        return f"seed {self.seed} fails; see it again with `{again}`{story}\n{self.why}"


def fault(simulation: Simulation, steps: Sequence[Any]) -> str:
    """What goes wrong while `steps` happen; empty where nothing does."""
    try:
        simulation.play(steps)
    except Exception as error:
        if isinstance(error, Violation):
            return str(error)
        frames = traceback.format_tb(error.__traceback__)[-_FRAMES:]
        return "".join([*frames, f"{type(error).__name__}: {error}"])
    return ""


def shrunk(simulation: Simulation, steps: Sequence[Any]) -> Sequence[Any]:
    """A part of `steps` that still fails, of which no single step can be left out."""
    left = _SHRINKS
    size = max(1, len(steps) // 2)
    while True:
        start, before = 0, len(steps)
        while start < len(steps):
            shorter = [*steps[:start], *steps[start + size :]]
            left -= 1
            if left < 0:
                return steps
            if fault(simulation, shorter):
                steps = shorter
            else:
                start += size
        if size == 1 and len(steps) == before:
            return steps
        size = max(1, size // 2)


def failures(simulation: Simulation, seeds: Iterable[int]) -> Iterator[Failure | None]:
    """For each of `seeds` in turn how it fails, shrunk; None where it does not."""
    for seed in seeds:
        steps = simulation.history(seed)
        if not fault(simulation, steps):
            yield None
            continue
        short = shrunk(simulation, steps)
        yield Failure(seed, short, fault(simulation, short))


def seeds_until(first: int, end: float) -> Iterator[int]:
    """Seeds from `first` on until the monotonic time `end`."""
    while time.monotonic() < end:
        yield first
        first += 1
