"""What counts: whether Services are to get rules at all."""

from __future__ import annotations

from ipvs_node_agent.model.objects import Snapshot

# Where kube-proxy's mode is not IPVS, external IPs work without this agent, and do not work with
# it: a DNAT of ours ends the packet's walk through nat, where kube-proxy would find an endpoint.
_UNNEEDED_IN = frozenset({"iptables", "nftables"})


def unneeded_in(mode: str | None) -> bool:
    """Whether the agent is not needed in that mode of kube-proxy's, and would do harm."""
    return mode in _UNNEEDED_IN


def to_program(seen: Snapshot, mode: str | None) -> Snapshot:
    """What of the cluster as it was `seen` is to get rules in that mode."""
    return Snapshot({}, seen.node) if unneeded_in(mode) else seen
