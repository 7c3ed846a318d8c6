"""What the steps of a history stand for: Services, Nodes, configurations, and others' doings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Chains as ChainNames
from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.model.addresses import Address, parse_address, parse_network
from ipvs_node_agent.model.objects import Node, PodNetwork, Service
from tests.simulation.table import KUBE_MARK
from tests.support.cluster import POD_CIDRS
from tests.support.cluster import node as raw_node
from tests.support.cluster import service as raw_service

KEY = "default/{}"


def _config(chains: ChainNames | None = None, **services: Any) -> Config:
    chains = chains or ChainNames(services_per_chain=2)
    return Config(chains=chains, services=replace(ServiceOptions(), **services))


PLAIN = _config()
CONFIGS = {
    "plain": PLAIN,
    "drop invalid": replace(PLAIN, drop_invalid_input=True),
    "HostOnly": replace(PLAIN, masquerade="HostOnly"),
    "by port": _config(match_ports="Always"),
    "external IPs": _config(external_ips=True),
    "Local only": _config(external_traffic_policy="Local"),
    "CIDR by hand": replace(PLAIN, pod_cidrs=(parse_network("10.240.7.0/24"),)),
    "other names": _config(
        replace(PLAIN.chains, prerouting="NEW_PREROUTING", output="NEW_OUTPUT"),
    ),
    "other mark": _config(replace(PLAIN.chains, mark_masquerade="OTHER-MARK")),
    "short chains": _config(ChainNames(services_per_chain=1)),
    "long chains": Config(),
    "allowed few": _config(allowed_external_cidrs=(parse_network("10.19.0.0/29"),)),
}


class Put(NamedTuple):
    """A Service as somebody puts it."""

    name: str
    ips: tuple[str, ...]
    cluster_ip: str
    ports: tuple[int, ...]
    protocol: str
    external_ips: tuple[str, ...]
    ranges: tuple[str, ...]
    ignored: bool
    local: bool
    created: int


@functools.lru_cache(maxsize=20_000)
def service(put: Put) -> Service:
    raw = raw_service(
        put.name,
        [put.cluster_ip, "fd00:231::" + put.cluster_ip[-1]],
        put.ips,
        externalIPs=list(put.external_ips),
        loadBalancerSourceRanges=list(put.ranges),
        externalTrafficPolicy="Local" if put.local else "Cluster",
        ports=[{"protocol": put.protocol, "port": port} for port in put.ports],
    )
    raw["metadata"]["creationTimestamp"] = f"2026-01-0{put.created}T08:00:00Z"
    if put.ignored:
        raw["metadata"]["annotations"] = {"ipvs-node-agent/ignore": "true"}
    return read_service(raw)


def _node(
    cidrs: Sequence[str] = POD_CIDRS, addresses: Sequence[str] | None = None, name: str = "worker-1"
) -> Node:
    raw = raw_node(*cidrs, name=name)
    if addresses is not None:
        raw["status"]["addresses"] = [{"type": "InternalIP", "address": ip} for ip in addresses]
    return read_node(raw)


NODES = {
    "plain": _node(),
    "other CIDR": _node(["10.240.9.0/24"]),
    "one family": _node(POD_CIDRS[:1]),
    "other address": _node(addresses=["10.19.20.1"]),
    "IPv4 alone": _node(POD_CIDRS[:1], ["10.19.20.1"]),
    "no CIDRs": _node([]),
    "no addresses": _node(addresses=[]),
    # As after a reload with another nodeName.
    "another": _node([], name="worker-2"),
    "gone": None,
}
# What network plugins tell of, and the pods that are routed to.
PODS: dict[str, tuple[frozenset[PodNetwork], frozenset[tuple[str, Address]]]] = {
    "none": (frozenset(), frozenset()),
    "Calico": (frozenset({PodNetwork("cali+")}), frozenset()),
    "Calico with pods": (
        frozenset({PodNetwork("cali+")}),
        frozenset({("cali1", parse_address("10.233.0.5")), ("cali2", parse_address("10.19.0.2"))}),
    ),
    "bridge inside": (
        frozenset({PodNetwork("cni0", (parse_network("10.240.2.128/25"),))}),
        frozenset({("eth0", parse_address("10.19.0.3"))}),
    ),
    "bridge": (frozenset({PodNetwork("br1", (parse_network("10.88.0.0/16"),))}), frozenset()),
}
# What others do to a table, as restore input; what no such input can do is up to the world.
MEDDLING = {
    "flush table": "",
    "flush chain": "-F {chain}",
    "insert rule": "-I {chain} 1 -d 192.0.2.9/32 -j RETURN",
    "delete rule": "-D {chain} 1",
    "delete chain": "-F {chain}\n-D {built_in} -j {chain}\n-X {chain}",
    "delete jump": "-D {built_in} -j IPVS_{built_in}",
    "move jump": "-D {built_in} -j IPVS_{built_in}\n-A {built_in} -j IPVS_{built_in}",
    "double jump": "-I {built_in} 1 -j IPVS_{built_in}",
    "push back": "-I {built_in} 1 -p tcp -j RETURN",
    "append rule": "-A {chain} -p udp -j RETURN",
    "stray chain": ":IPVS_OUTPUT-stray - [0:0]\n-A IPVS_OUTPUT-stray -j RETURN",
    "refer": "-A POSTROUTING -p tcp -j {chain}",
    "empty mark": f"-F {KUBE_MARK}",
    "fill mark": f":{KUBE_MARK} - [0:0]\n-A {KUBE_MARK} -j MARK --set-xmark 0x4000/0x4000",
    "remove mark": f"-F KUBE-POSTROUTING\n-F {KUBE_MARK}\n-X {KUBE_MARK}",
    "rename": "",
    "native on": "",
    "native off": "",
    "insist": ":cali-{built_in} - [0:0]\n-I {built_in} 1 -j cali-{built_in}",
    "insist on": "-D {built_in} -j cali-{built_in}\n-I {built_in} 1 -j cali-{built_in}",
    "take": "-A cali-{built_in} -d 10.19.0.1/32 -j DNAT --to-destination 10.231.0.99",
    "take back": "-F cali-{built_in}",
    "foreign chain": ":THEIRS - [0:0]\n-A THEIRS -p tcp -j RETURN\n-A POSTROUTING -j THEIRS",
}
