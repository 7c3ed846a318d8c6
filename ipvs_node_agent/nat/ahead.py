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
from collections.abc import Container, Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, Network, address_of, contains
from ipvs_node_agent.nat.ruletext import goes_to, targets

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
# iptables-save prints addresses first. A mask that is no prefix, such as /0.255.255.255, is left to
# those that cannot be judged.
_DESTINATION = re.compile(r"(?:(?:! )?-s \S+ )?-d ([^\s/]+(?:/\d+)?) ")
# Who needs more of them cannot be judged; and of so many jumps nobody is given way to.
MOST_RULES, MOST_JUMPS = 4096, 32
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Ahead(NamedTuple):
    """A jump before ours: where it leads, and the destinations of packets that may end there.

    `chains` are all that a packet can get to from it, `rule` is its whole text.
    """

    rule: str
    target: str
    chains: frozenset[str]
    ends: tuple[Network, ...]

    def keeps(self, addresses: frozenset[Address]) -> bool:
        """Whether a packet to one of `addresses` may not come back from it."""
        single = {address_of(each.network_address.packed) for each in self.ends if _is_one(each)}
        wide = [network for network in self.ends if not _is_one(network)]
        return not single.isdisjoint(addresses) or any(
            contains(network, address) for network in wide for address in addresses
        )

    @property
    def insists(self) -> bool:
        """Whether it is of somebody who is known to insist on the first place."""
        return _KNOWN.fullmatch(self.target) is not None


def may_stand_before(rule: str, foreign: Container[str]) -> str:
    """The chain of others' that `rule` jumps to, if we may stand behind it; empty where not.

    Behind a goto we may not: who comes back from there has passed by the rest of the chain.
    """
    to = targets(rule)
    name = next(iter(to)) if len(to) == 1 else ""
    kubernetes = name.startswith(_NEVER) and name != _KUBE_ROUTER
    return name if name in foreign and not kubernetes and not goes_to(rule) else ""


class _Read(NamedTuple):
    """What a chain says: whom it may lead to of others' chains, and which walks it may end."""

    leads: frozenset[str]
    ends: frozenset[Network]
    rules: int


class Others:
    """The rules of others' `chains`, which are judged; each chain is read once."""

    def __init__(self, chains: Mapping[str, Sequence[str]]) -> None:
        self._chains = chains
        self._read: dict[str, _Read] = {}
        self._judged: dict[str, Ahead] = {}

    def judged(self, rule: str, target: str) -> Ahead:
        """What may become of packets that follow `rule` to the chain `target`."""
        if target not in self._judged:
            self._judged[target] = self._walked(target)
        return self._judged[target]._replace(rule=rule)

    def _walked(self, target: str) -> Ahead:
        reached, left = {target}, [target]
        ends: set[Network] = set()
        rules = 0
        while left:
            read = self._of(left.pop())
            rules += read.rules
            ends |= read.ends
            left += read.leads - reached
            reached |= read.leads
        shown = EVERYWHERE if rules > MOST_RULES else tuple(sorted(ends, key=str))
        return Ahead("", target, frozenset(reached), shown)

    def _of(self, chain: str) -> _Read:
        if chain not in self._read:
            rules = self._chains[chain]
            leads: set[str] = set()
            ends: set[Network] = set()
            for rule in rules:
                to = targets(rule)
                leads |= to & self._chains.keys()
                if not to - self._chains.keys() <= _HARMLESS:
                    ends.update(_destinations(rule))
            self._read[chain] = _Read(frozenset(leads), frozenset(ends), len(rules))
        return self._read[chain]


def _is_one(network: Network) -> bool:
    return network.prefixlen == network.max_prefixlen


def _destinations(rule: str) -> Sequence[Network]:
    """The destinations that `rule` asks for."""
    found = _DESTINATION.match(rule)
    try:
        return [ip_network(found[1], strict=False)] if found else EVERYWHERE
    except ValueError:
        return EVERYWHERE
