"""Services and Nodes as values: what the agent needs of them, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, Network

_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


# More than that are kept for nobody, since their author could have them fill the memory.
_FEW_PORTS = 8


class Port(NamedTuple):
    """A Service's port; `protocol` is iptables' name for it."""

    protocol: str
    number: int


@lru_cache(maxsize=1024)
def port(protocol: str, number: int) -> Port:
    """Such a port, mostly the very same object: thousands of Services have one of a few."""
    return Port(protocol, number)


def same_ports(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """These ports; where they are few, mostly the very same object for all who have them."""
    return _same_ports(ports) if len(ports) <= _FEW_PORTS else ports


@lru_cache(maxsize=1024)
def _same_ports(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    return ports


class Problem(NamedTuple):
    """Why (a part of) a Service gets no rule. `reason` is one word, for counting."""

    service: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.service}: {self.text}"


# Types of Services.
LOAD_BALANCER, EXTERNAL_NAME = "LoadBalancer", "ExternalName"
TYPES = ("ClusterIP", "NodePort", LOAD_BALANCER, EXTERNAL_NAME)


class Service(NamedTuple):
    """What the agent needs of a Service.

    `created` is the time as a number, such as 20261130093000 in UTC, which sorts as times do.
    `load_balancer_ips` are those of `status.loadBalancer.ingress` that kube-proxy would serve, and
    `proxied_ips` those that it would not (KEP-1860). `skipped` is what says that the Service is
    left alone: it then only guards its ClusterIPs and its ports. It is empty for all others. With
    `bad_source_ranges`, some of those that limit its clients could not be read. `type` is empty
    where it is none that Kubernetes has.
    """

    key: str
    created: int
    cluster_ips: tuple[Address, ...]
    load_balancer_ips: tuple[Address, ...]
    proxied_ips: tuple[Address, ...]
    external_ips: tuple[Address, ...]
    ports: tuple[Port, ...]
    local_policy: bool
    source_ranges: tuple[Network, ...]
    bad_source_ranges: bool
    skipped: str
    problems: tuple[Problem, ...]
    type: str = LOAD_BALANCER


class Node(NamedTuple):
    """What the agent needs of its Node; its internal addresses come before its external ones."""

    name: str
    pod_cidrs: tuple[Network, ...]
    addresses: tuple[Address, ...]
    problems: tuple[Problem, ...]


class NodeNetwork(NamedTuple):
    """What is known of this node's network, other than by its Node.

    `addresses` are those that the kernel has on interfaces other than kube-proxy's. `api_servers`
    are the addresses and TCP ports at which this node reaches the API server. `pods` are addresses
    that the kernel routes to pods of this node, and `pod_blocks` networks that they come from.
    `absent` are the IP versions that the kernel lacks, in which nothing can be programmed.
    """

    addresses: frozenset[Address] = frozenset()
    api_servers: frozenset[tuple[Address, int]] = frozenset()
    pods: frozenset[Address] = frozenset()
    pod_blocks: frozenset[Network] = frozenset()
    absent: frozenset[int] = frozenset()


class PodNetwork(NamedTuple):
    """Pods that an interface leads to, a `+` at its end standing for any more characters.

    `subnets` are where their addresses are from; None where that is known of nobody.
    """

    interface: str
    subnets: tuple[Network, ...] | None = None


class Candidate(NamedTuple):
    """Addresses that may be those of pods on this node, and the interface that leads there.

    They are those that have the first `length` bits of `address`. This is no Network, as others
    choose what addresses they have here, and could choose ten thousand that hash alike.
    """

    interface: str
    address: Address
    length: int

    @property
    def is_single(self) -> bool:
        """Whether it is one address."""
        return self.length == self.address.max_prefixlen


class OwnPod(NamedTuple):
    """A pod of this node's that has addresses of its own; `key` is its namespace and name."""

    key: str
    addresses: tuple[Address, ...]


class UncoveredPod(NamedTuple):
    """A pod of this node's whose packets no rule is about, with an address of it."""

    key: str
    address: Address
    interface: str


NO_NETWORK = NodeNetwork()


# An interface's name as plugins give them, or what it begins with; iptables(8), -i.
_INTERFACE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*\+?")
_MAX_INTERFACE = 15
INTERFACE_WANTED = "the name of an interface, or a prefix that ends in +"


def is_interface(text: str) -> bool:
    """Whether `text` may be in `podInterfaces`."""
    return len(text) <= _MAX_INTERFACE and _INTERFACE.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """Whether a Node can be called that."""
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the rules depend on besides the configuration, at one moment.

    `pod_interfaces` lead to pods, where these are not known by pod CIDR.
    """

    services: Mapping[str, Service]
    node: Node
    network: NodeNetwork = NO_NETWORK
    pod_interfaces: tuple[str, ...] = ()
