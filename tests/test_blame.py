"""Finding the Services whose rules the kernel refuses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_node_agent.blame import culprits, service_of, suspects

RULE = '-d 10.19.0.1/32 -m comment --comment "default/{}" -j DNAT --to-destination 10.231.0.1'


def test_a_rule_says_whose_it_is() -> None:
    assert service_of(RULE.format("web")) == "default/web"
    assert service_of("-d 10.19.0.0/16 -j IPVS_OUTPUT-0a130000-16") == ""


def test_suspected_is_who_has_a_rule_that_is_new() -> None:
    wanted = {"A": (RULE.format("old"), RULE.format("new")), "B": ("-j A",)}
    assert suspects(wanted, {"C": (RULE.format("old"),)}) == ["default/new"]


@settings(max_examples=200)
@given(st.sets(st.integers(0, 300)), st.data())
def test_the_guilty_are_found_and_the_last_success_is_in_force(
    everybody: set[int], data: st.DataObject
) -> None:
    guilty = (
        st.sets(st.sampled_from(sorted(everybody)), max_size=3) if everybody else st.just(set())
    )
    names = {str(number) for number in data.draw(guilty)}
    in_force: list[frozenset[str]] = []

    def works(without: frozenset[str]) -> bool:
        if names <= without:
            in_force.append(without)
        return names <= without

    found = culprits({str(number) for number in everybody}, works)
    assert found == names
    assert not everybody or in_force[-1] == found


def test_where_it_fails_without_them_too_it_is_not_them() -> None:
    asked = []

    def works(without: frozenset[str]) -> bool:
        asked.append(without)
        return False

    assert culprits(["a", "b"], works) == frozenset()
    assert asked == [{"a", "b"}]


def test_who_is_not_cleared_in_time_stays_out() -> None:
    """A hundred guilty ones of two hundred would take hundreds of tries."""
    everybody = {str(number) for number in range(200)}
    guilty = frozenset(str(number) for number in range(0, 200, 2))
    tries = []

    def works(without: frozenset[str]) -> bool:
        tries.append(without)
        return guilty <= without

    found = culprits(everybody, works)
    assert guilty <= found
    assert len(tries) == 65
