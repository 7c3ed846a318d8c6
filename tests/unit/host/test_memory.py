"""Freed memory goes back to the system, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.places import REPOSITORY


def printed(program: str, told: str) -> int:
    """The number that `program` prints in a process of its own."""
    command = [sys.executable, "-c", program, told]
    return int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout)


# How many MiB are left of 40 in small pieces, after the size of a list made glibc keep them.
PROGRAM = """
import sys
from ipvs_node_agent.host.memory import return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

if sys.argv[1] == "told":
    return_freed_memory()
before = resident()
bytearray(30 << 20)
pieces = [bytearray(100_000) for _ in range(400)]
del pieces
print(resident() - before)
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_what_was_freed_goes_back_where_the_c_library_is_told(told: str) -> None:
    assert (printed(PROGRAM, told) < 15) == (told == "told")


# How many MiB are left of 40 in small pieces below one that stays.
BELOW = """
import sys
from ipvs_node_agent.host.memory import return_freed_memory, return_pages

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

return_freed_memory()
return_pages()
before = resident()
pieces = [bytearray(100_000) for _ in range(400)]
stays = bytearray(100_000)
del pieces
if sys.argv[1] == "told":
    return_pages()
print(resident() - before)
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_what_is_free_below_others_goes_back_where_that_is_asked_for(told: str) -> None:
    assert (printed(BELOW, told) < 15) == (told == "told")


# How often Python has looked for cycles among all that there is, once many objects were made.
COLLECTED = """
import gc, sys
from ipvs_node_agent.host.memory import collect_seldom

if sys.argv[1] == "told":
    collect_seldom()
before = sum(each["collections"] for each in gc.get_stats())
kept = [{} for _ in range(200_000)]
print(sum(each["collections"] for each in gc.get_stats()) - before)
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_many_objects_are_few_reasons_to_look_for_garbage(told: str) -> None:
    assert (printed(COLLECTED, told) < 20) == (told == "told")
