"""What counts: which Services, external IPs and pod CIDRs, and which addresses nobody may have."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import (
    Address,
    Family,
    Network,
    is_within,
    of_family,
    parse_network,
    show_network,
)
from ipvs_node_agent.model.objects import Node, NodeNetwork, PodNetwork, Service, Snapshot

# Where kube-proxy's mode is not IPVS, external IPs work without this agent, and do not work with
# it: a DNAT of ours ends the packet's walk through nat, where kube-proxy would find an endpoint.
_UNNEEDED_IN = frozenset({"iptables", "nftables"})
# What is nobody's on any node.
_NOBODYS = [
    (parse_network(prefix), reason, why)
    for reason, why, *prefixes in (
        ("Loopback", "a loopback address", "127.0.0.0/8", "::1/128"),
        ("Unspecified", "an unspecified address", "0.0.0.0/32", "::/128"),
        ("LinkLocal", "a link-local address", "169.254.0.0/16", "fe80::/10"),
        ("Multicast", "a multicast address", "224.0.0.0/4", "ff00::/8"),
        ("Broadcast", "a broadcast address", "255.255.255.255/32"),
    )
    for prefix in prefixes
]


def unneeded_in(mode: str | None) -> bool:
    """Whether the agent is not needed in that mode of kube-proxy's, and would do harm."""
    return mode in _UNNEEDED_IN


def to_program(seen: Snapshot, mode: str | None) -> Snapshot:
    """What of the cluster as it was `seen` is to get rules in that mode."""
    return replace(seen, services={}) if unneeded_in(mode) else seen


def external_ips(service: Service, config: Config) -> tuple[Address, ...]:
    """The external IPs of `service` that the configuration asks for, each once."""
    more = service.external_ips if config.services.external_ips else ()
    return _joined(service.load_balancer_ips, more)


def named_ips(service: Service) -> tuple[Address, ...]:
    """All addresses that `service` names as its own, with rules of ours or without; each once."""
    return _joined(service.load_balancer_ips, (*service.proxied_ips, *service.external_ips))


def _joined(some: tuple[Address, ...], more: tuple[Address, ...]) -> tuple[Address, ...]:
    """Both, each address once, as each of `some` is; most Services have no `more`."""
    return tuple(dict.fromkeys((*some, *more))) if more else some


def is_counted(service: Service, config: Config) -> bool:
    """Whether `service` may have rules at all."""
    only_local = config.services.external_traffic_policy == "Local"
    return not service.skipped and (service.local_policy or not only_local)


def clients(service: Service, family: Family) -> tuple[Network, ...] | None:
    """Who may use the load balancer's IPs of `service` in `family`; None for everybody.

    A range counts in its own family, as kube-proxy takes them (cidrFamilyMap): with none in this
    one, nobody is kept out. One that could not be read keeps everybody out whom no other lets in.
    """
    ranges = of_family(service.source_ranges, family)
    is_limited = ranges or service.bad_source_ranges
    return ranges if is_limited and all(each.prefixlen for each in ranges) else None


def pod_cidrs(config: Config, node: Node) -> tuple[Network, ...] | None:
    """The node's pod CIDRs of both families; None while nobody has said which they are."""
    if config.pod_cidrs is not None:
        return config.pod_cidrs
    return node.pod_cidrs or None


def pod_interfaces(
    config: Config, node: Node | None, found: Collection[PodNetwork]
) -> tuple[str, ...]:
    """The interfaces that lead to pods; none where pods are matched by their pod CIDRs.

    `found` are those that the node itself tells of, which count where nothing is set. Where some
    are not inside the pod CIDRs, all are known by interface: else others would have no rules.
    """
    if config.pod_interfaces is not None:
        return config.pod_interfaces
    cidrs = node.pod_cidrs if node is not None else ()
    inside = all(
        network.subnets is not None
        and all(any(is_within(each, cidr) for cidr in cidrs) for each in network.subnets)
        for network in found
    )
    if inside or config.pod_cidrs is not None:
        return ()
    return tuple(sorted({network.interface for network in found}))


def is_one_of(interface: str, patterns: Collection[str]) -> bool:
    """Whether one of `patterns` means `interface`; a `+` at its end stands for any more of it."""
    return any(
        interface.startswith(each[:-1]) if each.endswith("+") else interface == each
        for each in patterns
    )


def lacking(config: Config, node: Node, interfaces: tuple[str, ...]) -> str:
    """What the Node lacks before its rules can be known, as a sentence; empty where nothing.

    Where `interfaces` lead to pods, nobody needs their pod CIDRs. Without the Node's addresses
    nobody could tell whether the source ranges of a Service let the host in.
    """
    if not interfaces and pod_cidrs(config, node) is None:
        return (
            f"Node {node.name} has no pod CIDR yet (if the network plugin assigns pod"
            " addresses itself, set podInterfaces or podCIDRs)"
        )
    if not node.addresses:
        return f"Node {node.name} has no address yet (its kubelet or the cloud provider sets them)"
    return ""


class _Range(NamedTuple):
    """Addresses as numbers, the last one included, and why no Service may have one of them."""

    first: int
    last: int
    reason: str = ""
    why: str = ""


class _Ranges:
    """Ranges of both families; of those that an address is in, the first one counts.

    To ask Python's own addresses and networks would take a tenth of the time of a plan.
    """

    def __init__(self, networks: Iterable[tuple[Network, str, str]]) -> None:
        self._ranges: dict[int, list[_Range]] = {4: [], 6: []}
        for network, reason, why in networks:
            first, last = int(network.network_address), int(network.broadcast_address)
            self._ranges[network.version].append(_Range(first, last, reason, why))

    def holding(self, address: Address) -> _Range | None:
        number = int(address)
        for found in self._ranges[address.version]:
            if found.first <= number <= found.last:
                return found
        return None


class Guard:
    """Knows the addresses that no Service may have, as foreign traffic would go with them."""

    def __init__(self, config: Config, node: Node, network: NodeNetwork) -> None:
        cidrs, blocks = (
            sorted(found, key=lambda cidr: (cidr.version, cidr))
            for found in ({*(config.pod_cidrs or ()), *node.pod_cidrs}, network.pod_blocks)
        )
        inside = [(each, "PodCIDR", f"inside the pod CIDR {show_network(each)}") for each in cidrs]
        self._never = _Ranges([*_NOBODYS, *inside])
        self._pods = network.pods
        self._blocks = _Ranges(
            (each, "PodCIDR", f"inside {show_network(each)}, which pods' addresses are from")
            for each in blocks
        )
        allowed = config.services.allowed_external_cidrs
        self._allowed = _Ranges((each, "", "") for each in allowed) if allowed else None

    def reason(self, address: Address) -> tuple[str, str]:
        """Why no Service may have `address`, as one word and as a sentence's end; or nothing."""
        found = self._never.holding(address)
        if found is None and address in self._pods:
            return "PodCIDR", "routed to a pod of this node"
        found = found or self._blocks.holding(address)
        if found is not None:
            return found.reason, found.why
        if self._allowed is not None and self._allowed.holding(address) is None:
            return "NotAllowed", "outside services.allowedExternalCIDRs"
        return "", ""
