"""Facts about a node as `check` gathers them, and what it says about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.check.facts import (
    ClusterFacts,
    ConfigFacts,
    Facts,
    HostFacts,
    KubeProxy,
    TableFacts,
    Unit,
    Validity,
)
from ipvs_node_agent.check.finding import OK, Finding
from ipvs_node_agent.check.judge import judge
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.host.procfs import Process
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6
from ipvs_node_agent.model.objects import Problem, Snapshot
from ipvs_node_agent.nat.ruleset import Found
from ipvs_node_agent.rules.planner import plan
from tests.support.cluster import POD_CIDRS, node, service

NOW = 1_767_600_000.0
DAY = 86_400.0
AGENT = 4711
SERVER = "https://10.0.0.1:6443"
PROXYS_CHAINS = frozenset({"KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"})
OURS = {"IPVS_PREROUTING": (), "IPVS_OUTPUT": ()}
JUMPS = {"PREROUTING": ((1, "IPVS_PREROUTING"),), "OUTPUT": ((1, "IPVS_OUTPUT"),)}
WEB = service("web", ["10.231.0.1", "fd00:231::1"], ["10.19.0.1", "fd00:19::1"])
UNIT = "ipvs-node-agent.service"
RUNNING = Unit("loaded", "active", "enabled", AGENT, "In sync")
ACTIVE = Unit("loaded", "active", "enabled")


def nat(family: Any = IPV4, backend: str = "nft", **fields: Any) -> TableFacts:
    found = fields.pop("found", Found(OURS, JUMPS, PROXYS_CHAINS))
    found = replace(found, filled=found.foreign - fields.pop("empty", frozenset()))
    return TableFacts(
        family, backend, found, masquerading=fields.pop("masquerading", True), **fields
    )


def table(**fields: Any) -> dict[str, Any]:
    """The IPv4 table is like this, and the IPv6 one is healthy."""
    return {"tables": (nat(**fields), nat(IPV6))}


def holding(*chains: str, jumps: Any = JUMPS) -> dict[str, Any]:
    """The IPv4 table has our chains, kube-proxy's and these."""
    return table(found=Found(OURS, jumps, PROXYS_CHAINS | set(chains)))


def healthy_host() -> HostFacts:
    return HostFacts(
        may_program=True,
        kubelet_backend="nft",
        backend="nft",
        tables=tuple(nat(family) for family in FAMILIES),
        proxy=KubeProxy("ipvs", device=True, process=99),
        holder=AGENT,
        agents=(Process(AGENT, "ipvs-node-agent"),),
        units={UNIT: RUNNING, "nftables.service": Unit("loaded", "inactive", "disabled")},
        settings=dict.fromkeys(
            ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/vs/conntrack"), "1"
        ),
    )


def cluster(**fields: Any) -> ClusterFacts:
    web = read_service(WEB)
    healthy = ClusterFacts(
        server=SERVER,
        user="system:node:worker-1",
        certified_name="worker-1",
        validity=Validity(NOW - 30 * DAY, NOW + 300 * DAY),
        node_name="worker-1",
        node=read_node(node(*POD_CIDRS)),
        services={web.key: web},
    )
    return replace(healthy, **fields)


def facts(**fields: Any) -> Facts:
    """A healthy node's, but for `fields`; those of its host by their own names."""
    config = ConfigFacts("/etc/x.yaml", fields.pop("config", Config()))
    configuration = fields.pop("configuration", config)
    seen, changes = fields.pop("cluster", cluster()), fields.pop("changes", ())
    missed, whole = fields.pop("uncovered", ()), fields.pop("seen", None)
    host = replace(healthy_host(), **fields)
    return Facts(
        configuration,
        NOW,
        seen,
        host,
        changes,
        whole,
        uncovered=missed,
        problems=tuple(_problems(configuration.config, seen)),
    )


def _problems(config: Config, seen: ClusterFacts) -> Iterator[Problem]:
    if seen.node is not None and seen.services is not None:
        for each in seen.services.values():
            yield from each.problems
        for family in FAMILIES:
            yield from plan(config, Snapshot(seen.services, seen.node), family).problems


def bad(found: Facts) -> list[Finding]:
    return [finding for finding in judge(found) if finding.level != OK]


def says(found: Facts, line: str) -> None:
    """Exactly one finding is not ok, and this is it: LEVEL ID: TEXT => REMEDY.

    Of the text and of the remedy any part will do; without an arrow there is no remedy.
    """
    (only,) = bad(found)
    start, _, remedy = line.partition(" => ")
    level, _, rest = start.partition(" ")
    id_, _, text = rest.partition(": ")
    assert (only.level, only.id) == (level, id_)
    assert text in only.text
    assert remedy in only.remedy
    assert bool(only.remedy) == bool(remedy)
