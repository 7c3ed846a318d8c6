"""What `explain` says when one thing at a time is wrong on a healthy node.

The table of docs/explain.md is made of this one: `python3 -m tests.support.situations` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import DEFAULTS, Config
from ipvs_node_agent.explain.facts import DOWN, SILENT, Agent, Facts, NatTable
from ipvs_node_agent.explain.lines import Explanation
from ipvs_node_agent.explain.target import target
from ipvs_node_agent.explain.verdict import explain
from ipvs_node_agent.host.ipvs import RealServer, VirtualServer
from ipvs_node_agent.host.routes import Way
from ipvs_node_agent.iptables.conntrack import Flow
from ipvs_node_agent.iptables.proxymode import ProxyMode
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Address, Family, parse_address
from ipvs_node_agent.model.objects import (
    NO_NETWORK,
    Candidate,
    NodeNetwork,
    Problem,
    Service,
    Snapshot,
    UncoveredPod,
)
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.nat.trace import read
from ipvs_node_agent.nft.listing import BaseChain
from ipvs_node_agent.rules.coverage import Coverage, coverage, remedy
from ipvs_node_agent.rules.planner import plan
from ipvs_node_agent.rules.policy import lacking, unneeded_in
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.places import REPOSITORY

PAGE = REPOSITORY / "docs" / "explain.md"
BEGIN, END = "<!-- situations -->\n", "<!-- end -->\n"

WEB4, WEB6 = "10.19.20.201", "fd00:19::201"
CLUSTER4, CLUSTER6 = "10.231.42.164", "fd00:231::164"
ENDPOINT = {4: "10.240.5.7", 6: "fd00:10:240:5::7"}
WEB = service("web", [CLUSTER4, CLUSTER6], [WEB4, WEB6])
DNS_PORT = {"protocol": "UDP", "port": 53}
IGNORED = {"annotations": {"ipvs-node-agent/ignore": "true"}}
LABELLED = {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}

# The nat table of a node whose kube-proxy is in IPVS mode, with ours in place.
_TABLE = """*nat
:PREROUTING ACCEPT [9:540]
:INPUT ACCEPT [9:540]
:OUTPUT ACCEPT [9:540]
:POSTROUTING ACCEPT [9:540]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
{chains}{jumps}[8:480] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[8:480] -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[9:540] -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
[0:0] -A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
[3:180] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
[0:0] -A KUBE-POSTROUTING -m comment --comment "hairpin" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
[6:360] -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
[3:180] -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
[3:180] -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
[0:0] -A KUBE-SERVICES -m comment --comment "lb portal" -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
[0:0] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
[0:0] -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
[0:0] -A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT
{rules}COMMIT
"""  # noqa: E501


def table(ruleset: Ruleset) -> str:
    """What iptables-save would print."""
    chains = "".join(f":{name} - [0:0]\n" for name in sorted(ruleset.chains))
    jumps = "".join(f"[5:300] -A {at} -j {name}\n" for at, name in sorted(ruleset.jumps.items()))
    rules = "".join(
        f"[2:120] -A {name} {rule}\n"
        for name in sorted(ruleset.chains)
        for rule in ruleset.chains[name]
    )
    return _TABLE.format(chains=chains, jumps=jumps, rules=rules)


def virtual(address: Address, protocol: str, port: int, *weights: int) -> VirtualServer:
    """A virtual server with real servers of these weights."""
    to = parse_address(ENDPOINT[address.version])
    servers = tuple(RealServer(to + n, 8080, weight, 0, 0) for n, weight in enumerate(weights))
    return VirtualServer(protocol, address, port, "rr", servers)


def balanced(services: Sequence[Service], *weights: int) -> tuple[VirtualServer, ...]:
    """What kube-proxy makes of Services: virtual servers for ClusterIPs and external IPs."""
    return tuple(
        virtual(address, port.protocol, port.number, *weights)
        for each in services
        for address in (*each.cluster_ips, *each.load_balancer_ips)
        for port in each.ports
    )


@dataclass(frozen=True)
class Situation:
    """What is as it should not be, and what is to be said of it.

    `raw` are the Services, `edits` replaces text of the tables, `fields` are of the facts. Of
    `verdict` and `mend`, any part will do.
    """

    name: str
    works: bool | None
    verdict: str
    mend: str
    asked: str = WEB4
    raw: tuple[dict[str, Any], ...] = (WEB,)
    edits: tuple[tuple[str, str], ...] = ()
    config: Config = DEFAULTS
    fields: dict[str, Any] = field(default_factory=dict)
    weights: tuple[int, ...] = (1, 1)
    cidrs: tuple[str, ...] = POD_CIDRS
    network: NodeNetwork = NO_NETWORK
    # By which pods are matched.
    interfaces: tuple[str, ...] = ()
    # Rules that the tables have, as if these had been the Services.
    programmed: tuple[dict[str, Any], ...] | None = None

    @property
    def facts(self) -> Facts:
        """The node's."""
        services = [read_service(each) for each in self.raw]
        seen = Snapshot(
            {each.key: each for each in services},
            read_node(node(*self.cidrs)),
            self.network,
            self.interfaces,
        )
        before = services if self.programmed is None else [read_service(e) for e in self.programmed]
        wanted = replace(seen, services={each.key: each for each in before})
        known = coverage(self.config, seen.node, self.interfaces)
        at = parse_address("10.240.2.130"), parse_address("fd00:10:240:2::130")
        own = [parse_address(each) for each in (WEB4, WEB6, "10.19.20.202")]
        made = Facts(
            config=self.config,
            node="worker-1",
            seen=seen,
            lacks=lacking(self.config, seen.node, self.interfaces),
            tables=tuple(self._table(family, wanted) for family in FAMILIES),
            proxy=ProxyMode("ipvs"),
            ipvs=balanced(services, *self.weights),
            ways={each: Way(True, each, "lo") for each in own},
            flows=dict.fromkeys(own, ()),
            pods=tuple(Candidate("to-pod", each, each.max_prefixlen) for each in at),
            coverage=known,
        )
        made = replace(made, **self.fields)
        if unneeded_in(made.proxy.mode) or made.seen is None:
            return made
        return replace(made, remedy=remedy(made.uncovered, known))

    def _table(self, family: Family, wanted: Snapshot) -> NatTable:
        text = table(plan(self.config, wanted, family).ruleset)
        for old, new in self.edits:
            assert old in text or family is not IPV4, old
            text = text.replace(old, new)
        return NatTable(family, "nft", read(text))

    def explained(self) -> list[Explanation]:
        """What is said."""
        return explain(self.facts, target(self.asked))


