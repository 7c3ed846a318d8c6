"""Which Service has which external IP: claims, what is refused, and who gets a contested port.

Claims are kept up to date Service by Service, since one change must not cost a look at all of them.
Nothing here depends on the order in which Services come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import (
    Address,
    Family,
    Network,
    contains,
    show_address,
    show_network,
)
from ipvs_node_agent.model.objects import Node, Port, Problem, Service

T = TypeVar("T")


class Claim(NamedTuple):
    """A Service's claim to an external IP.

    `ports` is None where every port goes to the Service; `clients` is None where every client may.
    """

    service: Service
    cluster_ip: Address
    ports: tuple[Port, ...] | None
    clients: tuple[Network, ...] | None


class Claims:
    """Who claims which external IP of one family."""

    def __init__(self, config: Config, node: Node, family: Family) -> None:
        self._config, self._family = config, family
        self._guard = _Guard(config, node)
        self._claims: dict[Address, tuple[Claim, ...]] = {}
        # The Services that have a ClusterIP, whether they count or not.
        self._holders: dict[Address, tuple[str, ...]] = {}

    def __iter__(self) -> Iterator[Address]:
        """The addresses that somebody claims."""
        return iter(self._claims)

    def replace(self, old: Service | None, new: Service | None) -> set[Address]:
        """Takes note of a Service's change; the addresses whose `settled` it may have changed."""
        touched: set[Address] = set()
        for service, index in ((old, _drop), (new, _add)):
            if service is None:
                continue
            for address in service.cluster_ips:
                if address.version == self._family.version:
                    index(self._holders, address, service.key)
                    # Most ClusterIPs are nobody's external IP.
                    if address in self._claims:
                        touched.add(address)
            for address, claim in self._of(service):
                index(self._claims, address, claim)
                touched.add(address)
        return touched

    def settled(self, address: Address) -> tuple[list[Claim], list[Problem]]:
        """The claims to `address` that hold, each limited to its ports, and what is refused."""
        claims = self._claims.get(address, ())
        if not claims:
            return [], []
        reason, why = self._guard.reason(address)
        if not reason and address in self._holders:
            reason, why = "ClusterIP", f"the ClusterIP of {min(self._holders[address])}"
        if reason:
            text = f"{show_address(address)} is refused: it is {why}"
            return [], [Problem(claim.service.key, reason, text) for claim in claims]
        if len(claims) == 1 and self._config.services.match_ports == "Shared":
            return list(claims), []
        return _by_port(address, claims)

    def _of(self, service: Service) -> Iterator[tuple[Address, Claim]]:
        """What `service` claims: each external IP once, with the clients that may use it."""
        version = self._family.version
        cluster_ip = next((a for a in service.cluster_ips if a.version == version), None)
        only_local = self._config.services.external_traffic_policy == "Local"
        if cluster_ip is None or service.skipped or (only_local and not service.local_policy):
            return
        for address in service.load_balancer_ips:
            if address.version == version:
                yield address, Claim(service, cluster_ip, None, service.source_ranges)
        if self._config.services.external_ips:
            # kube-proxy applies the source ranges to the load balancer's IPs alone.
            for address in service.external_ips:
                if address.version == version and address not in service.load_balancer_ips:
                    yield address, Claim(service, cluster_ip, None, None)


def _add(index: dict[Address, tuple[T, ...]], address: Address, item: T) -> None:
    index[address] = (*index.get(address, ()), item)


def _drop(index: dict[Address, tuple[T, ...]], address: Address, item: T) -> None:
    """Takes out `item`; that it is not there is a bug of whoever says so, and raises ValueError."""
    there = index.get(address, ())
    left = tuple(other for other in there if other != item)
    if len(left) != len(there) - 1:
        raise ValueError(f"{item} is at {address} {len(there) - len(left)} times, not once")
    if left:
        index[address] = left
    else:
        del index[address]


def _by_port(address: Address, claims: Iterable[Claim]) -> tuple[list[Claim], list[Problem]]:
    """The claims to one address with the ports that each Service gets.

    The oldest Service has a port that two want; it keeps the address's meaning stable when
    somebody else's Service comes later.
    """
    holders: dict[Port, str] = {}
    settled: list[Claim] = []
    problems: list[Problem] = []
    for claim in sorted(claims, key=lambda c: (c.service.created, c.service.key)):
        won = []
        for port in claim.service.ports:
            holder = holders.setdefault(port, claim.service.key)
            if holder == claim.service.key:
                won.append(port)
            else:
                text = f"{show_address(address)} {port.protocol} {port.number} is {holder}'s"
                problems.append(Problem(claim.service.key, "PortConflict", text))
        settled.append(claim._replace(ports=tuple(won)))
    return settled, problems


class _Guard:
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
