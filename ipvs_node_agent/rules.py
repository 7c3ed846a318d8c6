"""Which rules are wanted: from the configuration and a snapshot of the cluster to a `Ruleset`.

The packet's walk, for a connection to an external IP of a Service:

1. From a pod with a network namespace of its own it enters the node by nat PREROUTING; from the
   host, or a pod on the host's network, it starts in nat OUTPUT. Our jump is the first rule there,
   since kube-proxy's KUBE-SERVICES behind it accepts the packet and ends the walk.
2. Our chain finds the external IP (and the pod CIDR as the source, or a local source address),
   has KUBE-MARK-MASQ mark the packet, and changes its destination to the Service's ClusterIP.
3. IPVS hooks in after both (LOCAL_IN after PREROUTING, LOCAL_OUT after OUTPUT) and knows the
   ClusterIP with all of its endpoints, whatever externalTrafficPolicy says.
4. In nat POSTROUTING, KUBE-POSTROUTING gives a marked packet the node's address as its source. The
   host's packets need that: the external IP is bound to kube-ipvs0, so the kernel chose it as the
   source as well, and the answer would never come back.

Only text is made here; `ruleset` compares it, `iptables` applies it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipvs_node_agent.addresses import (
    Address,
    Family,
    Network,
    contains,
    intersection,
    of_family,
    show_address,
    show_network,
)
from ipvs_node_agent.config import Config
from ipvs_node_agent.model import Node, Port, Problem, Service, Snapshot
from ipvs_node_agent.ruleset import Ruleset


@dataclass(frozen=True)
class Plan:
    """What is wanted in one family's nat table, and what was asked for and is refused."""

    ruleset: Ruleset
    problems: tuple[Problem, ...]


class Claim(NamedTuple):
    """A Service's claim to an external IP.

    `ports` is None where every port goes to the Service; `clients` is None where every client may.
    """

    service: Service
    cluster_ip: Address
    ports: tuple[Port, ...] | None
    clients: tuple[Network, ...] | None


def pod_cidrs(config: Config, node: Node) -> tuple[Network, ...] | None:
    """The node's pod CIDRs of both families; None while nobody has said which they are."""
    if config.pod_cidrs is not None:
        return config.pod_cidrs
    return node.pod_cidrs or None


def plan(config: Config, snapshot: Snapshot, family: Family) -> Plan:
    """The rules that are wanted in `family`'s nat table; a function of the arguments alone."""
    problems: list[Problem] = []
    claims = _claims(config, snapshot, family, problems)
    cidrs = sorted(set(of_family(pod_cidrs(config, snapshot.node) or (), family)))
    hosts = [a for a in snapshot.node.addresses if a.version == family.version]
    if not (claims or cidrs or hosts):
        # The node does not speak this family: not even an empty chain belongs there.
        return Plan(Ruleset(), tuple(sorted(problems)))
    prerouting: list[str] = []
    output: list[str] = []
    for address in sorted(claims):
        for claim in _settle(config, address, claims[address], problems):
            prerouting += _pod_rules(config, family, address, claim, cidrs)
            output += _host_rules(config, family, address, claim, hosts)
    names = config.chains
    chains = {names.prerouting: tuple(prerouting), names.output: tuple(output)}
    jumps = {"PREROUTING": names.prerouting, "OUTPUT": names.output}
    return Plan(Ruleset(chains, jumps), tuple(sorted(problems)))


def _claims(
    config: Config, snapshot: Snapshot, family: Family, problems: list[Problem]
) -> dict[Address, list[Claim]]:
    """Who claims which external IP of `family`, less what is refused outright."""
    guard = _Guard(config, snapshot)
    claims: dict[Address, list[Claim]] = {}
    for service in snapshot.services.values():
        cluster_ip = next((a for a in service.cluster_ips if a.version == family.version), None)
        if cluster_ip is None or not _selected(config, service):
            continue
        for address, clients in _external_ips(config, service):
            if address.version != family.version:
                continue
            refusal = guard.refusal(service.key, address)
            if refusal is not None:
                problems.append(refusal)
            else:
                claim = Claim(service, cluster_ip, None, clients)
                claims.setdefault(address, []).append(claim)
    return claims


def _selected(config: Config, service: Service) -> bool:
    only_local = config.services.external_traffic_policy == "Local"
    return not service.skipped and (service.local_policy or not only_local)


def _external_ips(
    config: Config, service: Service
) -> Iterator[tuple[Address, tuple[Network, ...] | None]]:
    """Each external IP of `service` once, with the clients that may use it."""
    for address in service.load_balancer_ips:
        yield address, service.source_ranges
    if config.services.external_ips:
        # kube-proxy applies the source ranges to the load balancer's IPs alone.
        yield from ((a, None) for a in service.external_ips if a not in service.load_balancer_ips)


