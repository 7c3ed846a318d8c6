"""Every series that the agent may expose, by name and labels, from its own registry."""

from __future__ import annotations

import math

from ipvs_node_agent.model.addresses import FAMILIES
from ipvs_node_agent.model.events import RESTART_REASONS
from ipvs_node_agent.model.objects import Problem
from ipvs_node_agent.nat.ruleset import DRIFT
from ipvs_node_agent.observe.counters import HOST, POD, Count
from ipvs_node_agent.observe.metrics import Meters, Metrics
from ipvs_node_agent.sync.state import AgentState, FamilyState, Published
from tests.support.promlint import read


def text() -> str:
    """All metrics, with a sample of each."""
    agent = AgentState(
        families={family: FamilyState() for family in FAMILIES},
        repairs=dict.fromkeys(DRIFT, 1),
        refusals=frozenset({Problem("default/bad", "Loopback", "refused")}),
        restarts=dict.fromkeys(RESTART_REASONS, 1),
    )
    published = Published(-math.inf, agent=agent, expires=1.0)
    sums = {("default/web", path): Count(1, 60) for path in (POD, HOST)}
    return Metrics(Meters(), lambda: published, lambda: sums).text().decode()


def series() -> dict[str, dict[str, set[str]]]:
    """By each name that a query may ask for: its labels, and the values that they have."""
    found: dict[str, dict[str, set[str]]] = {}
    for metric in read(text()).values():
        for name, labels in metric.samples:
            values = found.setdefault(name, {})
            for label, value in labels:
                values.setdefault(label, set()).add(value)
    return found
