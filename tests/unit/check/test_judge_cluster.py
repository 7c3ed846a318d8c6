"""What `check` says about the configuration and the cluster: facts in, findings out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.check.facts import ClusterFacts, ConfigFacts, Validity
from ipvs_node_agent.check.finding import OK
from ipvs_node_agent.check.judge import judge
from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.kubeconfig.reader import refused
from ipvs_node_agent.model.addresses import FAMILIES, parse_address, parse_network
from ipvs_node_agent.model.objects import UncoveredPod
from tests.support.cluster import node, service
from tests.support.nodefacts import DAY, NOW, SERVER, WEB, bad, cluster, facts, nat, says


def test_a_healthy_node_gives_only_ok() -> None:
    findings = judge(facts())
    assert [f for f in findings if f.level != OK or f.remedy] == []
    assert [f.subject for f in findings] == [
        "configuration",
        "credentials",
        "API server",
        "privileges",
        "kube-proxy",
        "iptables backend",
        *(
            f"{what}, {family}"
            for family in FAMILIES
            for what in ("nat table", "KUBE-MARK-MASQ", "jumps")
        ),
        "agent",
        "metrics",
        "other firewalls",
        "conntrack",
        "kernel",
        "permission",
        "Node",
        "pod CIDRs",
        "external IPs",
        "rules",
    ]


def test_credentials_without_a_certificate_are_fine() -> None:
    found = cluster(validity=None, user=None, certified_name=None)
    assert bad(facts(cluster=found)) == []


def configured(why: str, hint: str = "", where: str = "") -> dict[str, Any]:
    error = UsageError(f"configuration /etc/x.yaml{where}", why, hint)
    return {"configuration": ConfigFacts("/etc/x.yaml", error=error)}


def unasked(found: ClusterFacts, config: Config | None = None) -> dict[str, Any]:
    """Nothing is known of the Node, so of IPv6 neither."""
    return {"cluster": found, "config": config or Config(), "changes": None, "tables": (nat(),)}


def unread(why: str, hint: str = "", missing: bool = False) -> dict[str, Any]:
    error = refused(Path("/etc/kubernetes/kubelet.conf"), why, hint, missing)
    return unasked(ClusterFacts(error=error, node_name="worker-1"))


def unreachable(why: str, hint: str = "") -> dict[str, Any]:
    error = ApiError(f"API server {SERVER}", why, hint)
    return unasked(cluster(node=None, services=None, unreachable=error))


def gone_since(why: str) -> dict[str, Any]:
    """It told of the Node, and not of the Services."""
    return {"cluster": cluster(services=None, unreachable=ApiError(SERVER, why)), "changes": None}


def refused_with(status: int, **settings: Any) -> dict[str, Any]:
    error = ApiError(f"API server {SERVER}", f"refused to list services: {status}", "h", status)
    name = settings.get("node_name", "worker-1")
    found = cluster(node=None, services=None, refused=(error,), node_name=name)
    return unasked(found, Config(**settings))


def valid(begin: float, end: float) -> dict[str, Any]:
    """With a certificate that is valid between these days from now."""
    return {"cluster": cluster(validity=Validity(NOW + begin * DAY, NOW + end * DAY))}


def pods_in(*cidrs: str) -> dict[str, Any]:
    return {"config": Config(pod_cidrs=tuple(parse_network(cidr) for cidr in cidrs))}


GOOD, ALLOWED = read_service(WEB), parse_network("192.0.2.0/24")
IN_POD_CIDR = read_service(service("pod", ["10.231.0.3"], ["10.240.2.129"]))
BAD_SERVICE = read_service(service("bad", ["10.231.0.2"], ["127.0.0.1", "x"]))


WRONG: dict[str, dict[str, Any]] = {
    "fail ConfigurationInvalid: /etc/x.yaml line 3: unknown key foo => edit": configured(
        "unknown key foo", where=" line 3"
    ),
    "fail ConfigurationInvalid: others can write it => chmod go-w /etc/x.yaml": configured(
        "others can write it", "chmod go-w /etc/x.yaml"
    ),
    "fail CredentialsMissing: No such file => kubeadm join": unread(
        "No such file", "is this node's kubelet set up?", missing=True
    ),
    "fail CredentialsMissing: cannot read /x.pem: No such file => kubeadm join": unread(
        "cannot read /x.pem: No such file", missing=True
    ),
    "fail CredentialsUnusable: cannot read /x.pem: Permission denied => run it as root": unread(
        "cannot read /x.pem: Permission denied", "run it as root"
    ),
    "fail CredentialsUnusable: cannot load /x.pem: KEY_VALUES => worker-1 >kubelet.conf": unread(
        "cannot load /x.pem: KEY_VALUES_MISMATCH"
    ),
    "fail CredentialsExpired: worker-1 expired on 2026-01-04 08:00 UTC => kubeadm": valid(-365, -1),
    "fail CredentialsNotYetValid: not valid before 2026-01-06 08:00 => timedatectl": valid(1, 365),
    "warn CredentialsNotRenewed: on 2026-01-20 08:00 UTC and should => kubectl get csr": valid(
        -350, 15
    ),
    "warn CredentialsInsecure: is not verified => certificate-authority": {
        "cluster": cluster(warning="the certificate of the API server is not verified")
    },
    f"fail APIServerUnreachable: {SERVER}: cannot be reached: Connection refused"
    f" => curl -k {SERVER}/livez": unreachable("cannot be reached: Connection refused"),
    "fail APIServerUnreachable: CERTIFICATE_VERIFY_FAILED => the CA is another": unreachable(
        "CERTIFICATE_VERIFY_FAILED", "the CA is another"
    ),
    "fail APIServerUnreachable: the connection broke => curl -k": gone_since(
        "the connection broke"
    ),
    "fail PermissionRefused: 401 => kubeadm kubeconfig user": refused_with(401),
    "fail PermissionRefused: 403 => kubeadm kubeconfig user": refused_with(403),
    "fail PermissionRefused: 403 => kubeconfig: /etc/kubernetes/kubelet.conf in": refused_with(
        403, kubeconfig="/x.conf"
    ),
    "fail PermissionRefused: 403 => no nodeName, as the credentials are for": refused_with(
        403, node_name="other"
    ),
    f"fail PermissionRefused: 500 => the log of kube-apiserver ({SERVER})": refused_with(500),
    "fail CredentialsExpired: expired on => new credentials in /x.conf": {
        **valid(-365, -1),
        "config": Config(kubeconfig="/x.conf"),
    },
    "fail NodeUnknown: has no Node worker-1 => nodeName: ": unasked(cluster(node=None)),
    "fail PodCIDRsMissing: has none yet => podCIDRs: [CIDR] in /etc/x.yaml": {
        "cluster": cluster(node=read_node(node())),
        "changes": None,
    },
    "warn PodsUncovered: 10.240.2.128/25, fd00:10:240:2::/64, but 1 pod of this node has no rules:"
    " default/web at 172.31.0.9 by veth1 => podInterfaces: [veth+], plus": {
        "uncovered": (UncoveredPod("default/web", parse_address("172.31.0.9"), "veth1"),)
    },
    "fail ExternalIPsOfPods: all 2 are refused => podCIDRs without 10.0.0.0/8, fd00::/8": pods_in(
        "10.0.0.0/8", "fd00::/8"
    ),
    "warn ExternalIPsOfPods: 1 of 2 are refused => podCIDRs without 10.0.0.0/8 in": pods_in(
        "10.0.0.0/8", "fd00:10:240:2::/64"
    ),
    "warn ExternalIPsRefused: default/bad:  => administrator: kubectl -n default get service bad": {
        "cluster": cluster(services={"default/bad": BAD_SERVICE})
    },
    # The Service is wrong, and not what the Node says of itself.
    **{
        f"{level} ExternalIPsOfPods: {count} are refused => another address; from a machine": {
            "cluster": cluster(services=services)
        }
        for level, count, services in (
            ("fail", "all 1", {IN_POD_CIDR.key: IN_POD_CIDR}),
            ("warn", "1 of 3", {IN_POD_CIDR.key: IN_POD_CIDR, GOOD.key: GOOD}),
        )
    },
    "warn ExternalIPsRefused: outside => services.allowedExternalCIDRs with it in /etc/x.yaml": {
        "config": Config(services=ServiceOptions(allowed_external_cidrs=(ALLOWED,))),
    },
}


@pytest.mark.parametrize(("line", "fields"), WRONG.items())
def test_what_is_wrong_is_found_and_nothing_else(line: str, fields: dict[str, Any]) -> None:
    says(facts(**fields), line)
