"""Gathers which pods of this node the rules leave out: from the kernel, and from the API server.

It asks the latter only where the kernel has addresses that may be such pods', and never raises.
"""

from __future__ import annotations

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.ownpods import own_pods
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host import links, pods
from ipvs_node_agent.host.neighbours import neighbours
from ipvs_node_agent.model.objects import Snapshot, UncoveredPod
from ipvs_node_agent.rules.coverage import coverage, uncovered


def look_at_pods(api: Api, config: Config, seen: Snapshot) -> tuple[UncoveredPod, ...]:
    """Those whose packets no rule would be about, where the cluster is as it was `seen`.

    None of them where nobody can tell.
    """
    known = coverage(config, seen.node, seen.pod_interfaces)
    try:
        own = seen.node.addresses
        found = pods.candidates(links.ask(), pods.plugins(), neighbours(), own)
        missed = [each for each in found if not known.covers(each)]
        if not missed:
            return ()
        there = own_pods(api, seen.node.name)
    except (AgentError, OSError, ValueError, RecursionError):
        # What the API server refuses has findings of its own.
        return ()
    return uncovered(there, missed, known)