def web(
    name: str = "web", ip: str = WEB4, cluster: str = CLUSTER4, **fields: Any
) -> dict[str, Any]:
    """A Service of one family; `fields` go into its spec, but for those of its own."""
    metadata, ingress = fields.pop("metadata", {}), fields.pop("ingress", [{"ip": ip}])
    made = service(name, [cluster], [], **fields)
    made["metadata"].update(metadata)
    made["status"] = {"loadBalancer": {"ingress": ingress}}
    return made


def options(**fields: Any) -> Config:
    """A configuration with these of `services`."""
    return replace(DEFAULTS, services=replace(DEFAULTS.services, **fields))


_OURS = "[5:300] -A {0} -j IPVS_{0}\n"
_PRE, _OUT = _OURS.format("PREROUTING"), _OURS.format("OUTPUT")
_PORTALS = '[8:480] -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
_TO = f"-j DNAT --to-destination {CLUSTER4}"
_MARK_HOST = (
    f'[2:120] -A IPVS_OUTPUT -d {WEB4}/32 -m comment --comment "default/web" -m addrtype'
    " --src-type LOCAL -j KUBE-MARK-MASQ\n"
)
_CALICO = ":KUBE-SERVICES - [0:0]\n:cali-OUTPUT - [0:0]\n[1:60] -A OUTPUT -j cali-OUTPUT\n"


