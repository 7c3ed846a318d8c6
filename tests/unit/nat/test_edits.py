"""A chain that is edited is what it would be if it were written anew, and its Services count on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.nat.edits import counted, edit
from tests.support.faketable import applied

CHAIN = "IPVS_OUTPUT"
Rules = tuple[str, ...]


class Kept(NamedTuple):
    """A Service's address with its rules: one that marks, and one that is counted."""

    service: str
    address: int
    cluster_ip: int

    @property
    def rules(self) -> Rules:
        match = f'-d 10.19.0.{self.address}/32 -m comment --comment "default/{self.service}"'
        to = f"--to-destination 10.231.0.{self.cluster_ip}"
        return f"{match} -j RETURN", f"{match} -j DNAT {to}"


def rules(*kept: Kept) -> Rules:
    return tuple(rule for each in kept for rule in each.rules)


def put_right(there: Rules, *commands: str) -> Rules:
    """What a table holds after these commands."""
    text = "\n".join(["*nat", *commands, "COMMIT", ""])
    return tuple(applied({CHAIN: [*there]}, text)[CHAIN])


A, B, C, D = (Kept(name, number, number) for number, name in enumerate("abcd", 1))


@pytest.mark.parametrize(
    ("there", "wanted", "commands"),
    [
        ((A, B, C), (A, B._replace(cluster_ip=9), C), ["-R IPVS_OUTPUT 4"]),
        ((A, B, C), (A, B, C, D), ["-I IPVS_OUTPUT 7", "-I IPVS_OUTPUT 8"]),
        ((B, C, D), (A, B, C, D), ["-I IPVS_OUTPUT 1", "-I IPVS_OUTPUT 2"]),
        ((A, B, C, D), (A, B, D), ["-D IPVS_OUTPUT 5"] * 2),
        ((A, B, C, D), (A, B, C), ["-D IPVS_OUTPUT 7"] * 2),
        ((A, B, C), (A, D, C), ["-R IPVS_OUTPUT 3", "-R IPVS_OUTPUT 4"]),
    ],
    ids=["another ClusterIP", "behind all", "before all", "one goes", "the last goes", "another"],
)
def test_only_what_differs_is_written(
    there: tuple[Kept, ...], wanted: tuple[Kept, ...], commands: list[str]
) -> None:
    made = edit(rules(*there), rules(*wanted))
    assert made is not None
    assert [" ".join(line.split()[:3]) for line in made.commands(CHAIN)] == commands
    assert put_right(rules(*there), *made.commands(CHAIN)) == rules(*wanted)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ((), (A,)),
        ((A,), ()),
        ((A, B), (C, D)),
        ((A, B, C), (A._replace(cluster_ip=9), B, C._replace(cluster_ip=9))),
        ((A, B._replace(service="a")), (A, B._replace(service="a", cluster_ip=9))),
    ],
    ids=["all new", "none", "all others", "both ends", "a Service that keeps others"],
)
def test_a_chain_is_written_anew_where_that_is_better(
    there: tuple[Kept, ...], wanted: tuple[Kept, ...]
) -> None:
    assert edit(rules(*there), rules(*wanted)) is None


SERVICES = st.builds(Kept, st.sampled_from("abc"), st.integers(1, 6), st.integers(1, 3))
CHAINS = st.lists(SERVICES, max_size=7).map(lambda kept: rules(*kept))


@given(CHAINS, CHAINS)
def test_the_chain_becomes_what_is_wanted_and_each_service_keeps_all_counters_or_none(
    there: Rules, wanted: Rules
) -> None:
    made = edit(there, wanted)
    if made is None:
        return
    commands = [*made.commands(CHAIN)]
    assert put_right(there, *commands) == wanted
    assert len(commands) <= max(len(made.gone), len(made.come))
    # Whether the rule in each place is a new one.
    fresh = [False] * len(there)
    for command, _, place, *_ in map(str.split, commands):
        at = int(place) - 1
        fresh[at : at + (command != "-I")] = [] if command == "-D" else [True]
    seen = list(zip(wanted, fresh))
    for service in counted(wanted):
        anew = {new for rule, new in seen if service in counted([rule])}
        assert anew == {False} or service in counted(made.come)
        assert len(anew) == 1 or all(rule in wanted for rule in made.come)
