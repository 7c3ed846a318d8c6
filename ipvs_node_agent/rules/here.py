"""What is known of this node other than by its Node, as a value: each thing told makes another one.

Where the host has an address of its own, a Service has its ports there and no more. That holds from
the moment that the address is there, and for a while after it is gone, since a VIP of keepalived's
or kube-vip's moves away and back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ipvs_node_agent.model.addresses import Address, Network
from ipvs_node_agent.model.objects import NodeNetwork, PodNetwork
from ipvs_node_agent.rules.policy import is_one_of

# What may be awaited.
ADDRESSES, API_SERVERS = "this node's addresses", "where the API server is"
# So long an address counts as the host's after it is gone, in seconds.
LINGER = 60.0


@dataclass(frozen=True)
class Here:
    """This node, as its kernel and its connections tell of it; without `awaited`, it is known.

    `gone` are addresses that the kernel had until a short time ago, with the time at which they
    count no more. `routed` are addresses with a route of their own, by interface. `pod_networks`
    are pods that network plugins tell of; once told they stay. `absent` are the IP versions that
    the kernel lacks.
    """

    awaited: frozenset[str] = frozenset()
    addresses: frozenset[Address] = frozenset()
    gone: Mapping[Address, float] = field(default_factory=dict)
    api_servers: frozenset[tuple[Address, int]] = frozenset()
    routed: frozenset[tuple[str, Address]] = frozenset()
    pod_blocks: frozenset[Network] = frozenset()
    pod_networks: frozenset[PodNetwork] = frozenset()
    absent: frozenset[int] = frozenset()

    def network(self, pod_interfaces: Collection[str]) -> NodeNetwork:
        """What rules depend on, where `pod_interfaces` lead to pods."""
        pods = frozenset(each for name, each in self.routed if is_one_of(name, pod_interfaces))
        addresses = self.addresses.union(self.gone)
        # By pod CIDR, a blackhole is nothing but somebody's route.
        blocks = self.pod_blocks if pod_interfaces else frozenset()
        return NodeNetwork(addresses, self.api_servers, pods, blocks, self.absent)

    @property
    def due(self) -> float:
        """When `at` makes another value."""
        return min(self.gone.values(), default=math.inf)

    def at(self, now: float) -> Here:
        """As it is at the time `now`."""
        if now < self.due:
            return self
        return replace(self, gone={each: end for each, end in self.gone.items() if now < end})

    def with_addresses(self, addresses: frozenset[Address], now: float) -> Here:
        """Where the kernel has these from the time `now` on."""
        gone = {each: end for each, end in self.gone.items() if each not in addresses}
        gone.update(dict.fromkeys(self.addresses - addresses, now + LINGER))
        return replace(self, addresses=addresses, gone=gone, awaited=self.awaited - {ADDRESSES})

    def with_api_servers(self, places: frozenset[tuple[Address, int]], complete: bool) -> Here:
        """Where the API server is reached there; without `complete`, there too, and elsewhere."""
        if not complete:
            return replace(self, api_servers=self.api_servers | places)
        return replace(self, api_servers=places, awaited=self.awaited - {API_SERVERS})

    def with_pod_networks(self, networks: frozenset[PodNetwork]) -> Here:
        """Where these were told of, which take the place of others by the same interface."""
        names = {network.interface for network in networks}
        others = {known for known in self.pod_networks if known.interface not in names}
        return replace(self, pod_networks=networks.union(others))

    def with_routes(
        self, routed: frozenset[tuple[str, Address]], pod_blocks: frozenset[Network]
    ) -> Here:
        """Where the kernel has these routes."""
        return replace(self, routed=routed, pod_blocks=pod_blocks)
