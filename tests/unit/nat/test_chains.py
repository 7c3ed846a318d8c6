"""Which chains are the agent's, by name alone."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.chains import MAX_CHAIN_NAME, may_be_ours, name_fault, owner, stem

OURS = owner(frozenset({"IPVS_PREROUTING", "IPVS_OUTPUT"}))


@pytest.mark.parametrize("name", ["IPVS_PREROUTING", "IPVS_PREROUTING-0a", "IPVS_PREROUTING-"])
def test_a_chain_is_ours_by_its_name_or_split_off_from_one_of_ours(name: str) -> None:
    assert OURS(name)
    assert not owner(frozenset())(name)


OTHERS = ["IPVS_PREROUTING2", "IPVS_PREROUTIN", "XIPVS_PREROUTING", "ipvs_prerouting", "PREROUTING"]


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(name: str) -> None:
    assert not OURS(name)


def test_the_stem_of_a_short_name_is_the_name_and_long_ones_differ() -> None:
    assert stem("IPVS_PREROUTING") == "IPVS_PREROUTING"
    assert stem("IPVS_PREROUTINGS") != stem("IPVS_PREROUTINGT")
    longest = "A" * MAX_CHAIN_NAME
    assert not name_fault(f"{stem(longest)}-{'b' * 12}")
    assert owner(frozenset({longest}))(f"{stem(longest)}-b")


@pytest.mark.parametrize("name", ["IPVS_PREROUTING", "LB.PRE-1", "A" * 28])
def test_the_agents_chains_may_be_called_like_that(name: str) -> None:
    assert may_be_ours(name)


@pytest.mark.parametrize(
    "name", ["KUBE-SERVICES", "PREROUTING", "ACCEPT", "", "-X", "A" * 29, "A\nB"]
)
def test_and_not_like_that(name: str) -> None:
    assert not may_be_ours(name)
