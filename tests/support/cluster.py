"""Services and Nodes as raw objects, and the rules that they must give, spelled out anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

POD_CIDRS = ("10.240.2.128/25", "fd00:10:240:2::/64")


def node(*cidrs: str, name: str = "worker-1") -> dict[str, Any]:
    """A Node with these pod CIDRs, and an address of each family."""
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    addresses = [
        {"type": "InternalIP", "address": "192.168.7.11"},
        {"type": "InternalIP", "address": "fd00:192:168:7::11"},
        {"type": "Hostname", "address": name},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": spec,
        "status": {"addresses": addresses},
    }


def pod(name: str, *ips: str, node: str = "worker-1", **spec: Any) -> dict[str, Any]:
    """A running Pod in `default` with these addresses; `spec` is in its spec as well."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, **spec},
        "status": {"phase": "Running", "podIPs": [{"ip": ip} for ip in ips]},
    }


def service(
    name: str, cluster_ips: Sequence[str], external_ips: Iterable[str], **fields: Any
) -> dict[str, Any]:
    """A LoadBalancer Service in `default`; `fields` go into its spec."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 31751}],
            **fields,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in external_ips]}},
    }


def expected_rules(
    entries: Iterable[tuple[str, str, str]],
    pod_cidrs: Sequence[str],
    prerouting: str = "IPVS_PREROUTING",
    output: str = "IPVS_OUTPUT",
    masquerade: str = "All",
) -> list[str]:
    """The lines of iptables-save that are the agent's, for `entries` in the order of addresses.

    An entry is (external IP, name of the Service in `default`, ClusterIP), all of one family.
    """
    pods, hosts = [], []
    for external, name, cluster in entries:
        bits = 128 if ":" in external else 32
        match = f'-d {external}/{bits} -m comment --comment "default/{name}"'
        for cidr in pod_cidrs:
            if masquerade == "All":
                pods.append(f"-A {prerouting} -s {cidr} {match} -j KUBE-MARK-MASQ")
            pods.append(f"-A {prerouting} -s {cidr} {match} -j DNAT --to-destination {cluster}")
        local = f"{match} -m addrtype --src-type LOCAL"
        hosts.append(f"-A {output} {local} -j KUBE-MARK-MASQ")
        hosts.append(f"-A {output} {local} -j DNAT --to-destination {cluster}")
    chains = [f":{output} -", f":{prerouting} -"]
    jumps = [f"-A OUTPUT -j {output}", f"-A PREROUTING -j {prerouting}"]
    return by_chain(chains + jumps + hosts + pods)


def by_chain(lines: Iterable[str]) -> list[str]:
    """`lines` of iptables-save sorted by chain; within a chain the order stays."""
    return sorted(lines, key=lambda line: line.split(" ")[:2])
