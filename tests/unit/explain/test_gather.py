"""What the kernel alone can show is gathered in kernel/test_explain.py."""

from __future__ import annotations

from ipvs_node_agent.explain.facts import Facts
from ipvs_node_agent.explain.gather import look_at
from ipvs_node_agent.host.routes import Way
from ipvs_node_agent.model.addresses import parse_address


def test_the_way_to_each_address_is_asked_for() -> None:
    own = parse_address("127.0.0.1")
    assert look_at(Facts(), [own]).ways == {own: Way(True, own, "lo")}
