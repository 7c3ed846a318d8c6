"""What counts: which Services, external IPs and pod CIDRs, and which addresses nobody may have."""

from __future__ import annotations

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, Network, contains, show_network
from ipvs_node_agent.model.objects import Node, Service, Snapshot

# Where kube-proxy's mode is not IPVS, external IPs work without this agent, and do not work with
# it: a DNAT of ours ends the packet's walk through nat, where kube-proxy would find an endpoint.
_UNNEEDED_IN = frozenset({"iptables", "nftables"})


def unneeded_in(mode: str | None) -> bool:
    """Whether the agent is not needed in that mode of kube-proxy's, and would do harm."""
    return mode in _UNNEEDED_IN


def to_program(seen: Snapshot, mode: str | None) -> Snapshot:
    """What of the cluster as it was `seen` is to get rules in that mode."""
    return Snapshot({}, seen.node) if unneeded_in(mode) else seen


def external_ips(service: Service, config: Config) -> tuple[Address, ...]:
    """The external IPs of `service` that the configuration asks for, each once."""
    more = service.external_ips if config.services.external_ips else ()
    return tuple(dict.fromkeys((*service.load_balancer_ips, *more)))


def pod_cidrs(config: Config, node: Node) -> tuple[Network, ...] | None:
    """The node's pod CIDRs of both families; None while nobody has said which they are."""
    if config.pod_cidrs is not None:
        return config.pod_cidrs
    return node.pod_cidrs or None


def lacking(config: Config, node: Node) -> str:
    """What the Node lacks before its rules can be known, as a sentence; empty where nothing.

    Without its addresses nobody could tell a Service that takes one of them.
    """
    if pod_cidrs(config, node) is None:
        return (
            f"Node {node.name} has no pod CIDR yet (if it never gets one, since the network"
            " plugin keeps its own, set podCIDRs)"
        )
    if not node.addresses:
        return f"Node {node.name} has no address yet (its kubelet or the cloud provider sets them)"
    return ""


class Guard:
    """Knows the addresses that no Service may have, as foreign traffic would go with them."""

    def __init__(self, config: Config, node: Node) -> None:
        self._allowed = config.services.allowed_external_cidrs
        self._pod_cidrs = sorted(
            {*(config.pod_cidrs or ()), *node.pod_cidrs}, key=lambda cidr: (cidr.version, cidr)
        )
        # With ports in the rule, SSH and the kubelet's port stay the node's own.
        by_port = config.services.match_ports == "Always"
        self._node = frozenset(() if by_port else node.addresses)

    def reason(self, address: Address) -> tuple[str, str]:
        """Why no Service may have `address`, as one word and as a sentence's end; or nothing."""
        for reason, applies, why in (
            ("Loopback", address.is_loopback, "a loopback address"),
            ("Unspecified", address.is_unspecified, "an unspecified address"),
            ("LinkLocal", address.is_link_local, "a link-local address"),
            ("Multicast", address.is_multicast, "a multicast address"),
            ("Broadcast", address.packed == b"\xff" * 4, "a broadcast address"),
        ):
            if applies:
                return reason, why
        if address in self._node:
            return "NodeAddress", "this node's own (services.matchPorts: Always would allow it)"
        for cidr in self._pod_cidrs:
            if contains(cidr, address):
                return "PodCIDR", f"inside the pod CIDR {show_network(cidr)}"
        if self._allowed and not any(contains(cidr, address) for cidr in self._allowed):
            return "NotAllowed", "outside services.allowedExternalCIDRs"
        return "", ""