def _in_front(rule: str) -> tuple[tuple[str, str], ...]:
    return ((":KUBE-SERVICES - [0:0]\n", f"{_CALICO}[1:60] -A cali-OUTPUT {rule}\n"),)


def _agent(state: str) -> dict[str, Any]:
    return {"agent": Agent(state, False, "")}


def _other_backend(to: str) -> tuple[NatTable, ...]:
    text = (
        f"*nat\n:OUTPUT ACCEPT [0:0]\n:IPVS_OUTPUT - [0:0]\n-A OUTPUT -j IPVS_OUTPUT\n{to}COMMIT\n"
    )
    return (*Situation("", None, "", "").facts.tables, NatTable(IPV4, "legacy", read(text)))


def _address(text: str) -> Address:
    return parse_address(text)


def _refusing(family: Family) -> Agent:
    text = f"its {family} rules are left out, trying again: xt_sctp"
    return Agent(refused=(Problem("default/web", "KernelRefused", text),))


# Of pods, only rules tell then.
_UNSEEN = {
    "seen": None,
    "unseen": "API server: https://10.0.0.1:6443 cannot be reached",
    "pods": (),
    "coverage": Coverage((), ()),
}
_TWO_PORTS = [{"name": "a", "port": 80}, {"name": "b", "port": 443}]
_FIRST = web("first", cluster="10.231.1.1", metadata={"creationTimestamp": "2025-01-05T08:00:00Z"})
_UDP = web(ports=[DNS_PORT])
_OLD_FLOW = Flow("udp", _address("10.240.2.130"), _address(WEB4), 53, _address(WEB4))

