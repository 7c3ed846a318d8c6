"""Connection tracking's entries of UDP flows that rules no longer agree with, and their deletion.

A flow that connection tracking knows never meets a nat rule again, and a UDP client that goes on
sending from one port keeps its flow for ever. So where a rule is made, changed or removed, what is
known of the flows that it is about has to go; kube-proxy does the same for its own. A flow that was
right already only loses its entry, and gets the same one with its next packet.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from ipvs_node_agent.addresses import (
    Address,
    Family,
    Network,
    contains,
    parse_address,
    parse_network,
    show_address,
    show_network,
)
from ipvs_node_agent.iptables import Command, TableError
from ipvs_node_agent.launcher import Launcher
from ipvs_node_agent.ruleset import Change, Rules

log = logging.getLogger(__name__)

_RULE = re.compile(
    r"(?:-s (?P<source>\S+) )?-d (?P<address>[^ /]+)/\d+ "
    r"(?:-p (?P<protocol>\w+) -m \w+ --dport (?P<port>\d+) )?"
    r'-m comment --comment "(?P<key>[^"]*)" .*-j DNAT '
)
_FLOW = re.compile(r"udp .*? src=(\S+) dst=(\S+) sport=\d+ dport=(\d+) ")


class Flows(NamedTuple):
    """Flows that a rule is about: from `source` (None: this host), to any UDP port or to one."""

    service: str
    source: Network | None
    address: Address
    port: int | None


class Forgetter(Protocol):
    """Deletes connection tracking's entries."""

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        """Deletes the entries of UDP `flows`; `hosts` are the addresses of this host."""


def changed_flows(change: Change) -> list[Flows]:
    """The flows that the rules are about which `change` adds or removes."""
    added, removed = _translations(change.written), _translations(change.replaced)
    return [flows for rule in sorted(added ^ removed) if (flows := _flows(rule)) is not None]


def _translations(chains: Mapping[str, Rules]) -> set[str]:
    return {rule for rules in chains.values() for rule in rules if " -j DNAT " in rule}


def _flows(rule: str) -> Flows | None:
    """What `rule` is about; None where it is not about UDP, or none of ours."""
    found = _RULE.match(rule)
    if found is None or found["protocol"] not in (None, "udp"):
        return None
    try:
        source = None if found["source"] is None else parse_network(found["source"])
        address = parse_address(found["address"])
    except ValueError:
        return None
    return Flows(found["key"], source, address, int(found["port"]) if found["port"] else None)


def known_flows(
    listing: str, wanted: Iterable[Flows], hosts: Iterable[Address]
) -> Iterable[tuple[Flows, Address]]:
    """Those of `wanted` that `listing`, of conntrack -L, has entries of, with their sources."""
    by_address: dict[Address, list[Flows]] = {}
    for flows in wanted:
        by_address.setdefault(flows.address, []).append(flows)
    local = frozenset(hosts)
    found = set()
    for line in listing.splitlines():
        entry = _FLOW.match(line)
        if entry is None:
            continue
        try:
            source, address = parse_address(entry[1]), parse_address(entry[2])
        except ValueError:
            continue
        for flows in by_address.get(address, ()):
            # The kernel takes an external IP on kube-ipvs0 as the source of what the host sends.
            ours = (
                source in local or source == address
                if flows.source is None
                else contains(flows.source, source)
            )
            if ours and flows.port in (None, int(entry[3])):
                found.add((flows._replace(port=int(entry[3])), source))
    return found


class Conntrack:
    """The kernel's connection tracking, through the conntrack command."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._said = ""

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        """See `Forgetter`. What fails is said once, and leaves a flow where it was."""
        try:
            listing = self._run(family, "-L")
            stale = {
                (*_source(wanted, source), wanted.address, wanted.port)
                for wanted, source in known_flows(listing, flows, hosts)
            }
            for option, value, address, port in stale:
                to = ["--orig-dst", show_address(address), "--orig-port-dst", str(port)]
                self._run(family, "-D", option, value, *to)
            self._said = ""
        except TableError as error:
            if str(error) != self._said:
                log.warning("UDP flows may go on as before a change of rules: %s", error)
            self._said = str(error)

    def _run(self, family: Family, *arguments: str) -> str:
        name = {4: "ipv4", 6: "ipv6"}[family.version]
        return Command(
            self._launcher,
            "conntrack",
            # Options of a protocol come after it.
            [arguments[0], "-f", name, "-p", "udp", *arguments[1:]],
            package="conntrack",
            good=(0, 1),  # 1 where there was nothing to delete.
        ).result()


def _source(flows: Flows, source: Address) -> tuple[str, str]:
    """One deletion for all pods of a pod CIDR, or for one address of the host."""
    if flows.source is None:
        return "--orig-src", show_address(source)
    return "--orig-src", show_network(flows.source)
