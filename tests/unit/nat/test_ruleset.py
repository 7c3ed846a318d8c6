"""The smallest input that makes a table what is wanted, and what others did to one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.nat.ruleset import (
    DRIFT,
    Found,
    Ruleset,
    applied,
    difference,
    differing,
    drift,
)
from ipvs_node_agent.nat.saveformat import restore_input
from tests.unit.nat.test_saveformat import found

PRE, OUT = "IPVS_PREROUTING", "IPVS_OUTPUT"
WANTED = Ruleset(
    chains={PRE: ("-p tcp -j A", "-p udp -j A"), OUT: ("-p tcp -j A",)},
    jumps={"PREROUTING": PRE, "OUTPUT": OUT},
)
NOTHING = Ruleset()
DECLARED = (":IPVS_OUTPUT - [0:0]", ":IPVS_PREROUTING - [0:0]")
RULES = (
    "-A IPVS_OUTPUT -p tcp -j A",
    "-A IPVS_PREROUTING -p tcp -j A",
    "-A IPVS_PREROUTING -p udp -j A",
)
JUMPS = ("-A PREROUTING -j IPVS_PREROUTING", "-A OUTPUT -j IPVS_OUTPUT")
AS_WANTED = (*DECLARED, *JUMPS, *RULES)
UNHOOKED = ("-D OUTPUT -j IPVS_OUTPUT", "-D PREROUTING -j IPVS_PREROUTING")
MINE = (":MINE - [0:0]", "-A MINE -j IPVS_OUTPUT")
HOOK_PRE, HOOK_OUT = "-I PREROUTING 1 -j IPVS_PREROUTING", "-I OUTPUT 1 -j IPVS_OUTPUT"


def without(*lines: str) -> list[str]:
    return [line for line in AS_WANTED if line not in lines]


# What is there, what is wanted, and the lines that make the one of the other.
CASES = {
    "nothing where everything is right": (AS_WANTED, WANTED, ()),
    "from nothing": ((), WANTED, (*DECLARED, *RULES, HOOK_OUT, HOOK_PRE)),
    "only a chain that differs": (without(RULES[2]), WANTED, (DECLARED[1], *RULES[1:])),
    "the order of rules matters": (
        (*DECLARED, *JUMPS, RULES[0], RULES[2], RULES[1]),
        WANTED,
        (DECLARED[1], *RULES[1:]),
    ),
    "a chain that is no longer wanted is unhooked, emptied and dropped": (
        AS_WANTED,
        Ruleset({PRE: WANTED.chains[PRE]}, {"PREROUTING": PRE}),
        (DECLARED[0], UNHOOKED[0], "-X IPVS_OUTPUT"),
    ),
    "everything goes where nothing is wanted": (
        AS_WANTED,
        NOTHING,
        (*DECLARED, *UNHOOKED, "-X IPVS_OUTPUT", "-X IPVS_PREROUTING"),
    ),
    "a chain that somebody else refers to is only emptied": (
        (*AS_WANTED, *MINE),
        NOTHING,
        (*DECLARED, *UNHOOKED, "-X IPVS_PREROUTING"),
    ),
    "a chain that somebody else refers to and is empty is let be": (
        (DECLARED[0], *MINE),
        NOTHING,
        (),
    ),
    "a jump that is not the first rule moves": (
        (*DECLARED, "-A PREROUTING -p tcp -j ACCEPT", *JUMPS, *RULES),
        WANTED,
        (UNHOOKED[1], HOOK_PRE),
    ),
    "of two jumps one stays and is the first": (
        (*AS_WANTED, JUMPS[0]),
        WANTED,
        (UNHOOKED[1], UNHOOKED[1], HOOK_PRE),
    ),
    "a jump in a place that is none of ours goes": (
        (*AS_WANTED, "-A INPUT -j IPVS_OUTPUT"),
        WANTED,
        ("-D INPUT -j IPVS_OUTPUT",),
    ),
    "a jump to the wrong chain is replaced": (
        (*without(JUMPS[1]), "-A OUTPUT -j IPVS_PREROUTING"),
        WANTED,
        ("-D OUTPUT -j IPVS_PREROUTING", HOOK_OUT),
    ),
    "renamed chains take the place of the old ones": (
        (DECLARED[0], JUMPS[1]),
        Ruleset({"IPVS_OUTPUT-new": ()}, {"OUTPUT": "IPVS_OUTPUT-new"}),
        (
            *(DECLARED[0], ":IPVS_OUTPUT-new - [0:0]"),
            *(UNHOOKED[0], "-I OUTPUT 1 -j IPVS_OUTPUT-new", "-X IPVS_OUTPUT"),
        ),
    ),
}


@pytest.mark.parametrize(("have", "wanted", "change"), CASES.values(), ids=CASES.keys())
def test_the_input_names_only_what_differs(
    have: tuple[str, ...], wanted: Ruleset, change: tuple[str, ...]
) -> None:
    made = difference(found(*have), wanted)
    assert bool(made) == bool(change)
    first, *lines, last, end = restore_input(made).split("\n")
    assert (first, last, end) == ("*nat", "COMMIT", "")
    assert lines == [*change]


def test_for_people_each_difference_is_a_line() -> None:
    have = found(DECLARED[0], ":IPVS_OUTPUT-old - [0:0]", JUMPS[1], "-A IPVS_OUTPUT -j B")
    assert list(differing(difference(have, WANTED))) == [
        "+ chain IPVS_PREROUTING",
        "+ IPVS_PREROUTING -p tcp -j A",
        "+ IPVS_PREROUTING -p udp -j A",
        "- IPVS_OUTPUT -j B",
        "+ IPVS_OUTPUT -p tcp -j A",
        "- chain IPVS_OUTPUT-old",
        "+ PREROUTING -j IPVS_PREROUTING as rule 1",
    ]


def test_thousands_of_new_chains_come_before_what_leads_to_them() -> None:
    leaves = {f"{OUT}-{number}": ("-j A",) for number in range(5000)}
    top = tuple(f"-d 10.0.0.1/32 -j {name}" for name in leaves)
    wanted = Ruleset({**leaves, OUT: top}, {"OUTPUT": OUT}, table="filter")
    *early, last = difference(found(), wanted).parts()
    assert {part.table for part in (*early, last)} == {"filter"}
    assert [len(part.written) for part in early] == [2048, 2048]
    assert all(name in leaves and not part.hooked for part in early for name in part.written)
    assert len(last.written) == 5001 - 4096
    assert last.hooked == (("OUTPUT", 1, OUT),)


def test_what_is_there_afterwards_is_known_without_looking() -> None:
    before = found(
        ":DOCKER - [0:0]",
        ":IPVS_OUTPUT-1 - [0:0]",
        ":IPVS_OUTPUT-2 - [0:0]",
        "-A DOCKER -j IPVS_OUTPUT-1",
        "-A IPVS_OUTPUT-1 -j ACCEPT",
    )
    assert applied(before, WANTED) == Found(
        chains={"IPVS_OUTPUT-1": (), **WANTED.chains},
        jumps={"PREROUTING": ((1, "IPVS_PREROUTING"),), "OUTPUT": ((1, "IPVS_OUTPUT"),)},
        foreign=frozenset({"DOCKER"}),
        referenced=frozenset({"IPVS_OUTPUT-1"}),
        filled=frozenset({"DOCKER"}),
    )


# What others did.

LEFT = Found(
    chains={"A": ("-j RETURN", "-j ACCEPT"), "B": ()},
    jumps={"PREROUTING": ((1, "A"),), "OUTPUT": ((1, "B"),)},
    foreign=frozenset({"KUBE-SERVICES"}),
)


def chains(**changed: tuple[str, ...]) -> Found:
    return replace(LEFT, chains={**LEFT.chains, **changed})


def jumps(*found: tuple[int, str]) -> Found:
    return replace(LEFT, jumps={**LEFT.jumps, "PREROUTING": found})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (LEFT, ()),
        (replace(LEFT, foreign=frozenset(), referenced=frozenset({"A"})), ()),
        (Found(), ("TableFlushed",)),
        (replace(LEFT, chains={"B": ()}), ("ChainMissing",)),
        (chains(A=()), ("ChainFlushed",)),
        (chains(A=("-j RETURN",)), ("ChainChanged",)),
        (chains(A=("-j ACCEPT", "-j RETURN")), ("ChainChanged",)),
        (chains(A=("-j RETURN", "-j ACCEPT", "-j ACCEPT")), ("ChainChanged",)),
        (chains(C=()), ("ChainAdded",)),
        (replace(LEFT, jumps={"OUTPUT": ((1, "B"),)}), ("JumpMissing",)),
        (jumps((1, "B")), ("JumpMissing",)),
        (jumps((1, "A"), (2, "A")), ("JumpDoubled",)),
        (jumps((2, "A")), ("JumpNotFirst",)),
        (
            replace(LEFT, chains={"A": (), "B": ()}, jumps={}),
            ("ChainFlushed", "JumpMissing"),
        ),
    ],
)
def test_each_kind_has_its_word(found: Found, expected: tuple[str, ...]) -> None:
    assert drift(LEFT, found, Ruleset()) == expected
    assert set(expected) <= DRIFT.keys()


def test_an_empty_table_that_stays_empty_is_no_drift() -> None:
    assert drift(Found(), Found(foreign=frozenset({"KUBE-SERVICES"})), Ruleset()) == ()