NOT_COUNTED = [
    Situation(
        "a Service that waits for its external IP",
        False,
        "Service default/web is pending: no load balancer controller has given it an external IP",
        "kubectl -n default describe service web",
        asked="default/web",
        raw=(web(ingress=[]),),
    ),
    Situation(
        "a load balancer that provides only a host name",
        False,
        "has a host name instead of an external IP",
        "a load balancer controller that provides addresses",
        asked="default/web",
        raw=(web(ingress=[{"hostname": "lb.example.com"}]),),
    ),
    Situation(
        "a Service with `ipMode: Proxy`",
        False,
        "Service default/web has ipMode: Proxy for this IP, so connections must",
        "look at the load balancer",
        raw=(web(ingress=[{"ip": WEB4, "ipMode": "Proxy"}]),),
    ),
    Situation(
        "the annotation `ipvs-node-agent/ignore`",
        False,
        "is left alone: it has the annotation ipvs-node-agent/ignore",
        "kubectl -n default annotate service web ipvs-node-agent/ignore-",
        raw=(web(metadata=IGNORED),),
    ),
    Situation(
        "a label that leaves the Service to another proxy",
        False,
        "it has the label service.kubernetes.io/service-proxy-name",
        "kubectl -n default label service web service.kubernetes.io/service-proxy-name-",
        raw=(web(metadata=LABELLED),),
    ),
    Situation(
        "a configuration that allows only `externalTrafficPolicy: Local`",
        False,
        "it does not have externalTrafficPolicy: Local, which the configuration requires",
        "services: {externalTrafficPolicy: Any}",
        raw=(web(externalTrafficPolicy="Cluster"),),
        config=options(external_traffic_policy="Local"),
    ),
    Situation(
        "an IP in `spec.externalIPs`, which the configuration does not enable",
        False,
        "names it in spec.externalIPs, which the configuration does not enable",
        "services: {externalIPs: true}",
        raw=(web(type="ClusterIP", externalIPs=[WEB4]),),
    ),
    Situation(
        "a Service of another type",
        False,
        "has no external IP: its type is NodePort, not LoadBalancer",
        "type: LoadBalancer, if it is to have one",
        asked="default/web",
        raw=(web(type="NodePort"),),
    ),
    Situation(
        "a headless Service",
        False,
        "has no ClusterIP for rules to lead to",
        "a new Service with a ClusterIP",
        raw=(web(cluster="None"),),
    ),
    Situation(
        "no ClusterIP of the address's family",
        False,
        "there is no ClusterIP of its family",
        "PreferDualStack",
        raw=(web(cluster=CLUSTER6),),
    ),
    *(
        Situation(
            f"an external IP that is {what}",
            False,
            f"it is {what}",
            "another address",
            ip,
            (web(ip=ip),),
        )
        for ip, what in (
            ("127.0.0.5", "a loopback address"),
            ("0.0.0.0", "an unspecified address"),
            ("169.254.169.254", "a link-local address"),
            ("224.0.0.9", "a multicast address"),
            ("255.255.255.255", "a broadcast address"),
            ("10.240.2.140", "inside the pod CIDR 10.240.2.128/25"),
        )
    ),
    Situation(
        "an external IP that is a ClusterIP",
        False,
        "it is the ClusterIP of default/other",
        "another address",
        raw=(web(), web("other", "10.19.20.202", WEB4)),
    ),
    Situation(
        "an IP outside `allowedExternalCIDRs`",
        False,
        "it is outside services.allowedExternalCIDRs",
        "allowedExternalCIDRs: [...]",
        config=options(
            allowed_external_cidrs=(
                next(iter(coverage(DEFAULTS, read_node(node("10.20.0.0/16")), ()).cidrs)),
            )
        ),
    ),
    Situation(
        "the API server's address and port",
        False,
        "10.19.20.201 tcp 80 is refused: this node reaches the API server there",
        "at this one the node would lose the API server",
        asked=f"{WEB4}:80",
        network=NodeNetwork(api_servers=frozenset({(_address(WEB4), 80)})),
    ),
    Situation(
        "two ports, one of which is the API server's",
        False,
        "10.19.20.201 tcp 80 is refused: this node reaches the API server there",
        "at this one the node would lose the API server",
        asked=f"{WEB4}:80",
        raw=(web(ports=[{"port": 80}, {"port": 443}]),),
        network=NodeNetwork(api_servers=frozenset({(_address(WEB4), 80)})),
    ),
    Situation(
        "a port that an older Service has",
        False,
        "10.19.20.201 tcp 80 belongs to default/first",
        "another port or address for one of the two",
        asked="default/web",
        raw=(_FIRST, web()),
    ),
    Situation(
        "two ports, one of which an older Service has",
        False,
        "10.19.20.201 tcp 80 belongs to default/first",
        "another port or address for one of the two",
        asked="default/web",
        raw=(_FIRST, web(ports=_TWO_PORTS)),
    ),
    Situation(
        "two ports, one of which is the API server's, and no port asked about",
        False,
        "10.19.20.201 tcp 80 is refused: this node reaches the API server there",
        "at this one the node would lose the API server",
        raw=(web(ports=_TWO_PORTS),),
        network=NodeNetwork(api_servers=frozenset({(_address(WEB4), 80)})),
    ),
    Situation(
        "an IPv6 address where the kernel has no IPv6",
        False,
        "Service default/web gets no rules: the kernel of this node has no IPv6",
        "an IPv4 address",
        asked=WEB6,
        raw=(web(ip=WEB6, cluster="fd00:231::164"),),
        network=NodeNetwork(absent=frozenset({6})),
    ),
    Situation(
        "a Service whose rules the kernel refuses",
        False,
        "Service default/web gets no rules: its IPv4 rules are left out, trying again: xt_sctp",
        "the reason says what the kernel lacks",
        fields={"agent": _refusing(IPV4)},
        programmed=(),
    ),
    Situation(
        "a Service whose rules the kernel refuses in the other family",
        True,
        "should work",
        "--connect",
        fields={"agent": _refusing(IPV6)},
    ),
    Situation(
        "a Service with too many rules",
        False,
        "its addresses, ports and source ranges make more than 65536 rules",
        "use fewer addresses, ports or source ranges",
        raw=(
            web(
                ports=[{"port": port} for port in range(1, 200)],
                loadBalancerSourceRanges=[f"10.240.2.{n}/32" for n in range(128, 256, 2)],
                externalIPs=[f"10.19.21.{n}" for n in range(1, 5)],
            ),
        ),
        config=options(external_ips=True, match_ports="Always"),
        programmed=(),
    ),
    Situation(
        "an IP that no Service names",
        False,
        "no Service names 10.19.20.202",
        "kubectl get services -A",
        asked="10.19.20.202",
    ),
    Situation(
        "a ClusterIP",
        False,
        "is the ClusterIP of Service default/web, and not an external IP",
        "kube-proxy handles ClusterIPs",
        asked=CLUSTER4,
    ),
    Situation(
        "an address of the node itself",
        False,
        "is an address of this node, and no Service names it",
        "whatever listens there answers",
        asked="192.168.7.11",
    ),
    Situation(
        "a Service that does not exist",
        False,
        "Service default/nobody: there is none",
        "kubectl -n default get services",
        asked="default/nobody",
    ),
    Situation(
        "a port that the Service does not have",
        False,
        "Service default/web has tcp 80, and not tcp 81",
        "use tcp 80",
        asked=f"{WEB4}:81",
    ),
    Situation(
        "a protocol that the Service does not have",
        False,
        "Service default/web has tcp 80, and not udp 80",
        "use tcp 80",
        asked=f"{WEB4}:80/udp",
    ),
    Situation(
        "source ranges that leave out the pods",
        False,
        "from a pod: loadBalancerSourceRanges of default/web leaves out this node's pods",
        "add their addresses to spec.loadBalancerSourceRanges",
        raw=(web(loadBalancerSourceRanges=["192.168.7.0/24"]),),
    ),
    Situation(
        "source ranges that leave out the pods, which are matched by interface",
        False,
        "from a pod: loadBalancerSourceRanges of default/web leaves out this node's pods",
        "add their addresses to spec.loadBalancerSourceRanges",
        raw=(web(loadBalancerSourceRanges=["203.0.113.0/24", "192.168.7.0/24"]),),
        interfaces=("to-pod",),
    ),
    Situation(
        "source ranges of one of two Services at an address",
        True,
        "should work",
        "--connect",
        asked=f"{WEB4}:80",
        raw=(
            web(loadBalancerSourceRanges=["10.240.2.144/28", "192.168.7.0/24"]),
            web("open", cluster="10.231.1.1", ports=[{"port": 443}]),
        ),
        fields={
            "pods": tuple(Candidate("to-pod", _address(f"10.240.2.{n}"), 32) for n in (130, 150))
        },
    ),
    Situation(
        "source ranges that leave out the node",
        False,
        "from the host: loadBalancerSourceRanges of default/web leaves out this node's InternalIP",
        "add its InternalIP to spec.loadBalancerSourceRanges",
        raw=(web(loadBalancerSourceRanges=["10.240.0.0/16"]),),
    ),
    Situation(
        "a Node without a pod CIDR",
        False,
        "Node worker-1 has no pod CIDR yet",
        "kubectl get node worker-1 -o yaml",
        cidrs=(),
        programmed=(),
    ),
]

