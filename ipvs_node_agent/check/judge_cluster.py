"""Judges what is known of the configuration and of the cluster; nothing outside is touched.

Each check is a generator of findings over the same `Facts`. A check whose ground is missing says
nothing: whatever is missing has a finding of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.check.facts import ClusterFacts, Facts
from ipvs_node_agent.check.finding import AS_ADMIN, FAIL, OK, WARN, Finding, failed
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.kubeconfig.reader import MissingError
from ipvs_node_agent.model.addresses import Network, contains, show_network
from ipvs_node_agent.model.objects import Problem
from ipvs_node_agent.rules import policy
from ipvs_node_agent.rules.coverage import coverage, described, remedy

# The kubelet renews its certificate at 70 to 90 % of its lifetime.
_RENEWED_BY = 0.92
_KUBELETS = "/etc/kubernetes/kubelet.conf"
# By the word of a refusal, what mends it; all others need another address.
_CURES = {
    "APIServer": "another port or address",
    "PortConflict": "another port or address for one of the two",
    "NoClusterIP": "a ClusterIP of that family, or an address of the other one",
    "NoPorts": "ports that can be read",
    "NoAddress": "a load balancer controller that provides addresses",
    "TooManyRules": "fewer addresses, ports or source ranges",
    "Unreadable": "what can be read in that field",
}


def configuration(facts: Facts) -> Iterator[Finding]:
    """The file; with a bad one the rest is judged by the defaults."""
    found = facts.configuration
    if found.error is not None:
        mend = f"edit {found.path}, then systemctl reload ipvs-node-agent"
        finding = failed("ConfigurationInvalid", "configuration", found.error, mend)
        text = f"{finding.text}; the other lines assume the defaults"
        yield finding._replace(text=text)
    else:
        text = found.path if found.there else f"the defaults, as there is no {found.path}"
        yield Finding("ConfigurationOK", OK, "configuration", text)


def credentials(facts: Facts) -> Iterator[Finding]:
    """The kubeconfig, and when its certificate is valid."""
    cluster, path = facts.cluster, facts.configuration.config.kubeconfig
    what = "credentials"
    if isinstance(cluster.error, MissingError):
        # The error's own hint is a question, for a node that has not joined yet.
        text = f"{cluster.error.what}: {cluster.error.why}"
        other = cluster.other_kubeconfig
        mend = f"join the node (kubeadm join), or {facts.set_to('kubeconfig: FILE')}"
        mend = facts.set_to(f"kubeconfig: {other}") if other else mend
        yield Finding("CredentialsMissing", FAIL, what, text, mend)
        return
    if cluster.error is not None:
        yield failed("CredentialsUnusable", what, cluster.error, _new_credentials(facts))
        return
    who = cluster.user or "a token's user"
    if cluster.validity is None:
        yield from _unlimited(cluster, path, who)
        return
    begin, end = cluster.validity
    if facts.now >= end:
        text = f"the certificate of {who} expired on {_date(end)}"
        yield Finding("CredentialsExpired", FAIL, what, text, _new_credentials(facts))
    elif facts.now < begin:
        text = f"the certificate of {who} is not valid before {_date(begin)}: is the clock right?"
        mend = "timedatectl shows the clock; timedatectl set-ntp true sets it from the network"
        yield Finding("CredentialsNotYetValid", FAIL, what, text, mend)
    elif facts.now > begin + (end - begin) * _RENEWED_BY:
        text = f"the certificate of {who} expires on {_date(end)} and should have been renewed"
        mend = f"journalctl -u kubelet says why it is not; {AS_ADMIN}kubectl get csr shows"
        mend += " requests that wait to be approved"
        yield Finding("CredentialsNotRenewed", WARN, what, text, mend)
    else:
        yield from _unlimited(cluster, path, f"{who}, valid until {_date(end)}")


def _unlimited(cluster: ClusterFacts, path: str, who: str) -> Iterator[Finding]:
    if cluster.warning:
        mend = f"in {path}: a server with https, and the cluster's CA as certificate-authority"
        mend += " in place of insecure-skip-tls-verify"
        yield Finding("CredentialsInsecure", WARN, "credentials", cluster.warning, mend)
    else:
        yield Finding("CredentialsOK", OK, "credentials", f"{path}: {who}")


def _new_credentials(facts: Facts) -> str:
    path, name = facts.configuration.config.kubeconfig, facts.cluster.node_name or "NAME"
    if path != _KUBELETS:
        return f"new credentials in {path}, from its author, or {facts.set_to(_own())}"
    return (
        "on a control-plane node: kubeadm kubeconfig user --org system:nodes --client-name"
        f" system:node:{name} >kubelet.conf; here: keep the old {path}, put the new one in its"
        " place, then systemctl restart kubelet"
    )


def _own() -> str:
    return f"kubeconfig: {_KUBELETS}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def api_server(facts: Facts) -> Iterator[Finding]:
    """Whether it answers; judged before the Services are there."""
    cluster = facts.cluster
    if cluster.error is None and cluster.unreachable is not None and cluster.node is None:
        yield _unreachable(cluster, cluster.unreachable)
    elif cluster.error is None:
        yield Finding("APIServerOK", OK, "API server", f"{cluster.server} answers")


def _unreachable(cluster: ClusterFacts, error: AgentError) -> Finding:
    mend = f"curl -k {cluster.server}/livez must print ok on this node: open the network path to it"
    return failed("APIServerUnreachable", "API server", error, mend)


def permission(facts: Facts) -> Iterator[Finding]:
    """Whether it lets the agent list and watch."""
    cluster = facts.cluster
    if cluster.error is not None or (cluster.unreachable is not None and cluster.node is None):
        return
    for error in cluster.refused:
        mend = f"on a control-plane node: the log of kube-apiserver ({cluster.server}) says why"
        if isinstance(error, ApiError) and error.status in (401, 403):
            mend = _new_credentials(facts)
            if facts.configuration.config.kubeconfig != _KUBELETS:
                mend = f"{facts.set_to(_own())}, or a ClusterRole for the user"
            if cluster.certified_name not in (None, cluster.node_name):
                theirs = cluster.certified_name
                mend = facts.set_to(f"no nodeName, as the credentials are for {theirs},")
        yield Finding("PermissionRefused", FAIL, "permission", error.why, mend)
    if cluster.unreachable is not None:
        # It answered before.
        yield _unreachable(cluster, cluster.unreachable)
    elif not cluster.refused:
        text = "to list and watch Services and the Node"
        yield Finding("PermissionOK", OK, "permission", text)


def node(facts: Facts) -> Iterator[Finding]:
    """The Node, and how packets of its pods are known."""
    cluster = facts.cluster
    if cluster.services is None:
        return
    if cluster.node is None:
        text = f"the API server has no Node {cluster.node_name}"
        mend = facts.set_to("nodeName: NAME")
        mend += f"; {AS_ADMIN}kubectl get nodes shows the names"
        yield Finding("NodeUnknown", FAIL, "Node", text, mend)
        return
    yield Finding("NodeOK", OK, "Node", cluster.node_name)
    interfaces = facts.seen.pod_interfaces if facts.seen is not None else ()
    known = coverage(facts.configuration.config, cluster.node, interfaces)
    what, shown = "pods", f"by interface: {_list(interfaces)}"
    if not interfaces:
        what, shown = "pod CIDRs", _list([*map(show_network, known.cidrs)])
    if not (interfaces or known.cidrs):
        text = f"Node {cluster.node_name} has none yet, and the agent makes no rules until it has"
        mend = f"if it stays so, as the network plugin does not use them: {facts.set_to(_CIDRS)}"
        yield Finding("PodCIDRsMissing", FAIL, "pod CIDRs", text, mend)
    elif facts.uncovered:
        text = f"{shown}, but {described(facts.uncovered)}"
        mend = facts.set_to(f"{remedy(facts.uncovered, known)},")
        yield Finding("PodsUncovered", WARN, what, text, mend)
    else:
        yield Finding("PodsOK", OK, what, shown)


_CIDRS = "podCIDRs: [CIDR]"


def external_ips(facts: Facts) -> Iterator[Finding]:
    """Which external IPs are refused, and whether the pod CIDRs are why."""
    cluster, config = facts.cluster, facts.configuration.config
    if cluster.node is None or cluster.services is None:
        return
    counted = [service for service in cluster.services.values() if not service.skipped]
    asked = {ip for service in counted for ip in policy.external_ips(service, config)}
    inside = [p for p in facts.problems if p.reason == "PodCIDR"]
    if inside:
        yield _swallowed(facts, len(asked), inside)
    others = [p for p in facts.problems if p.reason != "PodCIDR"]
    if others:
        first = others[0]
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        cure = _CURES.get(first.reason, "another address")
        if first.reason == "NotAllowed":
            allowed = "services.allowedExternalCIDRs with it"
            cure = f"{cure}, or, if it is meant for Services, {facts.set_to(allowed)}"
        mend = f"{cure}; {_show(first)}"
        yield Finding("ExternalIPsRefused", WARN, "external IPs", f"{first}{more}", mend)
    if not facts.problems:
        yield Finding("ExternalIPsOK", OK, "external IPs", f"none refused of {len(asked)}")


def _show(problem: Problem) -> str:
    namespace, _, name = problem.service.partition("/")
    return f"{AS_ADMIN}kubectl -n {namespace} get service {name} -o yaml"


def _swallowed(facts: Facts, asked: int, inside: Sequence[Problem]) -> Finding:
    every = len(inside) >= asked
    count = f"all {asked} are" if every else f"{len(inside)} of {asked} are"
    text = f"{count} refused, as they are pods' addresses: {inside[0]}"
    mend = f"another address; {_show(inside[0])}"
    # Those that the Node has are its pods', whoever says another thing.
    if wide := [show_network(cidr) for cidr in _set_by_hand(facts)]:
        these = f"podCIDRs without {_list(wide)}"
        mend = f"if no pod of this node has such addresses, {facts.set_to(these)}; else {mend}"
    return Finding("ExternalIPsOfPods", FAIL if every else WARN, "external IPs", text, mend)


def _set_by_hand(facts: Facts) -> Iterator[Network]:
    """The configured pod CIDRs that keep an external IP from somebody, and the Node's do not."""
    config, cluster = facts.configuration.config, facts.cluster
    nodes = cluster.node.pod_cidrs if cluster.node else ()
    asked = {
        ip for each in (cluster.services or {}).values() for ip in policy.external_ips(each, config)
    }
    for cidr in config.pod_cidrs or ():
        held = (ip for ip in asked if contains(cidr, ip))
        if any(not any(contains(own, ip) for own in nodes) for ip in held):
            yield cidr


def in_sync(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel holds what is wanted, as `diff` would say."""
    if facts.changes is None:
        return
    if not facts.changes:
        text = f"in sync with the cluster (iptables-{facts.host.backend})"
        yield Finding("RulesOK", OK, "rules", text)
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
    text = f"out of sync ({'; '.join(parts)}); ipvs-node-agent diff shows it"
    yield Finding("RulesOutOfSync", FAIL, "rules", text, facts.repair)


def _list(items: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
