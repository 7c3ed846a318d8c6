"""The rules that a claim to an external IP gets, as text; the packet's walk through them.

For a connection to an external IP of a Service:

1. From a pod with a network namespace of its own it enters the node by nat PREROUTING; from the
   host, or a pod on the host's network, it starts in nat OUTPUT. Our jump is the first rule there,
   since kube-proxy's KUBE-SERVICES behind it accepts the packet and ends the walk.
2. Our chain, or the one of its tree that the destination leads to (`dispatch`), finds the external
   IP (and the pod CIDR as the source, or a local source address), has KUBE-MARK-MASQ mark the
   packet, and changes its destination to the Service's ClusterIP.
3. IPVS hooks in after both (LOCAL_IN after PREROUTING, LOCAL_OUT after OUTPUT) and knows the
   ClusterIP with all of its endpoints, whatever externalTrafficPolicy says.
4. In nat POSTROUTING, KUBE-POSTROUTING gives a marked packet the node's address as its source. The
   host's packets need that: the external IP is bound to kube-ipvs0, so the kernel chose it as the
   source as well, and the answer would never come back.

Only text is made here; `ruleset` compares it, `iptables` applies it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import (
    Address,
    Family,
    Network,
    contains,
    intersection,
    of_family,
    show_address,
    show_network,
)
from ipvs_node_agent.model.objects import Node, Port
from ipvs_node_agent.rules.claims import Claim
from ipvs_node_agent.rules.dispatch import Entries, Entry, destination

# What one Service may have in one family. A few would otherwise be enough to fill the memory.
MOST_RULES = 1 << 16


def pod_cidrs(config: Config, node: Node) -> tuple[Network, ...] | None:
    """The node's pod CIDRs of both families; None while nobody has said which they are."""
    if config.pod_cidrs is not None:
        return config.pod_cidrs
    return node.pod_cidrs or None


def lacking(config: Config, node: Node) -> str:
    """What the Node lacks before its rules can be known, as a sentence; empty where nothing.

    Without its addresses nobody could tell a Service that takes one of them.
    """
    if pod_cidrs(config, node) is None:
        return (
            f"Node {node.name} has no pod CIDR yet (if it never gets one, since the network"
            " plugin keeps its own, set podCIDRs)"
        )
    if not node.addresses:
        return f"Node {node.name} has no address yet (its kubelet or the cloud provider sets them)"
    return ""


class Writer:
    """Writes the rules of claims, for one node and one family; `mark` is the chain that marks.

    `speaks` says whether the node has anything to do with the family at all.
    """

    def __init__(self, config: Config, node: Node, family: Family, mark: str) -> None:
        self._family, self._mark = family, mark
        self._external_ips = config.services.external_ips
        self._mark_pods = config.masquerade == "All"
        self._cidrs = sorted(set(of_family(pod_cidrs(config, node) or (), family)))
        self._hosts = [a for a in node.addresses if a.version == family.version]
        self.speaks = bool(self._cidrs or self._hosts)

    def burden(self, claim: Claim) -> int:
        """How many rules the Service may have, if each address of its has as many as `claim`.

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
        sources = [f"-s {show_network(source)} " for source in self._sources(claim)]
        locals_ = [" -m addrtype --src-type LOCAL"] if self._host_may(claim) else []
        if not (sources or locals_):
            return {}
        found: Entries = {}
        ports: Iterable[Port | None] = (None,) if claim.ports is None else claim.ports
        for port in ports:
            match = self._match(address, port, claim)
            pods = (
                rule
                for source in sources
                for rule in self._pair(source + match, claim, self._mark_pods)
            )
            hosts = (rule for local in locals_ for rule in self._pair(match + local, claim, True))
            key = destination(address, port)
            found[key] = Entry(tuple(pods), tuple(hosts), claim.service.key)
        return found

    def _sources(self, claim: Claim) -> Sequence[Network]:
        """The pods that may use `claim`, as prefixes."""
        if claim.clients is None:
            return self._cidrs
        clients = of_family(claim.clients, self._family)
        # Cut one by one, or adjacent pod CIDRs would be merged; once each, as they may overlap.
        return list(
            dict.fromkeys(part for cidr in self._cidrs for part in intersection([cidr], clients))
        )

    def _host_may(self, claim: Claim) -> bool:
        return claim.clients is None or any(
            contains(cidr, host) for cidr in claim.clients for host in self._hosts
        )

    def _match(self, address: Address, port: Port | None, claim: Claim) -> str:
        ports = f"-p {port.protocol} -m {port.protocol} --dport {port.number} " if port else ""
        # The key is checked to be two DNS labels, so nothing in it can end the quotes.
        comment = f'-m comment --comment "{claim.service.key}"'
        return f"-d {show_address(address)}/{self._family.bits} {ports}{comment}"

    def _pair(self, match: str, claim: Claim, marked: bool) -> Iterator[str]:
        if marked:
            yield f"{match} -j {self._mark}"
        yield f"{match} -j DNAT --to-destination {show_address(claim.cluster_ip)}"
