"""What the steps of a history stand for: Services, Nodes, configurations, and others' doings."""

from __future__ import annotations

import functools
from dataclasses import replace

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Chains as ChainNames
from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.model.addresses import parse_network
from ipvs_node_agent.model.objects import Node, Service
from tests.simulation import history as story
from tests.simulation.table import KUBE_MARK
from tests.support.cluster import POD_CIDRS
from tests.support.cluster import node as raw_node
from tests.support.cluster import service as raw_service

KEY = "default/{}"
SHORT = ChainNames(services_per_chain=2)
CONFIGS = {
    "plain": Config(chains=SHORT),
    "HostOnly": Config(chains=SHORT, masquerade="HostOnly"),
    "by port": Config(chains=SHORT, services=ServiceOptions(match_ports="Always")),
    "external IPs": Config(chains=SHORT, services=ServiceOptions(external_ips=True)),
    "Local only": Config(chains=SHORT, services=ServiceOptions(external_traffic_policy="Local")),
    "CIDR by hand": Config(chains=SHORT, pod_cidrs=(parse_network("10.240.7.0/24"),)),
    "other names": Config(chains=replace(SHORT, prerouting="NEW_PREROUTING", output="NEW_OUTPUT")),
    "other mark": Config(chains=replace(SHORT, mark_masquerade="OTHER-MARK")),
    "short chains": Config(chains=replace(SHORT, services_per_chain=1)),
    "long chains": Config(),
    "allowed few": Config(
        chains=SHORT,
        services=ServiceOptions(allowed_external_cidrs=(parse_network("10.19.0.0/29"),)),
    ),
}


@functools.lru_cache(maxsize=20_000)
def service(put: story.Put) -> Service:
    """The Service that a step makes."""
    raw = raw_service(put.name, [put.cluster_ip, "fd00:231::" + put.cluster_ip[-1]], put.ips)
    raw["metadata"]["creationTimestamp"] = f"2026-01-0{put.created}T08:00:00Z"
    if put.ignored:
        raw["metadata"]["annotations"] = {"ipvs-node-agent/ignore": "true"}
    raw["spec"].update(
        externalIPs=list(put.external_ips),
        loadBalancerSourceRanges=list(put.ranges),
        externalTrafficPolicy="Local" if put.local else "Cluster",
        ports=[{"protocol": put.protocol, "port": port} for port in put.ports],
    )
    return read_service(raw)


@functools.lru_cache
def node(what: str) -> Node | None:
    """The Node that a step makes."""
    cidrs = {
        "other CIDR": ("10.240.9.0/24",),
        "one family": POD_CIDRS[:1],
        "IPv4 alone": POD_CIDRS[:1],
        "no CIDRs": (),
    }
    raw = raw_node(*cidrs.get(what, POD_CIDRS))
    if what in ("other address", "IPv4 alone"):
        raw["status"]["addresses"] = [{"type": "InternalIP", "address": "10.19.20.1"}]
    if what == "no addresses":
        raw["status"]["addresses"] = []
    return None if what == "gone" else read_node(raw)


# What others do to a table, as restore input.
MEDDLING = {
    "flush chain": "-F {chain}",
    "delete chain": "-F {chain}\n-D {built_in} -j {chain}\n-X {chain}",
    "delete jump": "-D {built_in} -j IPVS_{built_in}",
    "double jump": "-I {built_in} 1 -j IPVS_{built_in}",
    "push back": "-I {built_in} 1 -p tcp -j RETURN",
    "append rule": "-A {chain} -p udp -j RETURN",
    "stray chain": ":IPVS_OUTPUT-stray - [0:0]\n-A IPVS_OUTPUT-stray -j RETURN",
    "refer": "-A POSTROUTING -p tcp -j {chain}",
    "empty mark": f"-F {KUBE_MARK}",
    "fill mark": f":{KUBE_MARK} - [0:0]\n-A {KUBE_MARK} -j MARK --set-xmark 0x4000/0x4000",
    "remove mark": f"-F KUBE-POSTROUTING\n-F {KUBE_MARK}\n-X {KUBE_MARK}",
    "foreign chain": ":THEIRS - [0:0]\n-A THEIRS -p tcp -j RETURN\n-A POSTROUTING -j THEIRS",
}
