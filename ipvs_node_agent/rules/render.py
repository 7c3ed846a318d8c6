"""The rules of a claim to an external IP, and the chains that mark where Kubernetes' is missing.

kube-proxy makes KUBE-MARK-MASQ, and the kubelet did so until 1.27; it is no API (KEP-3178), and is
missing where kube-proxy has not started yet, or where somebody flushed it. kube-proxy makes it
empty, and fills it at the end of its first sync, together with the chain that masquerades. So there
is one of our own. Its bit is the one that kube-proxy takes by default, since that one is kept free
on a node of Kubernetes. As in KUBE-POSTROUTING the mark is taken off before the packet goes on, so
that nobody masquerades twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import (
    Address,
    Family,
    collapse,
    contains,
    intersection,
    of_family,
    show_address,
    show_network,
)
from ipvs_node_agent.model.objects import Node
from ipvs_node_agent.nat import ruletext
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN
from ipvs_node_agent.nat.packed import together
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.rules.claims import Claim
from ipvs_node_agent.rules.destinations import PORTS, Entries, Entry, destination
from ipvs_node_agent.rules.policy import pod_cidrs

# What one Service may have in one family. A few would otherwise be enough to fill the memory.
MOST_RULES = 1 << 16
MARK_CHAINS: dict[str, Rules] = {
    OWN_MARK_CHAIN: ("-j MARK --set-xmark 0x4000/0x4000",),
    OWN_POSTROUTING_CHAIN: (
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        "-j MASQUERADE --random-fully",
    ),
}
MARK_JUMPS = {"POSTROUTING": OWN_POSTROUTING_CHAIN}


class Writer:
    """Writes the rules of claims, for one node and one family; `mark` is the chain that marks.

    Pods are known by their pod CIDRs, unless `pod_interfaces` lead to them. `has_family` says
    whether the node has pods or an address in the family; where it `is_absent` from the kernel, it
    does not, and nothing is written.
    """

    def __init__(
        self,
        config: Config,
        node: Node,
        family: Family,
        mark: str,
        pod_interfaces: Sequence[str] = (),
        is_absent: bool = False,
    ) -> None:
        self._family, self._mark, self._is_absent = family, mark, is_absent
        self._external_ips = config.services.external_ips
        self._mark_pods = config.masquerade == "All"
        self._cidrs = sorted(set(of_family(pod_cidrs(config, node) or (), family)))
        # The one address of the node that kube-proxy holds against source ranges.
        self._host = next((a for a in node.addresses if a.version == family.version), None)
        self._interfaces = pod_interfaces
        # Those of a Service that lets every client in, as most do.
        self._all_sources = [("", interface) for interface in pod_interfaces] or [
            (show_network(cidr), "") for cidr in self._cidrs
        ]
        self.has_family = bool(self._cidrs or self._host) and not is_absent

    def rule_bound(self, claim: Claim) -> int:
        """How many rules the Service has at most, if each address of its has as many as `claim`.

        It is a product of three lists that its author fills; for so many of them that to know would
        be work as well, it is some large number.
        """
        addresses = len(claim.service.load_balancer_ips)
        if self._external_ips:
            addresses += len(claim.service.external_ips)
        ranges = addresses * len(claim.clients or ())
        if ranges > MOST_RULES:
            return ranges
        ports = 1 if claim.ports is None else len(claim.ports)
        return 2 * addresses * ports * (len(self._sources(claim)) + 1)

    def entries(self, address: Address, claim: Claim) -> Entries:
        """The rules for each destination at `address` that `claim` has; none without a client."""
        sources = self._sources(claim)
        host = self._host_may(claim)
        if self._is_absent or not (sources or host):
            return {}
        prefix, key = f"{show_address(address)}/{self._family.bits}", claim.service.key
        cluster_ip = show_address(claim.cluster_ip)

        def entry(protocol: str = "", ports: str = "") -> Entry:
            to = partial(ruletext.match, prefix, protocol=protocol, ports=ports, service=key)
            pods = [
                self._pair(to(source=source, interface=interface), cluster_ip, self._mark_pods)
                for source, interface in sources
            ]
            hosts = self._pair(to(local=True), cluster_ip, True) if host else ()
            return Entry(together(chain(*pods)), together(hosts), key)

        if claim.ports is None:
            return {destination(address, None): entry()}
        ports = frozenset(claim.ports)
        first = {protocol: entry(protocol, PORTS) for protocol in {p.protocol for p in ports}}
        others = {protocol: each._replace(continues=True) for protocol, each in first.items()}
        return {
            destination(address, port): (others if before in ports else first)[port.protocol]
            for port, before in ((p, p._replace(number=p.number - 1)) for p in claim.ports)
        }

    def _sources(self, claim: Claim) -> Sequence[tuple[str, str]]:
        """The pods that may use `claim`, as prefixes and interfaces; one of them may be empty."""
        if claim.clients is None:
            return self._all_sources
        if self._interfaces:
            ranges = map(show_network, collapse(claim.clients))
            return [(source, interface) for source in ranges for interface in self._interfaces]
        # Cut one by one, or adjacent pod CIDRs would be merged; once each, as they may overlap.
        parts = (part for cidr in self._cidrs for part in intersection([cidr], claim.clients))
        return [(show_network(part), "") for part in dict.fromkeys(parts)]

    def _host_may(self, claim: Claim) -> bool:
        if claim.clients is None or self._host is None:
            return claim.clients is None
        return any(contains(cidr, self._host) for cidr in claim.clients)

    def _pair(self, match: str, cluster_ip: str, marked: bool) -> Rules:
        to = ruletext.rule(match, "DNAT", cluster_ip)
        return (ruletext.rule(match, self._mark), to) if marked else (to,)
