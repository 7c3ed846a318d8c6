"""Rules in few texts are the same rules as in a tuple."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.nat.packed import Packed, apart, how_many, together

# As the kernel prints them, which may be nothing at all: `-A CHAIN` matches all and goes nowhere.
RULES = st.lists(st.sampled_from(["", " ", "-j DNAT", '-m comment --comment "a\nb"']), max_size=4)


@given(RULES)
def test_a_text_holds_its_rules(rules: list[str]) -> None:
    text = together(rules)
    assert list(apart(text)) == rules
    assert how_many(text) == len(rules)


@given(st.lists(RULES, max_size=4))
def test_they_are_a_sequence_as_their_tuple_is(parts: list[list[str]]) -> None:
    packed, rules = Packed(map(together, parts)), tuple(rule for part in parts for rule in part)
    assert (*packed,) == rules
    assert (*reversed(packed),) == rules[::-1]
    assert len(packed) == len(rules)
    assert bool(packed) == bool(rules)
    assert [packed[at] for at in range(-len(rules), len(rules))] == [*rules, *rules]
    assert packed[1:-1] == rules[1:-1]
    assert packed == rules
    assert rules == packed
    assert hash(packed) == hash(rules)
    assert repr(packed) == repr(rules)
    with pytest.raises(IndexError):
        packed[len(rules)]


@given(st.lists(RULES, max_size=3), st.lists(RULES, max_size=3))
def test_how_they_are_packed_makes_no_difference(
    some: list[list[str]], more: list[list[str]]
) -> None:
    first, second = Packed(map(together, some)), Packed(map(together, more))
    assert (first == second) == (tuple(first) == tuple(second))
    assert Packed([together(first)]) == first
    assert (hash(first) == hash(second)) or first != second


def test_they_are_no_list_and_no_text() -> None:
    packed = Packed([together(["a", "b"])])
    assert packed != ["a", "b"]
    assert packed != "ab"
    assert packed != ("a",)
