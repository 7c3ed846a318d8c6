"""Which UDP flows a change of the nat table is about.

A flow that connection tracking knows meets no rule again (see `iptables.conntrack`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple

from ipvs_node_agent.model.addresses import Address, Network, parse_address, parse_network
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.ruleset import Change, Ruleset
from ipvs_node_agent.nat.ruletext import Rules


class Flows(NamedTuple):
    """Flows that a rule is about: from `source` (None: from anybody), to any UDP port or to one.

    Where they are `local`, they are this host's own.
    """

    service: str
    source: Network | None
    address: Address
    port: int | None
    local: bool = False


def changed_flows(change: Change, wanted: Ruleset, has_udp: Callable[[str], bool]) -> list[Flows]:
    """The flows that the rules are about which `change` adds or removes on the way to `wanted`.

    Where it makes a jump, these are all rules, since packets may have passed by them.
    Only of the Services that have UDP ports: a start would else read tens of thousands of rules.
    """
    changed = _rules(change.written) ^ _rules(change.replaced)
    if change.hooked:
        changed |= _rules(wanted.chains)
    leading = [rule for rule in changed if ruletext.target(rule) == "DNAT"]
    services = {key for key in set(map(ruletext.service, leading)) if has_udp(key)}
    concerned = [rule for rule in leading if services and ruletext.service(rule) in services]
    return [flows for rule in sorted(concerned) if (flows := _flows(rule)) is not None]


def _rules(chains: Mapping[str, Rules]) -> set[str]:
    return {rule for rules in chains.values() for rule in rules}


def _flows(rule: str) -> Flows | None:
    """What `rule` is about; None where it is not about UDP, or none of ours."""
    found = ruletext.read(rule)
    if found is None or found.protocol not in ("", "udp"):
        return None
    try:
        source = parse_network(found.source) if found.source else None
        address = parse_address(found.destination.partition("/")[0])
    except ValueError:
        return None
    # Of a range, all ports: flows to others get their entries back.
    port = int(found.ports) if found.ports.isdigit() else None
    return Flows(found.service, source, address, port, found.local)
