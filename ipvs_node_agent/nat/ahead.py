"""Who stands before our jump in a built-in chain, and whose packets he would keep from us.

Our jump has to come before KUBE-SERVICES, and before everything that may end the walk of a packet
to one of our addresses. Others insist on the first place too: Calico's felix in its default
`chainInsertMode: Insert` puts its jumps back to the front whenever they are not there, and kube-ovn
is alike. Where nothing that can be reached from such a jump ends the walk of a packet of ours, it
may stay in front, and both are content.

What a rule may do is told from its text, and in doubt against it: of a rule that ends a walk counts
the destination that it asks for, and nothing else; a target that is not known ends it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, Network, contains
from ipvs_node_agent.nat.ruletext import QUOTED, targets

# Calico's chains (felix `rules.ChainNamePrefix`), and the one of kube-ovn's in PREROUTING.
_INSISTING = r"cali-.*|OVN-PREROUTING"
# kube-router's in filter, the one among those named like Kubernetes' own.
_KUBE_ROUTER = "KUBE-ROUTER-INPUT"
_KNOWN = re.compile(rf"{_INSISTING}|{_KUBE_ROUTER}")
# Behind Kubernetes' own chains we have no business, whatever is in them.
_NEVER = "KUBE-"
# They let a packet go on in the chain, or back to the one before.
_HARMLESS = frozenset(
    {"MARK", "CONNMARK", "LOG", "NFLOG", "SET", "RETURN", "TRACE", "NOTRACK", "CT", "AUDIT", "TEE"}
)
_DESTINATION = re.compile(r"(?:^| )(! )?-d (\S+)")
# Who needs more of them cannot be judged.
MOST_RULES = 4096
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Ahead(NamedTuple):
    """A jump before ours: where it leads, and the destinations of packets that may end there.

    `chains` are all that a packet can get to from it, `rule` is its whole text.
    """

    rule: str
    target: str
    chains: frozenset[str]
    ends: tuple[Network, ...]

    def keeps(self, addresses: Iterable[Address]) -> bool:
        """Whether a packet to one of `addresses` may not come back from it."""
        return bool(self.ends) and any(
            contains(network, address) for address in addresses for network in self.ends
        )

    @property
    def insists(self) -> bool:
        """Whether it is of somebody who is known to insist on the first place."""
        return _KNOWN.fullmatch(self.target) is not None


def may_stand_before(rule: str, foreign: Container[str]) -> str:
    """The chain of others' that `rule` jumps to, if we may stand behind it; empty where not."""
    to = targets(rule)
    name = next(iter(to)) if len(to) == 1 else ""
    kubernetes = name.startswith(_NEVER) and name != _KUBE_ROUTER
    return name if name in foreign and not kubernetes else ""


def judged(rule: str, target: str, chains: Mapping[str, Sequence[str]]) -> Ahead:
    """What may become of packets that follow `rule` to `target`, one of others' `chains`."""
    reached, left = {target}, [target]
    ends: dict[Network, None] = {}
    read = 0
    while left:
        for inner in chains[left.pop()]:
            read += 1
            for to in targets(inner):
                if to in chains and to not in reached:
                    reached.add(to)
                    left.append(to)
                elif to not in chains and to not in _HARMLESS:
                    ends.update(dict.fromkeys(_destinations(inner)))
    return Ahead(rule, target, frozenset(reached), EVERYWHERE if read > MOST_RULES else tuple(ends))


def _destinations(rule: str) -> Sequence[Network]:
    """The destinations that `rule` asks for."""
    found = _DESTINATION.search(QUOTED.sub('""', rule))
    if found is None or found[1]:
        return EVERYWHERE
    try:
        return [ip_network(found[2], strict=False)]
    except ValueError:
        return EVERYWHERE