class _Guard:
    """Knows the addresses that no Service may have, as foreign traffic would go with them."""

    def __init__(self, config: Config, snapshot: Snapshot) -> None:
        self._allowed = config.services.allowed_external_cidrs
        self._pod_cidrs = sorted(
            {*(config.pod_cidrs or ()), *snapshot.node.pod_cidrs},
            key=lambda cidr: (cidr.version, cidr),
        )
        # With ports in the rule, SSH and the kubelet's port stay the node's own.
        by_port = config.services.match_ports == "Always"
        self._node = frozenset(() if by_port else snapshot.node.addresses)
        self._cluster_ips: dict[Address, str] = {}
        for service in snapshot.services.values():
            for address in service.cluster_ips:
                holder = self._cluster_ips.get(address, service.key)
                self._cluster_ips[address] = min(holder, service.key)

    def refusal(self, service: str, address: Address) -> Problem | None:
        """Why `service` may not have `address`, or None where it may."""
        reason, why = self._reason(address)
        if not reason:
            return None
        return Problem(service, reason, f"{show_address(address)} is refused: it is {why}")

    def _reason(self, address: Address) -> tuple[str, str]:
        for reason, applies, why in (
            ("Loopback", address.is_loopback, "a loopback address"),
            ("Unspecified", address.is_unspecified, "an unspecified address"),
            ("LinkLocal", address.is_link_local, "a link-local address"),
            ("Multicast", address.is_multicast, "a multicast address"),
            ("Broadcast", address.packed == b"\xff" * 4, "a broadcast address"),
        ):
            if applies:
                return reason, why
        if address in self._cluster_ips:
            return "ClusterIP", f"the ClusterIP of {self._cluster_ips[address]}"
        if address in self._node:
            return "NodeAddress", "this node's own (services.matchPorts: Always would allow it)"
        for cidr in self._pod_cidrs:
            if contains(cidr, address):
                return "PodCIDR", f"inside the pod CIDR {show_network(cidr)}"
        if self._allowed and not any(contains(cidr, address) for cidr in self._allowed):
            return "NotAllowed", "outside services.allowedExternalCIDRs"
        return "", ""


def _settle(
    config: Config, address: Address, claims: Sequence[Claim], problems: list[Problem]
) -> list[Claim]:
    """The claims to one address, limited to the ports that each Service gets where they share it.

    The oldest Service has a port that two want; it keeps the address's meaning stable when
    somebody else's Service comes later.
    """
    if len(claims) == 1 and config.services.match_ports == "Shared":
        return list(claims)
    holders: dict[Port, str] = {}
    settled: list[Claim] = []
    for claim in sorted(claims, key=lambda c: (c.service.created, c.service.key)):
        won = []
        for port in claim.service.ports:
            holder = holders.setdefault(port, claim.service.key)
            if holder == claim.service.key:
                won.append(port)
            else:
                text = f"{show_address(address)} {port.protocol} {port.number} is {holder}'s"
                problems.append(Problem(claim.service.key, "PortConflict", text))
        settled.append(claim._replace(ports=tuple(sorted(won))))
    return sorted(settled, key=lambda c: c.service.key)


def _pod_rules(
    config: Config, family: Family, address: Address, claim: Claim, cidrs: Sequence[Network]
) -> Iterator[str]:
    sources: Iterable[Network] = cidrs
    if claim.clients is not None:
        clients = of_family(claim.clients, family)
        # Cut one by one, or adjacent pod CIDRs would be merged; once each, as they may overlap.
        sources = dict.fromkeys(part for cidr in cidrs for part in intersection([cidr], clients))
    marked = config.masquerade == "All"
    for source in sources:
        for match in _matches(family, address, claim):
            rule = f"-s {show_network(source)} {match}"
            yield from _pair(config, rule, claim.cluster_ip, marked)


def _host_rules(
    config: Config, family: Family, address: Address, claim: Claim, hosts: Sequence[Address]
) -> Iterator[str]:
    if claim.clients is not None and not any(
        contains(cidr, host) for cidr in claim.clients for host in hosts
    ):
        return
    for match in _matches(family, address, claim):
        rule = f"{match} -m addrtype --src-type LOCAL"
        yield from _pair(config, rule, claim.cluster_ip, marked=True)


def _matches(family: Family, address: Address, claim: Claim) -> Iterator[str]:
    destination = f"-d {show_address(address)}/{family.bits}"
    # The key is checked to be two DNS labels, so nothing in it can end the quotes.
    comment = f'-m comment --comment "{claim.service.key}"'
    if claim.ports is None:
        yield f"{destination} {comment}"
        return
    for protocol, number in claim.ports:
        yield f"{destination} -p {protocol} -m {protocol} --dport {number} {comment}"


def _pair(config: Config, match: str, cluster_ip: Address, marked: bool) -> Iterator[str]:
    if marked:
        yield f"{match} -j {config.chains.mark_masquerade}"
    yield f"{match} -j DNAT --to-destination {show_address(cluster_ip)}"
