"""Which Service has which external IP: claims, what is refused, and who gets a contested port.

Whoever names an address claims it, also a Service that gets no rules: kube-proxy, or whoever serves
that one, must go on seeing the packets to its ports. So a whole address is given only to a Service
that is alone there.

Claims are kept up to date Service by Service, since one change must not cost a look at all of them.
Nothing here depends on the order in which Services come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, Family, Network, contains, show_address
from ipvs_node_agent.model.objects import Node, NodeNetwork, Port, Problem, Service
from ipvs_node_agent.rules.policy import Guard, clients, external_ips, is_counted, named_ips

T = TypeVar("T")


class Claim(NamedTuple):
    """A Service's claim to an external IP.

    `ports` is None where every port goes to the Service; `clients` is None where every client may.
    Where it does not `count`, it gets no rules and keeps its ports. `by_author` says that the
    Service's author named the address, and no controller.
    """

    service: Service
    cluster_ip: Address
    ports: tuple[Port, ...] | None
    clients: tuple[Network, ...] | None
    counts: bool = True
    by_author: bool = False


class Claims:
    """Who claims which external IP of one family."""

    def __init__(self, config: Config, node: Node, family: Family, network: NodeNetwork) -> None:
        self._config, self._node, self._family = config, node, family
        self._look(network)
        self._claims = _ByAddress[Claim]()
        # Who names an address and has no ClusterIP to lead it to.
        self._homeless = _ByAddress[str]()
        # The Services that have a ClusterIP, whether they count or not.
        self._holders = _ByAddress[str]()

    def __iter__(self) -> Iterator[Address]:
        """The addresses that somebody claims."""
        return iter({*self._claims, *self._homeless})

    def _look(self, network: NodeNetwork) -> None:
        self._network, self._guard = network, Guard(self._config, self._node, network)
        # Where the host itself, or the API server, is reached too.
        self._by_port = {*self._node.addresses, *network.addresses}
        self._by_port.update(address for address, _ in network.api_servers)

    def move(self, network: NodeNetwork) -> set[Address]:
        """Goes by `network` from now on; the addresses for which `awarded` may differ now."""
        before = self._network
        self._look(network)
        touched = {*before.addresses ^ network.addresses, *before.pods ^ network.pods}
        touched.update(address for address, _ in before.api_servers ^ network.api_servers)
        blocks = before.pod_blocks ^ network.pod_blocks
        # With many Services, only where they have to be looked at.
        inside = {a for a in self._claims if blocks and any(contains(block, a) for block in blocks)}
        return inside | {address for address in touched if address in self._claims}

    def replace(self, old: Service | None, new: Service | None) -> set[Address]:
        """Takes note of a Service's change; the addresses for which `awarded` may differ now."""
        touched: set[Address] = set()
        for service, index in ((old, _ByAddress.drop), (new, _ByAddress.add)):
            if service is None:
                continue
            for address in service.cluster_ips:
                if address.version == self._family.version:
                    index(self._holders, address, service.key)
                    # Most ClusterIPs are nobody's external IP.
                    if address in self._claims:
                        touched.add(address)
            for address, claim in self._of(service):
                if claim is None:
                    index(self._homeless, address, service.key)
                else:
                    index(self._claims, address, claim)
                touched.add(address)
        return touched

    def awarded(self, address: Address) -> tuple[list[Claim], list[Problem]]:
        """The claims to `address` that hold, each limited to its ports, and what is refused."""
        claims = self._claims.at(address)
        counted = [claim for claim in claims if claim.counts]
        awarded, problems = self._awarded(address, claims, counted) if counted else ([], [])
        for key in self._homeless.at(address):
            text = f"{show_address(address)} gets no rules: there is no ClusterIP of its family"
            problems.append(Problem(key, "NoClusterIP", text))
        return awarded, problems

    def _awarded(
        self, address: Address, claims: Sequence[Claim], counted: list[Claim]
    ) -> tuple[list[Claim], list[Problem]]:
        reason, why = self._guard.reason(address)
        if not reason and address in self._holders:
            reason, why = "ClusterIP", f"the ClusterIP of {min(self._holders.at(address))}"
        if reason:
            text = f"{show_address(address)} is refused: it is {why}"
            return [], [Problem(claim.service.key, reason, text) for claim in counted]
        is_alone = len(claims) == 1 and address not in self._by_port
        if is_alone and self._config.services.match_ports == "Shared":
            return counted, []
        leash = {Port("tcp", port) for at, port in self._network.api_servers if at == address}
        return _by_port(address, claims, leash)

    def _of(self, service: Service) -> Iterator[tuple[Address, Claim | None]]:
        """What `service` claims: each address once, with the clients that may use it.

        Without a ClusterIP of the family it claims nothing, also where it should have rules.
        """
        version = self._family.version
        cluster_ip = next((a for a in service.cluster_ips if a.version == version), None)
        named = [address for address in named_ips(service) if address.version == version]
        if not named:
            return
        balanced = {*service.load_balancer_ips, *service.proxied_ips}
        counted = is_counted(service, self._config)
        asked = frozenset(external_ips(service, self._config) if counted else ())
        # kube-proxy applies the source ranges to the load balancer's IPs alone.
        limited = clients(service, self._family)
        if cluster_ip is None:
            yield from ((address, None) for address in named if address in asked)
            return
        for address in named:
            is_balanced = address in balanced
            who = limited if is_balanced else None
            yield address, Claim(service, cluster_ip, None, who, address in asked, not is_balanced)


