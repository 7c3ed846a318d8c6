"""Which chains are the agent's, by name alone."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.chains import MAX_CHAIN_NAME, may_be_ours, name_fault, owner, stem

OURS = owner(frozenset({"IPVS_PREROUTING", "IPVS_OUTPUT"}))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("IPVS_PREROUTING", True),
        ("IPVS_PREROUTING-0a", True),
        ("IPVS_PREROUTING-", True),
        ("IPVS_PREROUTING2", False),
        ("IPVS_PREROUTIN", False),
        ("XIPVS_PREROUTING", False),
        ("ipvs_prerouting", False),
        ("KUBE-SERVICES", False),
        ("PREROUTING", False),
    ],
)
def test_a_chain_is_ours_by_its_name_or_split_off_from_one_of_ours(name: str, ours: bool) -> None:
    assert OURS(name) is ours


def test_no_names_own_nothing() -> None:
    assert not owner(frozenset())("IPVS_PREROUTING")


def test_the_stem_of_a_short_name_is_the_name_and_long_ones_differ() -> None:
    assert stem("IPVS_PREROUTING") == "IPVS_PREROUTING"
    assert stem("IPVS_PREROUTINGS") != stem("IPVS_PREROUTINGT")
    longest = "A" * MAX_CHAIN_NAME
    assert not name_fault(f"{stem(longest)}-{'b' * 12}")
    assert owner(frozenset({longest}))(f"{stem(longest)}-b")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("IPVS_PREROUTING", True),
        ("LB.PRE-1", True),
        ("KUBE-SERVICES", False),
        ("PREROUTING", False),
        ("ACCEPT", False),
        ("", False),
        ("-X", False),
        ("A" * 28, True),
        ("A" * 29, False),
        ("A\nB", False),
    ],
)
def test_which_names_can_be_the_agents(name: str, ours: bool) -> None:
    assert may_be_ours(name) is ours
