"""A report of an agent with a bit of everything."""

from __future__ import annotations

from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Problem, UncoveredPod
from ipvs_node_agent.observe import status
from ipvs_node_agent.observe.counters import Count
from ipvs_node_agent.observe.status import FamilyReport, Happened, Report, ServiceReport
from tests.support.agentnode import CLUSTER_4, CLUSTER_6, EXTERNAL_4, EXTERNAL_6

NOON = 1_764_072_000.0  # 2025-11-25 12:00:00 UTC
WHOLE = Report(
    state=status.IN_SYNC,
    sentence="In sync; Services with rules: 2 in IPv4, 1 in IPv6",
    since=NOON,
    version="0.1.0",
    node="worker-1",
    backend="nft",
    last_error=Happened(NOON - 7200, "IPv4: iptables-nft-restore: busy"),
    last_repair=Happened(NOON - 3600, "IPv4: a jump was gone, by x (7)"),
    contact=NOON + 1,
    families=(
        FamilyReport("IPv4", 2, 8, 2, (("PREROUTING", "THEIRS"),)),
        FamilyReport("IPv6", 1, 4, 2),
    ),
    services=(
        ServiceReport(
            "default", "other", ("10.19.22.57",), ("10.231.2.62",), Count(0, 0), Count(0, 0)
        ),
        ServiceReport(
            "default",
            "web",
            (EXTERNAL_4, EXTERNAL_6),
            (CLUSTER_4, CLUSTER_6),
            Count(3, 180),
            Count(12345, 740700),
        ),
    ),
    refused=(Problem("default/bad", "Loopback", "127.0.0.1 is refused: it is a loopback address"),),
    pods="pod CIDR: 10.240.2.128/25",
    uncovered=(UncoveredPod("default/a", parse_address("10.9.0.5"), "veth1"),),
    remedy="podInterfaces: [veth+]",
    lingering=frozenset({parse_address("10.19.0.9")}),
)