_REPAIRS = "the agent to repair this, then run explain again; if nothing has changed, journalctl -u"
IN_THE_TABLES = [
    Situation(
        "a jump that is missing for the host",
        False,
        "from the host: OUTPUT does not jump to IPVS_OUTPUT",
        _REPAIRS,
        edits=((_OUT, ""),),
    ),
    Situation(
        "a jump that is missing for pods",
        False,
        "from a pod: PREROUTING does not jump to IPVS_PREROUTING",
        _REPAIRS,
        edits=((_PRE, ""),),
    ),
    Situation(
        "a missing jump, and the agent does not run",
        False,
        "from the host: OUTPUT does not jump to IPVS_OUTPUT",
        "systemctl start ipvs-node-agent",
        edits=((_OUT, ""),),
        fields=_agent(DOWN),
    ),
    Situation(
        "a missing jump, and the agent hangs",
        False,
        "from the host: OUTPUT does not jump to IPVS_OUTPUT",
        "systemctl restart ipvs-node-agent",
        edits=((_OUT, ""),),
        fields=_agent(SILENT),
    ),
    Situation(
        "a nat table that was flushed",
        False,
        "there is no chain IPVS_PREROUTING in iptables-nft",
        "systemctl start ipvs-node-agent",
        fields={
            **_agent(DOWN),
            "tables": (
                NatTable(
                    IPV4,
                    "nft",
                    read("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"),
                ),
            ),
        },
    ),
    Situation(
        "a nat table that does not exist",
        False,
        "from a pod: there is no chain IPVS_PREROUTING in iptables-nft",
        "systemctl start ipvs-node-agent",
        fields={**_agent(DOWN), "tables": ()},
    ),
    Situation(
        "a chain that is empty",
        False,
        "from the host: the chain IPVS_OUTPUT is empty",
        _REPAIRS,
        edits=((_MARK_HOST, ""), ("[2:120] -A IPVS_OUTPUT ", "[2:120] -A IPVS_PREROUTING ")),
    ),
    Situation(
        "a rule that is missing",
        False,
        "from the host: the chain IPVS_OUTPUT has no rule for the packet",
        _REPAIRS,
        edits=((f"--src-type LOCAL {_TO}", f"--src-type LOCAL -p udp {_TO}"),),
    ),
    Situation(
        "rules for an earlier ClusterIP of the Service",
        False,
        "is sent to 10.231.9.9, but the ClusterIP is 10.231.42.164: the rules are outdated",
        _REPAIRS,
        edits=((_TO, "-j DNAT --to-destination 10.231.9.9"),),
    ),
    Situation(
        "rules of a Service that the agent has to ignore",
        False,
        "is left alone",
        "annotate",
        raw=(web(metadata=IGNORED),),
        programmed=(web(),),
    ),
    Situation(
        "a packet of the host that is not marked",
        False,
        "from the host: is not marked, so its source stays 10.19.20.201 and no answer comes back",
        _REPAIRS,
        edits=((_MARK_HOST, ""),),
    ),
    Situation(
        "a mark that nothing masquerades",
        False,
        "from the host: is marked with 0x4000, which nothing masquerades",
        _REPAIRS,
        edits=((":KUBE-POSTROUTING - [0:0]\n", ""), ("-j KUBE-POSTROUTING\n", "-j LOG\n")),
    ),
    Situation(
        "kube-proxy's jump in front, with sets that `explain` cannot read",
        None,
        "rule 3 of KUBE-SERVICES in iptables-nft has the match set --match-set KUBE-CLUSTER-IP",
        _REPAIRS,
        edits=((_PORTALS, ""), (_OUT, _PORTALS + _OUT)),
    ),
    Situation(
        "Calico in front, without a rule for this IP",
        True,
        "should work",
        "",
        edits=_in_front("-d 10.19.99.1/32 -j DNAT --to-destination 10.240.9.9"),
    ),
    Situation(
        "Calico in front, with this IP as a floating IP",
        False,
        "from the host: rule 1 of cali-OUTPUT sends it to 10.240.9.9, before IPVS_OUTPUT does",
        _REPAIRS,
        edits=_in_front(f"-d {WEB4}/32 -j DNAT --to-destination 10.240.9.9"),
    ),
    Situation(
        "another program's rule in front that drops the packet",
        False,
        "rule 1 of cali-OUTPUT drops it, before IPVS_OUTPUT does",
        _REPAIRS,
        edits=_in_front("-p tcp -j DROP"),
    ),
    Situation(
        "another program's rule in front with an unknown match",
        None,
        "rule 1 of cali-OUTPUT in iptables-nft has the match owner --uid-owner 0",
        "",
        edits=_in_front("-m owner --uid-owner 0 -j ACCEPT"),
    ),
    Situation(
        "another program's rule in front with a set, which only marks",
        True,
        "should work",
        "",
        edits=_in_front("-m set --match-set seen dst -j MARK --set-xmark 0x1/0x1"),
    ),
    Situation(
        "a native nft chain in front",
        None,
        "nft chain inet firewall pre: may come before iptables' PREROUTING",
        "nft list chain inet firewall pre",
        fields={
            "base_chains": (BaseChain("inet", "firewall", "pre", "nat", "prerouting", -150, 1),)
        },
    ),
    Situation(
        "old rules in the other backend, for another ClusterIP",
        None,
        "iptables-legacy has rules for it as well, and sends it to 10.231.9.9",
        "systemctl restart ipvs-node-agent",
        fields={
            "tables": _other_backend(
                "-A IPVS_OUTPUT -d 10.19.20.201/32 -j DNAT --to-destination 10.231.9.9\n"
            )
        },
    ),
    Situation(
        "a rule in the other backend that drops the packet",
        False,
        "iptables-legacy drops it",
        "iptables-legacy -t nat",
        fields={"tables": _other_backend("-A OUTPUT -d 10.19.0.0/16 -j DROP\n")},
    ),
    Situation(
        "a table that cannot be read",
        None,
        "iptables-nft: cannot be read: has rules made with nft",
        "ipvs-node-agent check",
        fields={"tables": (NatTable(IPV4, "nft", error="has rules made with nft"),)},
    ),
]

