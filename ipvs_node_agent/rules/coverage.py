"""Which packets are a pod's, as far as rules know, and which pods of this node that leaves out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import (
    Address,
    Network,
    contains,
    show_address,
    show_network,
)
from ipvs_node_agent.model.objects import Candidate, Node, OwnPod, UncoveredPod
from ipvs_node_agent.rules.policy import is_one_of, pod_cidrs

# How network plugins begin the names of their pods' interfaces, each of which is another one.
_POD_INTERFACES = re.compile("cali|veth|lxc|eni|azv")
_SHOWN = 4


class Coverage(NamedTuple):
    """The packets that rules take for those of pods: by interface or, without any, by source."""

    interfaces: tuple[str, ...]
    cidrs: tuple[Network, ...]

    def covers(self, found: Candidate) -> bool:
        """Whether a packet of these addresses that comes in there is known to be a pod's."""
        if self.interfaces:
            return is_one_of(found.interface, self.interfaces)
        return any(
            contains(cidr, found.address) and found.length >= cidr.prefixlen for cidr in self.cidrs
        )

    def __str__(self) -> str:
        if self.interfaces:
            return f"interface: {', '.join(self.interfaces)}"
        return f"pod CIDR: {', '.join(map(show_network, self.cidrs)) or 'there is none'}"


def coverage(config: Config, node: Node, interfaces: tuple[str, ...]) -> Coverage:
    """What the rules of `node` cover, where `interfaces` lead to its pods."""
    return Coverage(interfaces, pod_cidrs(config, node) or ())


def uncovered(
    pods: Iterable[OwnPod], candidates: Iterable[Candidate], known: Coverage
) -> tuple[UncoveredPod, ...]:
    """Those of `pods` whose packets are not `known` for a pod's, by each of their addresses."""
    missed = [each for each in candidates if not known.covers(each)]
    single = {each.address: each.interface for each in missed if each.is_single}
    wide = [
        (ip_network((each.address.packed, each.length)), each.interface)
        # As the kernel has it, the longest counts.
        for each in sorted(missed, key=lambda each: -each.length)
        if not each.is_single
    ]
    found = set()
    for pod in pods:
        for address in pod.addresses:
            led = [interface for network, interface in wide if contains(network, address)]
            for interface in [single[address]] if address in single else led[:1]:
                found.add(UncoveredPod(pod.key, address, interface))
    ordered = sorted(found, key=lambda each: (each.key, each.address.version, each.address))
    return still_uncovered(ordered, known)


def still_uncovered(pods: Iterable[UncoveredPod], known: Coverage) -> tuple[UncoveredPod, ...]:
    """Those of `pods` that are not covered by what is `known` now."""
    return tuple(pod for pod in pods if not known.covers(at(pod.interface, pod.address)))


def at(interface: str, address: Address) -> Candidate:
    """A single address."""
    return Candidate(interface, address, address.max_prefixlen)


def how_many(pods: Collection[UncoveredPod]) -> int:
    """How many pods these are: one may have several addresses."""
    return len({pod.key for pod in pods})


def described(pods: Sequence[UncoveredPod]) -> str:
    """How many pods no rule covers, and the first of them; for people."""
    shown = [f"{p.key} at {show_address(p.address)} by {one_line(p.interface)}" for p in pods]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    number = how_many(pods)
    what = "1 pod of this node has" if number == 1 else f"{number} pods of this node have"
    return f"{what} no rules: {', '.join(shown[:_SHOWN] + more)}"


def remedy(pods: Iterable[UncoveredPod], known: Coverage) -> str:
    """What to set for rules to cover `pods` as well."""
    patterns = {_pattern(pod.interface) for pod in pods}.union(known.interfaces)
    interfaces = f"podInterfaces: [{', '.join(sorted(patterns))}]"
    if known.interfaces:
        return interfaces
    return (
        f"{interfaces}, plus the interfaces of all other pods,"
        " or podCIDRs that contain all pods' addresses"
    )


def _pattern(interface: str) -> str:
    found = _POD_INTERFACES.match(interface)
    return f"{found[0]}+" if found else one_line(interface)
