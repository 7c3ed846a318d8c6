"""Who takes a connection at the ClusterIP in the kernel's IPVS; and flows that go another way.

A real server whose weight is 0 is terminating: it keeps its connections and gets no new one.
The external IP has a virtual server of its own, bound to kube-ipvs0. Pods would use it without the
agent, with the endpoints of this node alone where externalTrafficPolicy is Local; the host could
not, as its answers would go astray.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipvs_node_agent.explain.facts import Facts
from ipvs_node_agent.explain.lines import NEUTRAL, OK, WARN, Told
from ipvs_node_agent.explain.services import Naming
from ipvs_node_agent.host.ipvs import VirtualServer
from ipvs_node_agent.model.addresses import Address, show_address
from ipvs_node_agent.model.objects import Port

_KUBE_PROXY = (
    "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide, and the log of this node's"
)
_SHOWN = 4


def tell(
    facts: Facts, address: Address, named: Naming | None, cluster_ip: Address, ports: Sequence[Port]
) -> Told:
    """What IPVS has for `ports` of `cluster_ip`, which is that of `named` where it is known."""
    told = Told()
    if facts.ipvs is None:
        text = f"is not in this kernel, so nothing takes connections to {show_address(cluster_ip)}"
        if facts.proxy.mode == "ipvs":
            told.fails("IPVS", text, f"kube-proxy's mode: {_KUBE_PROXY}")
        else:
            text += ", unless kube-proxy is in another mode, which it does not tell"
            told.doubts("IPVS", text, f"kube-proxy's mode: {_KUBE_PROXY}")
        return told
    there = {(each.protocol, each.address, each.port): each for each in facts.ipvs}
    for port in ports:
        own = there.get((port.protocol, cluster_ip, port.number))
        at = f"{port.protocol} {_at(cluster_ip, port.number)}"
        if own is None:
            told.fails("IPVS", f"has no virtual server {at}", _KUBE_PROXY)
        elif not _open(own):
            _no_servers(told, at, own, named)
        else:
            shown = f"{_open(own)} of {len(own.servers)}"
            told.say(OK, "IPVS", f"{at}: {shown} real servers take connections ({own.scheduler})")
        other = there.get((port.protocol, address, port.number))
        if other is not None:
            shown = f"{_open(other)} of {len(other.servers)}"
            text = f"{port.protocol} {_at(address, port.number)}, the external IP's own: {shown}"
            told.say(
                NEUTRAL, "IPVS", f"{text} real servers, which pods would use without the agent"
            )
    return told


def _no_servers(told: Told, at: str, server: VirtualServer, named: Naming | None) -> None:
    count = len(server.servers)
    terminating = f": {count} of {count} are terminating" if count else ""
    look = "kubectl get endpointslices -A"
    if named is not None:
        namespace, _, name = named.service.key.partition("/")
        label = f"kubernetes.io/service-name={name}"
        look = f"kubectl -n {namespace} get endpointslices -l {label}; its pods have to be ready"
    told.fails("IPVS", f"{at} has no real server that takes connections{terminating}", look)


def _open(server: VirtualServer) -> int:
    """How many of its real servers take new connections."""
    return sum(each.weight > 0 for each in server.servers)


def _at(address: Address, port: int) -> str:
    shown = show_address(address)
    return f"[{shown}]:{port}" if address.version == 6 else f"{shown}:{port}"


def tell_flows(facts: Facts, address: Address, cluster_ip: Address, ports: Sequence[Port]) -> Told:
    """Flows to `ports` of `address` that connection tracking leads past the rules."""
    told = Told()
    flows = facts.flows.get(address)
    shown = show_address(address)
    if flows is None:
        told.say(WARN, "conntrack", f"cannot tell which flows to {shown} there are")
        return told
    servers = {
        each.address
        for server in facts.ipvs or ()
        if server.address == cluster_ip
        for each in server.servers
    }
    right = servers | {cluster_ip}
    asked = {(port.protocol, port.number) for port in ports}
    old = [
        flow
        for flow in flows
        if (flow.protocol, flow.port) in asked and flow.answered_by not in right
    ]
    udp = [flow for flow in old if flow.protocol == "udp"]
    said = [
        f"{flow.protocol} from {show_address(flow.source)} to port {flow.port},"
        f" answered by {show_address(flow.answered_by)}"
        for flow in (udp or old)[:_SHOWN]
    ]
    if any(flow.answered_by == address for flow in udp):
        # A client that goes on sending from one port keeps such a flow for ever.
        told.fails(
            "conntrack",
            f"{len(udp)} UDP flows are older than the rules and bypass them: {'; '.join(said)}",
            f"conntrack -D -p udp --orig-dst {shown}",
            "new connections work, but UDP flows that are older than the rules bypass them",
        )
    elif old:
        # Or their endpoint is gone meanwhile.
        text = f"{len(old)} flows may be older than the rules: {'; '.join(said)}"
        told.say(NEUTRAL, "conntrack", text)
    else:
        told.say(OK, "conntrack", f"no flow to {shown} bypasses the rules")
    return told
