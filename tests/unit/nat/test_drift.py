"""What others did to our chains and jumps, told from what was left and what is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.nat.ruleset import DRIFT, Found, drift

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
    assert drift(LEFT, found) == expected
    assert set(expected) <= DRIFT.keys()


def test_an_empty_table_that_stays_empty_is_no_drift() -> None:
    assert drift(Found(), Found(foreign=frozenset({"KUBE-SERVICES"}))) == ()
