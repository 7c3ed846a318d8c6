"""Judges the facts about a node as an experienced operator would; nothing outside is touched.

Each check is a generator of findings over the same `Facts`. A check whose ground is missing says
nothing: whatever is missing has a finding of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Callable

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.check.facts import ClusterFacts, Facts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, failed
from ipvs_node_agent.check.judge_host import HOST_CHECKS
from ipvs_node_agent.kubeconfig.reader import MissingError
from ipvs_node_agent.model.addresses import (
    FAMILIES,
    Address,
    Network,
    show_network,
)
from ipvs_node_agent.model.objects import Problem, Snapshot
from ipvs_node_agent.rules import policy
from ipvs_node_agent.rules.coverage import coverage, described, remedy
from ipvs_node_agent.rules.planner import plan

# The kubelet renews its certificate at 70 to 90 % of its lifetime.
_RENEWED_BY = 0.92


def judge(facts: Facts) -> list[Finding]:
    """All findings, in the order in which a connection is set up."""
    return [finding for check in CHECKS for finding in check(facts)]


def configuration(facts: Facts) -> Iterator[Finding]:
    """The file; with a bad one the rest is judged by the defaults."""
    found = facts.configuration
    if found.error is not None:
        mend = f"edit {found.path}, then systemctl reload ipvs-node-agent"
        finding = failed("configuration", found.error, mend)
        text = f"{finding.text}; the rest is looked at with the defaults"
        yield finding._replace(text=text)
    else:
        text = found.path if found.there else f"the defaults, as there is no {found.path}"
        yield Finding(OK, "configuration", text)


def credentials(facts: Facts) -> Iterator[Finding]:
    """The kubeconfig, and when its certificate is valid."""
    cluster, path = facts.cluster, facts.configuration.config.kubeconfig
    if cluster.error is not None:
        if isinstance(cluster.error, MissingError):
            # The error's own hint is a question, for a node that has not joined yet.
            text = f"{cluster.error.what}: {cluster.error.why}"
            other = cluster.other_kubeconfig
            mend = f"kubeadm join, or kubeconfig: FILE in {facts.configuration.path}"
            mend = f"kubeconfig: {other} in {facts.configuration.path}" if other else mend
            yield Finding(FAIL, "credentials", text, mend)
        else:
            yield failed("credentials", cluster.error, _new_credentials(facts))
        return
    who = cluster.user or "a token's user"
    if cluster.validity is None:
        yield from _unlimited(cluster, path, who)
        return
    begin, end = cluster.validity
    if facts.now >= end:
        text = f"the certificate of {who} expired on {_date(end)}"
        yield Finding(FAIL, "credentials", text, _new_credentials(facts))
    elif facts.now < begin:
        text = f"the certificate of {who} is not valid before {_date(begin)}: is the clock right?"
        yield Finding(FAIL, "credentials", text, "timedatectl set-ntp true")
    elif facts.now > begin + (end - begin) * _RENEWED_BY:
        text = f"the certificate of {who} expires on {_date(end)} and should have been renewed"
        yield Finding(WARN, "credentials", text, "systemctl restart kubelet")
    else:
        yield from _unlimited(cluster, path, f"{who}, valid until {_date(end)}")


def _unlimited(cluster: ClusterFacts, path: str, who: str) -> Iterator[Finding]:
    if cluster.warning:
        mend = f"in {path}, certificate-authority in place of insecure-skip-tls-verify"
        yield Finding(WARN, "credentials", cluster.warning, mend)
    else:
        yield Finding(OK, "credentials", f"{path}: {who}")


def _new_credentials(facts: Facts) -> str:
    name = facts.cluster.node_name or "NAME"
    return (
        "on a control-plane node: kubeadm kubeconfig user --org system:nodes --client-name"
        f" system:node:{name} >kubelet.conf, to be put here as"
        f" {facts.configuration.config.kubeconfig}"
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def api_server(facts: Facts) -> Iterator[Finding]:
    """Whether it answers, and whether it lets the agent list and watch."""
    cluster = facts.cluster
    if cluster.error is not None:
        return
    if cluster.unreachable is not None:
        mend = f"curl -k {cluster.server}/livez must say ok on this node: open the way there"
        yield failed("API server", cluster.unreachable, mend)
        return
    yield Finding(OK, "API server", f"{cluster.server} answers")
    for error in cluster.refused:
        mend = f"see the log of {cluster.server}"
        if isinstance(error, ApiError) and error.status in (401, 403):
            own = "/etc/kubernetes/kubelet.conf"
            mend = f"kubeconfig: {own} in {facts.configuration.path}, or a ClusterRole for the user"
            if facts.configuration.config.kubeconfig == own:
                mend = _new_credentials(facts)
            if cluster.certified_name not in (None, cluster.node_name):
                mend = f"no nodeName in {facts.configuration.path}, as it is not the credentials'"
        yield Finding(FAIL, "permission", error.why, mend)
    if not cluster.refused:
        yield Finding(OK, "permission", "to list and watch Services and the Node")


def node(facts: Facts) -> Iterator[Finding]:
    """The Node, and how packets of its pods are known."""
    cluster, path = facts.cluster, facts.configuration.path
    if cluster.services is None:
        return
    if cluster.node is None:
        text = f"the API server knows no Node {cluster.node_name}"
        yield Finding(FAIL, "Node", text, f"nodeName: one that kubectl get nodes shows, in {path}")
        return
    yield Finding(OK, "Node", cluster.node_name)
    interfaces = facts.seen.pod_interfaces if facts.seen is not None else ()
    known = coverage(facts.configuration.config, cluster.node, interfaces)
    what, shown = "pods", f"by interface: {_list(interfaces)}"
    if not interfaces:
        what, shown = "pod CIDRs", _list([*map(show_network, known.cidrs)])
    if not (interfaces or known.cidrs):
        text = f"Node {cluster.node_name} has none yet, and nothing is programmed until it has"
        mend = f"podCIDRs: [CIDR] in {path}, if the network plugin keeps its own"
        yield Finding(FAIL, "pod CIDRs", text, mend)
    elif facts.uncovered:
        text = f"{shown}, but {described(facts.uncovered)}"
        yield Finding(WARN, what, text, f"{remedy(facts.uncovered, known)}, in {path}")
    else:
        yield Finding(OK, what, shown)


def external_ips(facts: Facts) -> Iterator[Finding]:
    """Which external IPs are refused, and whether the pod CIDRs are why."""
    cluster, config = facts.cluster, facts.configuration.config
    if cluster.node is None or cluster.services is None:
        return
    cidrs = policy.pod_cidrs(config, cluster.node) or ()
    snapshot = facts.seen or Snapshot(cluster.services, cluster.node)
    problems = [p for service in cluster.services.values() for p in service.problems]
    problems += [p for family in FAMILIES for p in plan(config, snapshot, family).problems]
    counted = [service for service in cluster.services.values() if not service.skipped]
    asked = {ip for service in counted for ip in policy.external_ips(service, config)}
    inside = [p for p in problems if p.reason == "PodCIDR"]
    if inside:
        yield _swallowed(facts, asked, inside, cidrs)
    others = [p for p in problems if p.reason != "PodCIDR"]
    if others:
        namespace, _, name = others[0].service.partition("/")
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        edit = f"kubectl -n {namespace} edit service {name}"
        yield Finding(WARN, "external IPs", f"{others[0]}{more}", edit)
    if not problems:
        yield Finding(OK, "external IPs", f"none refused of {len(asked)}")


def _swallowed(
    facts: Facts, asked: set[Address], inside: Sequence[Problem], cidrs: Sequence[Network]
) -> Finding:
    every = len(inside) >= len(asked)
    count = f"all {len(asked)} are" if every else f"{len(inside)} of {len(asked)} are"
    shown = _list([show_network(cidr) for cidr in cidrs])
    text = f"{count} refused, as a pod CIDR has them inside ({shown}): {inside[0]}"
    mend = f"podCIDRs: [this node's own] in {facts.configuration.path}"
    return Finding(FAIL if every else WARN, "external IPs", text, mend)


def in_sync(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel holds what is wanted, as `diff` would say."""
    if facts.changes is None:
        return
    if not facts.changes:
        yield Finding(OK, "rules", f"in sync with the cluster (iptables-{facts.host.backend})")
        return
    parts = []
    for command, change in facts.changes:
        steps = {
            "chains to write": len(change.written),
            "chains to remove": len(change.dropped),
            "jumps to set": len(change.hooked),
        }
        counted = ", ".join(f"{number} {what}" for what, number in steps.items() if number)
        parts.append(f"{command.rpartition('-')[0]}: {counted or 'jumps to remove'}")
    restart = "start" if facts.host.holder is None else "restart"
    text = f"out of sync ({'; '.join(parts)}); ipvs-node-agent diff shows it"
    yield Finding(FAIL, "rules", text, f"systemctl {restart} ipvs-node-agent")


def _list(items: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    configuration,
    credentials,
    api_server,
    node,
    external_ips,
    *HOST_CHECKS,
    in_sync,
)
