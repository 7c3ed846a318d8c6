"""What counts."""

from __future__ import annotations

from ipvs_node_agent.rules.policy import unneeded_in


def test_only_the_modes_that_are_known_to_need_no_agent_count() -> None:
    modes = [None, "ipvs", "iptables", "nftables", "userspace", "new"]
    assert [mode for mode in modes if unneeded_in(mode)] == ["iptables", "nftables"]