AROUND = [
    Situation(
        "nothing is wrong",
        True,
        "should work as far as this node's tables and IPVS say",
        "--connect",
    ),
    Situation(
        "nothing is wrong, with IPv6", True, "should work", "--connect", asked=f"[{WEB6}]:80"
    ),
    Situation(
        "nothing is wrong, with the Service's name",
        True,
        "should work",
        "--connect",
        asked="default/web",
    ),
    Situation(
        "pods that keep their own address (`masquerade: HostOnly`)",
        True,
        "should work",
        "--connect",
        config=replace(DEFAULTS, masquerade="HostOnly"),
    ),
    Situation(
        "rules, but the agent does not run",
        True,
        "nothing keeps the rules up to date",
        "systemctl start ipvs-node-agent",
        fields=_agent(DOWN),
    ),
    Situation(
        "no endpoint that is ready",
        False,
        "IPVS: tcp 10.231.42.164:80 has no real server that takes connections",
        "kubectl -n default get endpointslices -l kubernetes.io/service-name=web",
        weights=(),
    ),
    Situation(
        "only endpoints that are terminating",
        False,
        "takes connections: 2 of 2 are terminating",
        "kubectl -n default get endpointslices",
        weights=(0, 0),
    ),
    Situation(
        "some endpoints that are terminating", True, "should work", "--connect", weights=(0, 1)
    ),
    Situation(
        "a virtual server that kube-proxy has not made",
        False,
        "IPVS: has no virtual server tcp 10.231.42.164:80",
        "k8s-app=kube-proxy",
        fields={"ipvs": ()},
    ),
    Situation(
        "a kernel without IPVS",
        False,
        "IPVS: is not in this kernel",
        "kube-proxy's mode",
        fields={"ipvs": None},
    ),
    Situation(
        "kube-proxy in nftables mode",
        None,
        "kube-proxy is in nftables mode, whose own rules lead to endpoints",
        "apt remove ipvs-node-agent",
        fields={"proxy": ProxyMode("nftables"), "ipvs": None},
        programmed=(),
    ),
    Situation(
        "kube-proxy in iptables mode, and old rules",
        False,
        "from a pod: is sent to 10.231.42.164 by a rule that should be gone",
        "",
        fields={"proxy": ProxyMode("iptables"), "ipvs": None},
    ),
    Situation(
        "kube-proxy's mode in doubt",
        True,
        "should work",
        "",
        fields={"proxy": ProxyMode("ipvs", "kube-proxy answers both ipvs and iptables")},
    ),
    Situation(
        "pods that no rule covers",
        False,
        "1 pod of this node has no rules: default/lost at 10.99.0.7 by veth7",
        "podInterfaces: [veth+]",
        fields={"uncovered": (UncoveredPod("default/lost", _address("10.99.0.7"), "veth7"),)},
    ),
    Situation(
        "a UDP flow that is older than the rules",
        False,
        "new connections work, but UDP flows that are older than the rules bypass them",
        "conntrack -D -p udp --orig-dst 10.19.20.201",
        raw=(_UDP,),
        fields={"flows": {_address(WEB4): (_OLD_FLOW,)}},
    ),
    Situation(
        "a UDP flow to an endpoint",
        True,
        "should work",
        "",
        raw=(_UDP,),
        fields={
            "flows": {_address(WEB4): (_OLD_FLOW._replace(answered_by=_address(ENDPOINT[4])),)}
        },
    ),
    Situation(
        "no route to the address",
        False,
        "from the host: this node has no route to 10.19.20.201",
        "ip route get 10.19.20.201",
        fields={"ways": {}},
    ),
    Situation("no answer from the API server, but rules", True, "should work", "", fields=_UNSEEN),
    Situation(
        "no answer from the API server, and a jump that is missing for pods",
        False,
        "from a pod: PREROUTING does not jump to IPVS_PREROUTING",
        "wait 30 s for the agent to repair this",
        edits=((_PRE, ""),),
        fields=_UNSEEN,
    ),
    Situation(
        "no answer from the API server, but rules for pods alone",
        True,
        "should work",
        "",
        raw=(web(loadBalancerSourceRanges=["10.240.2.128/25"]),),
        fields=_UNSEEN,
    ),
    Situation(
        "no answer from the API server, but rules for pods by interface",
        True,
        "should work",
        "",
        fields=_UNSEEN,
        interfaces=("cali+",),
    ),
    Situation(
        "no answer from the API server, and no rule",
        None,
        "cannot be reached, and no rule of this node names 10.19.20.201",
        "ipvs-node-agent check",
        fields=_UNSEEN,
        programmed=(),
    ),
    Situation(
        "no answer from the API server, and no endpoint",
        False,
        "has no real server",
        "endpointslices",
        fields=_UNSEEN,
        weights=(),
    ),
]

CHAPTERS = {
    "Who has the address": NOT_COUNTED,
    "What happens to a packet": IN_THE_TABLES,
    "Everything else": AROUND,
}
SITUATIONS = [each for some in CHAPTERS.values() for each in some]


def page() -> Iterator[str]:
    """The lines of the table in docs/explain.md."""
    words = {True: "0", False: "1", None: "3"}
    for chapter, some in CHAPTERS.items():
        yield f"\n### {chapter}\n\n| situation | exit | verdict | next step |\n"
        yield "|---|---|---|---|\n"
        for each in some:
            found = each.explained()
            _, sentence, mend = next(
                one.verdict for one in found if one.verdict.works is each.works
            )
            cells = (each.name, words[each.works], sentence, mend or "none")
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"
    yield "\n"


def written(path: Path = PAGE) -> str:
    """The page, with the table as it is now."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    return before + BEGIN + "".join(page()) + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(), "utf-8")
