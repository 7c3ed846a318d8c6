"""A chain that is edited is what it would be if it were written anew, and its Services count on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.nat import edits
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


A, B, C, D, E, F = (Kept(name, number, number) for number, name in enumerate("abcdef", 1))


@pytest.mark.parametrize(
    ("there", "wanted", "commands"),
    [
        ((A, B, C), (A, B._replace(cluster_ip=9), C), ["-R IPVS_OUTPUT 4"]),
        ((A, B, C), (A, B, C, D), ["-I IPVS_OUTPUT 7", "-I IPVS_OUTPUT 8"]),
        ((B, C, D), (A, B, C, D), ["-I IPVS_OUTPUT 1", "-I IPVS_OUTPUT 2"]),
        ((A, B, C, D), (A, B, D), ["-D IPVS_OUTPUT 5"] * 2),
        ((A, B, C, D), (A, B, C), ["-D IPVS_OUTPUT 7"] * 2),
        ((A, B, C), (A, D, C), ["-R IPVS_OUTPUT 3", "-R IPVS_OUTPUT 4"]),
        (
            (A, B, C, D, E, F),
            (A, B._replace(cluster_ip=9), C, D._replace(cluster_ip=9), E, F),
            ["-R IPVS_OUTPUT 4", "-R IPVS_OUTPUT 8"],
        ),
    ],
    ids=[
        "another ClusterIP",
        "behind all",
        "before all",
        "one goes",
        "the last goes",
        "another",
        "one between two others stays",
    ],
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
        (
            (A, B, C._replace(service="b"), D._replace(service="b"), E, F),
            (
                A,
                B._replace(cluster_ip=9),
                C._replace(service="b"),
                D._replace(service="b", cluster_ip=9),
                E,
                F,
            ),
        ),
    ],
    ids=[
        "all new",
        "none",
        "all others",
        "both ends",
        "a Service that keeps others",
        "a Service that keeps one between two",
    ],
)
@pytest.mark.parametrize("few", [0, 8])
def test_a_chain_is_written_anew_where_that_is_better(
    there: tuple[Kept, ...], wanted: tuple[Kept, ...], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of how many Services the rules are looked through makes no difference."""
    monkeypatch.setattr(edits, "_FEW", few)
    assert edit(rules(*there), rules(*wanted)) is None


SERVICES = st.builds(Kept, st.sampled_from("abcde"), st.integers(1, 6), st.integers(1, 3))
KEPT = st.lists(SERVICES, max_size=9)


@st.composite
def changed(draw: st.DrawFn) -> tuple[Rules, Rules]:
    """A chain, and one that has a few others of its Services or has nothing to do with it."""
    there = draw(KEPT)
    places = draw(st.sets(st.integers(0, 8), max_size=3))
    some = [draw(SERVICES) if at in places else kept for at, kept in enumerate(there)]
    return rules(*there), rules(*draw(st.one_of(st.just(some), KEPT)))


@given(changed())
def test_the_chain_becomes_what_is_wanted_and_each_service_keeps_all_counters_or_none(
    chains: tuple[Rules, Rules],
) -> None:
    there, wanted = chains
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
    assert [rule for rule, new in zip(wanted, fresh) if new] == [*made.written]
    for service in counted(wanted):
        anew = {new for rule, new in zip(wanted, fresh) if service in counted([rule])}
        assert anew == {service in counted(made.written)}
