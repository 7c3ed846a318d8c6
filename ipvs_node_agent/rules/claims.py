"""Which Service has which external IP: claims, what is refused, and who gets a contested port.

Claims are kept up to date Service by Service, since one change must not cost a look at all of them.
Nothing here depends on the order in which Services come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, Family, Network, show_address
from ipvs_node_agent.model.objects import Node, Port, Problem, Service
from ipvs_node_agent.rules.policy import Guard, external_ips

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
        self._guard = Guard(config, node)
        self._claims: dict[Address, tuple[Claim, ...]] = {}
        # The Services that have a ClusterIP, whether they count or not.
        self._holders: dict[Address, tuple[str, ...]] = {}

    def __iter__(self) -> Iterator[Address]:
        """The addresses that somebody claims."""
        return iter(self._claims)

    def replace(self, old: Service | None, new: Service | None) -> set[Address]:
        """Takes note of a Service's change; the addresses for which `awarded` may differ now."""
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

    def awarded(self, address: Address) -> tuple[list[Claim], list[Problem]]:
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
        balanced = frozenset(service.load_balancer_ips)
        for address in external_ips(service, self._config):
            if address.version == version:
                # kube-proxy applies the source ranges to the load balancer's IPs alone.
                clients = service.source_ranges if address in balanced else None
                yield address, Claim(service, cluster_ip, None, clients)


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
    awarded: list[Claim] = []
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
        awarded.append(claim._replace(ports=tuple(won)))
    return awarded, problems
