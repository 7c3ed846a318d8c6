"""Nodes of a cluster: each in a network namespace, with a cable to the control plane's.

    etcd, kube-apiserver ... ---- node, with the agent

A node has what kubeadm leaves there, and no RBAC object anywhere names the agent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ipvs_node_agent.model.addresses import IPV4
from tests.cluster.controlplane import API_ADDRESS, ControlPlane, KubeApiServer
from tests.cluster.rest import Client
from tests.support.agentprocess import AgentProcess
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node
from tests.support.netns import Namespace, link, namespaces
from tests.support.pki import Pki, point_to, write_private
from tests.support.tables import add_mark_masq, ours, saved
from tests.support.waiting import eventually

NODES = "/api/v1/nodes"
SERVICES = "/api/v1/namespaces/default/services"
_cables = itertools.count(1)

Entry = tuple[str, str, str]


class KubeletCertificate:
    """kubelet-client-current.pem: a symlink to a dated file with certificate and key, mode 0600."""

    def __init__(self, pki: Pki, directory: Path, node: str) -> None:
        self._pki, self._node = pki, node
        directory.mkdir(parents=True)
        self.path = directory / "kubelet-client-current.pem"

    def rotate(self, seconds: float = 3600) -> str:
        """Puts a new certificate in place, and gives the name that the API server has for it."""
        dated, not_after = self._dated(), datetime.now(timezone.utc) + timedelta(seconds=seconds)
        self._pki.write_node_client(dated, self._node, not_after)
        point_to(self.path, dated)
        certificate = x509.load_pem_x509_certificate(dated.read_bytes())
        return f"X509SHA256={certificate.fingerprint(hashes.SHA256()).hex()}"

    def break_off(self) -> None:
        """Rotates to a file that was cut off within the key."""
        dated = self._dated()
        write_private(dated, self.path.read_text()[:-200])
        point_to(self.path, dated)

    def _dated(self) -> Path:
        # The kubelet is never so fast that it needs parts of a second.
        stamp = f"{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
        return self.path.with_name(f"kubelet-client-{stamp}.pem")


class Worker:
    """A node: its credentials, its kubeconfig, and the agent as a process."""

    def __init__(
        self, plane: ControlPlane, namespace: Namespace, name: str, number: int, directory: Path
    ) -> None:
        self.plane, self.namespace, self.name, self.directory = plane, namespace, name, directory
        self.address = f"172.20.{number}.2"
        self.server = plane.servers[0]
        self.certificate = KubeletCertificate(plane.pki, directory / "pki", name)
        self.certificate.rotate()
        self.kubeconfig = directory / "kubelet.conf"
        self.use(self.server)
        self.agent = AgentProcess(namespace, directory, self.settings())

    def attach(self, number: int) -> None:
        """Lays its cable to the control plane."""
        link(self.plane.namespace, self.namespace, f"node{number}", "control")
        there, there6 = f"172.20.{number}.1", f"fd00:172:{number}::1"
        self.plane.namespace.add_address(f"node{number}", f"{there}/30", f"{there6}/64")
        self.namespace.add_address("control", f"{self.address}/30", f"fd00:172:{number}::2/64")
        self.namespace.add_route(API_ADDRESS[4], there)
        self.namespace.add_route(f"{API_ADDRESS[6]}/128", there6)

    def use(self, server: KubeApiServer) -> None:
        """Has the kubeconfig name another API server."""
        self.server = server
        url = self.plane.url(server)
        self.plane.pki.write_kubeconfig(self.kubeconfig, url, self.certificate.path)

    def settings(self, **more: Any) -> dict[str, Any]:
        """The agent's configuration; nothing in it names the node."""
        return {"kubeconfig": str(self.kubeconfig), "metricsBindAddress": "", **more}

    def start(self, *entries: Entry) -> None:
        """Starts the agent, and waits until it is ready; and, if there are any, for these rules."""
        before = self.agent.log.count("ready: ")
        self.agent.start(wait=False)
        # Long, since other tests' API servers may start at the same time and take the processors.
        eventually(
            lambda: self.agent.log.count("ready: ") > before, self._said("ready"), timeout=60
        )
        if entries:
            self.holds(*entries)

    def rules(self) -> list[str]:
        """The agent's lines in the IPv4 nat table, by chain."""
        return by_chain(ours(saved(self.namespace, IPV4, "nft")))

    def holds(self, *entries: Entry, timeout: float = 60) -> None:
        """Waits until the IPv4 table holds exactly these rules of the agent's.

        By default as long as the back-off may last from a server that starts to one that is ready.
        """
        by_address = sorted(entries, key=lambda entry: ip_address(entry[0]))
        wanted = expected_rules(by_address, POD_CIDRS[:1])
        try:
            eventually(lambda: self.rules() == wanted, timeout=timeout)
        except AssertionError:
            assert self.rules() == wanted, self.agent.log

    def connections(self) -> dict[str, int]:
        """The agent's open connections to the API server: local port, and bytes received."""
        listing = self.namespace.run("ss", "-HtniO", "state", "established")
        here = re.compile(rf"\S+:(\d+)\s+\S+:{self.server.port}\b(?:.*\bbytes_received:(\d+))?")
        found = (here.search(line) for line in listing.splitlines())
        return {match[1]: int(match[2] or 0) for match in found if match}

    def watching(self, timeout: float = 60) -> None:
        """Waits until both watches are open; see `holds`."""
        eventually(lambda: len(self.connections()) == 2, self._said("two watches"), timeout=timeout)

    def _said(self, what: str) -> Callable[[], str]:
        """What to say where `what` does not come true: what the agent said and asked for."""

        def text() -> str:
            asked = "\n".join(map(str, self.server.asked(self.name)[-20:]))
            return f"{what}\n{self.agent.log}\n{self.connections()}\n{asked}\n"

        return text

    def cut(self) -> None:
        """Has the control plane's side reset every connection of the node's."""
        self.plane.namespace.run(
            "sh", "-c", f"ss -K state established src {API_ADDRESS[4]} dst {self.address} || true"
        )


