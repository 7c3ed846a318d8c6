"""Finding the Services whose rules the kernel refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.ruleset import Found, Ruleset
from ipvs_node_agent.rules.render import MARK_CHAINS
from ipvs_node_agent.sync.refused import probe, refused_of, services_in

RULE = '-d 10.19.0.1/32 -m comment --comment "default/{}" -j DNAT --to-destination 10.231.0.1'
GOOD, BAD = RULE.format("good"), RULE.format("bad")
PODS, HOST = "IPVS_PREROUTING", "IPVS_OUTPUT"
JUMPS = {"PREROUTING": PODS, "OUTPUT": HOST}
HOOKED = {"PREROUTING": ((1, PODS),), "OUTPUT": ((2, HOST),)}
WANTED = Ruleset(
    {
        PODS: ("-d 10.19.0.0/24 -j IPVS_PREROUTING-x",),
        "IPVS_PREROUTING-x": (GOOD, BAD),
        HOST: (BAD,),
    },
    JUMPS,
)
JUMP = "-d 0.0.0.0/32 -j IPVS_{}-probe"


def test_suspected_is_who_has_a_rule_in_a_written_chain() -> None:
    written = {"A": (RULE.format("old"), RULE.format("new")), "B": ("-j A",)}
    assert services_in(written) == {"default/new", "default/old"}


@settings(max_examples=200)
@given(st.sets(st.integers(0, 300)), st.data())
def test_the_guilty_are_found_and_nobody_else(everybody: set[int], data: st.DataObject) -> None:
    guilty = (
        st.sets(st.sampled_from(sorted(everybody)), max_size=3) if everybody else st.just(set())
    )
    names = frozenset(str(number) for number in data.draw(guilty))
    again = {str(number) for number in everybody if number % 7 == 0}
    groups = [again, {*map(str, everybody)} - again]
    assert refused_of(groups, lambda keys: not names & keys) == (names, frozenset())


def test_where_not_even_the_rules_of_none_are_taken_it_is_nobodys_fault() -> None:
    asked = []

    def takes(keys: frozenset[str]) -> bool:
        asked.append(keys)
        return False

    assert refused_of([["a", "b"]], takes) == (frozenset(), frozenset())
    assert asked == [frozenset()]


def test_who_is_not_asked_about_in_time_is_not_known() -> None:
    """A hundred guilty ones of two hundred would take hundreds of tries."""
    everybody = {str(number) for number in range(200)}
    bad = frozenset(str(number) for number in range(0, 200, 2))
    tries = []

    def takes(keys: frozenset[str]) -> bool:
        tries.append(keys)
        return not bad & keys

    guilty, untold = refused_of([everybody], takes)
    assert guilty
    assert guilty <= bad <= guilty | untold
    assert len(tries) == 65


# The question, and what it leaves.


def test_the_rules_asked_about_are_where_no_packet_comes() -> None:
    found = Found({PODS: (GOOD,), HOST: ()}, HOOKED)
    change, after = probe(IPV4, WANTED, found, frozenset({"default/bad"}))
    assert change.written == {f"{PODS}-probe": (BAD,), f"{HOST}-probe": (BAD,)}
    assert change.appended == {PODS: (JUMP.format("PREROUTING"),), HOST: (JUMP.format("OUTPUT"),)}
    assert (change.hooked, change.unhooked, change.dropped) == ((), (), ())
    assert after.chains == {
        PODS: (GOOD, JUMP.format("PREROUTING")),
        HOST: (JUMP.format("OUTPUT"),),
        **change.written,
    }


def test_the_next_question_only_writes_other_rules() -> None:
    _, after = probe(IPV4, WANTED, Found({PODS: (), HOST: ()}, HOOKED), frozenset())
    change, _ = probe(IPV4, WANTED, after, frozenset({"default/good"}))
    assert change.written == {f"{PODS}-probe": (GOOD,), f"{HOST}-probe": ()}
    assert not change.appended


@pytest.mark.parametrize("jumps", [{}, {"PREROUTING": ((1, PODS),)}])
def test_what_is_not_there_yet_is_made_and_led_to(
    jumps: dict[str, tuple[tuple[int, str], ...]],
) -> None:
    wanted = Ruleset({**WANTED.chains, **MARK_CHAINS}, JUMPS)
    change, after = probe(IPV4, wanted, Found({}, jumps), frozenset())
    assert change.written[PODS] == (JUMP.format("PREROUTING"),)
    assert MARK_CHAINS.items() <= change.written.items()
    assert set(change.hooked) == {pair for pair in JUMPS.items() if pair[0] not in jumps}
    assert after.jumps == {"PREROUTING": ((1, PODS),), "OUTPUT": ((1, HOST),)}


def test_a_jump_that_is_there_moves_behind_ours() -> None:
    found = Found({"OLD": ()}, {"OUTPUT": ((1, "OLD"),)})
    _, after = probe(IPV4, WANTED, found, frozenset())
    assert after.jumps["OUTPUT"] == ((1, HOST), (2, "OLD"))
