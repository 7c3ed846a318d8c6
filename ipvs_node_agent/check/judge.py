"""All checks, in the groups in which their facts become known, and in the order to be shown in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable

from ipvs_node_agent.check import judge_cluster, judge_host, judge_tables
from ipvs_node_agent.check.facts import Facts
from ipvs_node_agent.check.finding import Finding

Checks = Sequence[Callable[[Facts], Iterator[Finding]]]

OF_CONFIGURATION: Checks = (judge_cluster.configuration,)
# These take what is known of the cluster without its Services, of which there may be many.
OF_ACCESS: Checks = (judge_cluster.credentials, judge_cluster.api_server)
OF_HOST: Checks = (
    judge_host.privileges,
    judge_tables.kube_proxy,
    judge_tables.backend,
    judge_tables.nat_tables,
    judge_tables.before_iptables,
    judge_host.agent,
    judge_host.predecessors,
    judge_host.metrics_port,
    judge_host.flushers,
    judge_host.surroundings,
    judge_host.invalid_input,
)
OF_CLUSTER: Checks = (judge_cluster.permission, judge_cluster.node)
# These take what is wanted, which is planned last.
OF_RULES: Checks = (judge_cluster.external_ips, judge_cluster.in_sync)


def judged(checks: Checks, facts: Facts) -> Iterator[Finding]:
    """What `checks` find, one after the other."""
    for check in checks:
        yield from check(facts)


def judge(facts: Facts) -> list[Finding]:
    """All findings, where all facts are known."""
    groups = (OF_CONFIGURATION, OF_ACCESS, OF_HOST, OF_CLUSTER, OF_RULES)
    return [finding for checks in groups for finding in judged(checks, facts)]
