"""Values of the cluster: what a Node can be called, and how a Problem is shown."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.objects import Port, Problem, is_node_name, same_ports


@pytest.mark.parametrize("name", ["a", "worker-1", "1", "worker-1.example.com", "a" * 253])
def test_a_node_may_be_called_by_a_dns_name(name: str) -> None:
    assert is_node_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "Worker", "worker_1", "-a", "a-", ".", "a..b", "a.", "w ", "a\n", "ẃ", "a" * 254],
)
def test_a_node_is_called_by_nothing_else(name: str) -> None:
    assert not is_node_name(name)


@pytest.mark.parametrize(("count", "shared"), [(0, True), (1, True), (8, True), (9, False)])
def test_few_ports_are_kept_once_for_all_who_have_them(count: int, shared: bool) -> None:
    """Of many, one author could have a thousand lists kept that fill the memory."""
    first, second = (tuple([Port("tcp", n + 1) for n in range(count)]) for _ in range(2))
    assert same_ports(second) == same_ports(first) == first
    assert (same_ports(second) is same_ports(first)) == shared


def test_a_problem_says_whose_it_is() -> None:
    assert str(Problem("default/web", "Unreadable", "why")) == "default/web: why"
