"""Names of chains: which can be the agent's."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.chains import may_be_ours


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
