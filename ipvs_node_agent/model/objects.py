"""Services and Nodes as values: what the agent needs of them, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, Network

_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Port(NamedTuple):
    """A Service's port; `protocol` is iptables' name for it."""

    protocol: str
    number: int


class Problem(NamedTuple):
    """Why (a part of) a Service gets no rule. `reason` is one word, for counting."""

    service: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.service}: {self.text}"


class Service(NamedTuple):
    """What the agent needs of a Service.

    `load_balancer_ips` are those of `status.loadBalancer.ingress` that kube-proxy would serve;
    `source_ranges` is None where the Service does not limit its clients. `skipped` says that
    kube-proxy or the user wants the Service left alone: it then only guards its ClusterIPs.
    """

    key: str
    created: str
    cluster_ips: tuple[Address, ...]
    load_balancer_ips: tuple[Address, ...]
    external_ips: tuple[Address, ...]
    ports: tuple[Port, ...]
    local_policy: bool
    source_ranges: tuple[Network, ...] | None
    skipped: bool
    problems: tuple[Problem, ...]


class Node(NamedTuple):
    """What the agent needs of its Node."""

    name: str
    pod_cidrs: tuple[Network, ...]
    addresses: tuple[Address, ...]
    problems: tuple[Problem, ...]


def is_node_name(text: str) -> bool:
    """Whether a Node can be called that."""
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the rules depend on besides the configuration, at one moment."""

    services: Mapping[str, Service]
    node: Node
