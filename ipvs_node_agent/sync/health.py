"""Whether the agent does its work, from what the main loop last published."""

from __future__ import annotations

from ipvs_node_agent.sync.state import Figures

# A change may wait so long for the kernel, and the main loop may take so long for one round.
PATIENCE = 60.0


def sickness(figures: Figures, now: float) -> str:
    """What is wrong, with the seconds it has lasted; empty where nothing is."""
    silent, waits = now - figures.turned, now - figures.agent.waiting_since
    if silent > PATIENCE:
        return f"the main loop has been hanging for {silent:.0f} s"
    if waits > PATIENCE:
        return f"a change has not reached the kernel for {waits:.0f} s: {figures.sentence}"
    return ""