class _ByAddress(Generic[T]):
    """What there is at each address; one alone, as at most, takes no tuple's memory."""

    def __init__(self) -> None:
        self._first: dict[Address, T] = {}
        self._more: dict[Address, tuple[T, ...]] = {}

    def __iter__(self) -> Iterator[Address]:
        return iter(self._first)

    def __contains__(self, address: Address) -> bool:
        return address in self._first

    def at(self, address: Address) -> tuple[T, ...]:
        first = self._first.get(address)
        if first is None:
            return ()
        return (first, *self._more.get(address, ())) if self._more else (first,)

    def add(self, address: Address, item: T) -> None:
        if address in self._first:
            self._more[address] = (*self._more.get(address, ()), item)
        else:
            self._first[address] = item

    def drop(self, address: Address, item: T) -> None:
        """Takes out `item`; that it is not there is a bug of whoever says so: ValueError."""
        there = self.at(address)
        left = tuple(other for other in there if other != item)
        if len(left) != len(there) - 1:
            raise ValueError(f"{item} is at {address} {len(there) - len(left)} times, not once")
        self._more.pop(address, None)
        if not left:
            del self._first[address]
            return
        self._first[address], more = left[0], left[1:]
        if more:
            self._more[address] = more


def _by_port(
    address: Address, claims: Iterable[Claim], leash: Collection[Port]
) -> tuple[list[Claim], list[Problem]]:
    """The claims to one address with the ports that each Service gets; none gets those of `leash`.

    A port that two want goes to the one for whom a controller wrote the address, as any author of a
    Service can name one; among equals to the oldest, so that a Service that comes later changes
    nothing.
    """
    holders: dict[Port, str] = {}
    awarded: list[Claim] = []
    problems: list[Problem] = []
    for claim in sorted(claims, key=lambda c: (c.by_author, c.service.created, c.service.key)):
        won, key = [], claim.service.key
        if claim.counts and not claim.service.ports:
            text = (
                f"{show_address(address)} gets no rules: they match by port, and no port is known"
            )
            problems.append(Problem(key, "NoPorts", text))
        for port in claim.service.ports:
            holder = holders.setdefault(port, key)
            if holder == key and port not in leash:
                won.append(port)
            elif claim.counts:
                at = f"{show_address(address)} {port.protocol} {port.number}"
                reason, why = "PortConflict", f"belongs to {holder}"
                if port in leash:
                    reason, why = "APIServer", "is refused: this node reaches the API server there"
                problems.append(Problem(key, reason, f"{at} {why}"))
        if claim.counts:
            awarded.append(claim._replace(ports=tuple(won)))
    return awarded, problems