@contextmanager
def worker(
    plane: ControlPlane,
    directory: Path,
    namespace: Namespace | None = None,
    name: str = "",
    clean: bool = True,
) -> Iterator[Worker]:
    """A node that the cluster knows; the agent is down.

    It is gone at the end, and with `clean` all Services as well.
    """
    number = next(_cables)
    with ExitStack() as stack:
        if namespace is None:
            (namespace,) = stack.enter_context(namespaces("node"))
        name = name or namespace.name
        add_mark_masq(namespace, IPV4, "nft")
        made = Worker(plane, namespace, name, number, directory)
        made.attach(number)
        stack.callback(plane.namespace.run, "ip", "link", "delete", f"node{number}")
        plane.servers[0].client().post(NODES, node(*POD_CIDRS, name=name))
        try:
            yield made
        finally:
            made.agent.kill_if_running()
            if clean:
                client = next(server for server in plane.servers if server.running).client()
                client.delete(f"{NODES}/{name}")
                client.delete(SERVICES + "?fieldSelector=metadata.name!=kubernetes")


def add_service(
    client: Client, name: str, external_ip: str, cluster_ip: str | None = None, **fields: Any
) -> Entry:
    """Makes a LoadBalancer Service, and its status as a load balancer's controller does.

    Gives the entry that the rules must have. `fields` go into its spec.
    """
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": False,
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        **({"clusterIP": cluster_ip} if cluster_ip else {}),
        **fields,
    }
    made = client.post(SERVICES, {"metadata": {"name": name}, "spec": spec})
    set_external_ips(client, name, external_ip)
    return external_ip, name, made["spec"]["clusterIP"]


def moved(client: Client, entry: Entry, external_ip: str) -> Entry:
    """Has a Service have another external IP; gives the entry that the rules must have then."""
    set_external_ips(client, entry[1], external_ip)
    return external_ip, entry[1], entry[2]


def set_external_ips(client: Client, name: str, *external_ips: str) -> None:
    """Tells which addresses the load balancer has for a Service."""
    ingress = [{"ip": ip} for ip in external_ips]
    client.patch(f"{SERVICES}/{name}/status", {"status": {"loadBalancer": {"ingress": ingress}}})


def streams(client: Client) -> bool:
    """Whether the server's etcd tells how far it is, which streaming lists and bookmarks need."""
    text = client.text(
        "GET",
        "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        "&allowWatchBookmarks=true&timeoutSeconds=1",
    )
    return '"k8s.io/initial-events-end":"true"' in text
