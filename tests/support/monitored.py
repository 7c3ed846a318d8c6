"""An agent's published, and what is served of them."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.observe import counters
from ipvs_node_agent.observe.counters import Count
from ipvs_node_agent.observe.metrics import CONTENT_TYPE
from ipvs_node_agent.observe.pages import Monitoring
from ipvs_node_agent.sync.state import Published
from tests.support.agentnode import Clock, Node
from tests.support.cluster import POD_CIDRS, node
from tests.support.promlint import value


class Bed:
    """Monitoring of published that are the test's, and no address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.monitoring = Monitoring(self.clock)
        self.sums: dict[tuple[str, str], Count] = {}
        monkeypatch.setattr(counters.Sampler, "sums", lambda *_: self.sums)

    def watch(self, node: Node) -> None:
        """Publishes what the agent on `node` is, as the main loop does."""
        self.monitoring.published = Published(
            node.clock.now, ready=True, sentence="As it is", agent=node.agent.state()
        )

    def text(self) -> str:
        page = self.monitoring.page("/metrics")
        assert (page.status, page.content_type) == (200, CONTENT_TYPE)
        return page.body.decode()

    def value(self, name: str, **labels: str) -> float:
        return value(self.text(), f"ipvs_node_agent_{name}", **labels)


def metered(bed: Bed, *services: Any) -> Node:
    """A node whose agent tells `bed` how long things take."""
    made = Node(meter=bed.monitoring.meters)
    made.list_node(node(*POD_CIDRS))
    made.list_services(*services)
    made.settle()
    return made
