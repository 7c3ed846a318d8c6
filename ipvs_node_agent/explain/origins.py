"""The packets to an external IP that are followed: a pod's of this node, and the host's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from ipvs_node_agent.explain.facts import Facts
from ipvs_node_agent.explain.services import Naming, family_of
from ipvs_node_agent.model.addresses import (
    Address,
    Network,
    contains,
    of_family,
    parse_network,
    show_address,
)
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruletext import Rule, read

POD, HOST = "pod", "host"
_HOOKS = {POD: "PREROUTING", HOST: "OUTPUT"}


class Origin(NamedTuple):
    """Where a packet comes from: a pod or the host, and who that is."""

    kind: str
    packet: Packet
    shown: str

    @property
    def built_in(self) -> str:
        """The chain in which it starts."""
        return _HOOKS[self.kind]

    @property
    def subject(self) -> str:
        """What lines about it are about."""
        return f"from a {self.kind}" if self.kind == POD else f"from the {self.kind}"


def origins(facts: Facts, address: Address, named: Sequence[Naming]) -> list[Origin]:
    """The packets to `address` that are followed, but for their port."""
    way = facts.ways.get(address)
    made = []
    to = Packet(
        "",
        show_address(address),
        to_host=way.is_local if way is not None else None,
        doubtful=facts.marks.get(family_of(address), 0),
    )
    at, interface = _pod(facts, address, named)
    if at is not None:
        shown = f"{show_address(at)} by {interface}" if interface else show_address(at)
        packet = to._replace(source=show_address(at), interface=interface)
        made.append(Origin(POD, packet, shown))
    if way is not None:
        source = show_address(way.source)
        packet = to._replace(source=source, local=True, out=way.interface or None)
        made.append(Origin(HOST, packet, source))
    return made


def _pod(
    facts: Facts, address: Address, named: Sequence[Naming]
) -> tuple[Address | None, str | None]:
    """A pod of this node that may use the address, by its address and interface.

    Rather one that there is, or else one as it could be; of one with no known interface it is None.
    """
    names = facts.coverage.interfaces
    rules = [rule for each in named for rule in each.pods]
    if facts.seen is None:
        # Rules alone tell who the pods are.
        rules = [*rules_there(facts, address, local=False)]
        names = tuple(sorted({rule.interface for rule in rules} - {""}))
    allowed = _allowed(rules)
    there = [
        each for each in facts.pods if each.is_single and each.address.version == address.version
    ]
    real = [
        each
        for each in there
        if allowed is None or any(contains(network, each.address) for network in allowed)
    ]
    # By interface, whoever is in an allowed range need not be a pod.
    real = real or (there if names else [])
    if real:
        first = min(real, key=lambda each: (each.interface, int(each.address)))
        return first.address, first.interface
    cidrs = [*of_family(allowed or (), family_of(address))]
    cidrs += [each for each in of_family(facts.coverage.cidrs, family_of(address)) if not cidrs]
    if not cidrs and names:
        # By interface, any address may be a pod's.
        cidrs = [parse_network("192.0.2.0/24" if address.version == 4 else "2001:db8::/64")]
    if not cidrs:
        return None, None
    first_address = cidrs[0][min(2, cidrs[0].num_addresses - 1)]
    return first_address, names[0].replace("+", "0") if names else None


def _allowed(rules: Iterable[Rule]) -> list[Network] | None:
    """The sources that `rules` are for; None where they are for all."""
    sources = {rule.source for rule in rules}
    return (
        None if not sources or "" in sources else [parse_network(each) for each in sorted(sources)]
    )


def rules_there(facts: Facts, address: Address, local: bool) -> Iterator[Rule]:
    """Rules for `address` in the tables that the agent uses: pods', or those of `local` packets."""
    prefix = f"{show_address(address)}/{address.max_prefixlen}"
    for table in facts.tables:
        if table.backend == facts.backend and table.family is family_of(address):
            for text in chain.from_iterable(table.table.chains.values()):
                rule = read(text) if f"-d {prefix} " in text else None
                if rule is not None and rule.service and rule.local == local:
                    # Somebody else's may look like one of ours.
                    with suppress(ValueError):
                        if rule.source:
                            parse_network(rule.source)
                        yield rule
