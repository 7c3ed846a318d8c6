"""All that the rules depend on, as one value: what the cluster told, and what the node is like.

What is planned from it is `rules`' business; what becomes due when it changes is `agent`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.objects import NodeNetwork
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.rules.coverage import Coverage, coverage
from ipvs_node_agent.rules.here import Here
from ipvs_node_agent.rules.policy import lacking, pod_interfaces, unneeded_in
from ipvs_node_agent.sync.cluster import Cluster

_NO_SERVICES = Services()


@dataclass(frozen=True)
class Inputs:
    """All that the rules depend on, as far as it is known."""

    config: Config
    cluster: Cluster = field(default_factory=Cluster)
    here: Here = field(default_factory=Here)
    proxy_mode: str | None = None

    @property
    def to_program(self) -> Services:
        """The Services that are to get rules, or that guard their ClusterIPs."""
        if self.cluster.services is None or unneeded_in(self.proxy_mode):
            return _NO_SERVICES
        return self.cluster.services

    @property
    def lacking(self) -> str:
        """What the Node lacks before its rules can be known; empty where nothing."""
        node = self.cluster.node
        if node is None:
            return "this Node is not known to the API server yet (see nodeName)"
        return lacking(self.config, node, self.pod_interfaces)

    @property
    def pod_interfaces(self) -> tuple[str, ...]:
        """The interfaces that lead to pods; none where pods are matched by their pod CIDRs."""
        return pod_interfaces(self.config, self.cluster.node, self.here.pod_networks)

    @property
    def coverage(self) -> Coverage | None:
        """Which packets are a pod's; None where that is not known, or no rule needs to know."""
        node = self.cluster.node
        if node is None or not self.told or unneeded_in(self.proxy_mode):
            return None
        return coverage(self.config, node, self.pod_interfaces)

    @property
    def of_node(self) -> tuple[NodeNetwork, tuple[str, ...], frozenset[str]]:
        """All that the rules depend on of what is known of this node, and what is awaited."""
        interfaces = self.pod_interfaces
        return self.here.network(interfaces), interfaces, self.here.awaited

    @property
    def told(self) -> bool:
        """Whether everything that rules depend on has been told once."""
        return self.cluster.listed and not self.here.awaited

    @property
    def suffice(self) -> bool:
        """Whether rules can be made of them."""
        return self.told and not self.lacking
