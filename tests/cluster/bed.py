"""A cluster for tests: a control plane in one network namespace, nodes in others, cables between.

    etcd, kube-apiserver ... ---- node, with the agent

The control plane has its addresses on its loopback device, so that they are the same for all nodes.
A node has what kubeadm leaves there, and no RBAC object anywhere names the agent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ipvs_node_agent.model.addresses import IPV4
from tests.cluster.apiserver import KubeApiServer, Secrets
from tests.cluster.etcd import Etcd
from tests.cluster.pki import ClusterPki, KubeletCertificate
from tests.cluster.rest import Client
from tests.support.agentprocess import AgentProcess
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node
from tests.support.netns import Namespace, link, namespaces
from tests.support.tables import add_mark_masq, ours, saved
from tests.support.waiting import eventually

API_ADDRESS = {4: "198.18.0.1", 6: "fd00:198:18::1"}
_PORT = 6443
_cables = itertools.count(1)

SERVICES = "/api/v1/namespaces/default/services"

Entry = tuple[str, str, str]


class ControlPlane:
    """etcd, and as many API servers as a test wants."""

    def __init__(self, binaries: Path, namespace: Namespace, directory: Path) -> None:
        self.namespace, self.directory = namespace, directory
        self._program = binaries / "kube-apiserver"
        for address, length in ((API_ADDRESS[4], 32), (API_ADDRESS[6], 128)):
            namespace.add_address("lo", f"{address}/{length}")
        self.pki = ClusterPki()
        self.secrets = Secrets(self.pki, directory / "pki")
        self.secrets.write(["127.0.0.1", "::1", *API_ADDRESS.values(), "kubernetes"])
        self.etcd = Etcd(binaries / "etcd", namespace, directory / "etcd")
        self.servers: list[KubeApiServer] = []
        self._numbers = itertools.count()

    def add_server(self, *options: str) -> KubeApiServer:
        """Another API server, not yet started."""
        number = next(self._numbers)
        server = KubeApiServer(
            self._program,
            self.namespace,
            self.directory / f"apiserver-{number}",
            self.etcd,
            self.secrets,
        )
        server.port = _PORT + number
        server.options = list(options)
        self.servers.append(server)
        return server

    @contextmanager
    def another(self, *options: str) -> Iterator[KubeApiServer]:
        """Another API server for a while, not yet started."""
        server = self.add_server(*options)
        try:
            yield server
        finally:
            if server.running:
                server.kill()
            self.servers.remove(server)

    def url(self, server: KubeApiServer, version: int = 4) -> str:
        """Where nodes reach a server."""
        address = API_ADDRESS[version]
        return f"https://{f'[{address}]' if version == 6 else address}:{server.port}"

    def stop(self) -> None:
        """Leaves nothing behind."""
        for server in self.servers:
            if server.running:
                server.kill()
        self.etcd.stop()


@contextmanager
def control_plane(binaries: Path, directory: Path) -> Iterator[ControlPlane]:
    """A control plane whose first API server is ready."""
    with namespaces("control") as (namespace,):
        plane = ControlPlane(binaries, namespace, directory)
        try:
            plane.etcd.start()
            plane.add_server().start()
            yield plane
        finally:
            plane.stop()


class Worker:
    """A node: its credentials, its kubeconfig, and the agent as a process."""

    def __init__(
        self, plane: ControlPlane, namespace: Namespace, name: str, address: str, directory: Path
    ) -> None:
        self.plane, self.namespace, self.name, self.address = plane, namespace, name, address
        # Where the control plane is reached by an address that its certificate does not name.
        self.gateway = ""
        self.server = plane.servers[0]
        self.directory = directory
        self.certificate = KubeletCertificate(plane.pki, directory / "pki", name)
        self.certificate.rotate()
        self.kubeconfig = directory / "kubelet.conf"
        self.use(self.server)
        self.agent = AgentProcess(namespace, directory, self.settings())

    def use(self, server: KubeApiServer) -> None:
        """Has the kubeconfig name another API server."""
        self.server = server
        url = self.plane.url(server)
        self.plane.pki.write_kubeconfig(self.kubeconfig, url, self.certificate.path)

    def settings(self, **more: Any) -> dict[str, Any]:
        """The agent's configuration; nothing in it names the node."""
        return {"kubeconfig": str(self.kubeconfig), "metricsBindAddress": "", **more}

    def register(self, client: Client, *cidrs: str) -> None:
        """Makes the Node object, as the kubelet and the controller manager do together."""
        wanted = node(*(cidrs or POD_CIDRS), name=self.name)
        client.post("/api/v1/nodes", wanted)
        client.patch(f"/api/v1/nodes/{self.name}/status", {"status": wanted["status"]})

    def rules(self) -> list[str]:
        """The agent's lines in the IPv4 nat table, by chain."""
        return by_chain(ours(saved(self.namespace, IPV4, "nft")))

    def holds(self, *entries: Entry, timeout: float = 15) -> None:
        """Waits until the IPv4 table holds exactly these rules of the agent's."""
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

    def cut(self) -> None:
        """Has the control plane's side reset every connection of the node's."""
        self.plane.namespace.run(
            "sh", "-c", f"ss -K state established src {API_ADDRESS[4]} dst {self.address} || true"
        )


@contextmanager
def attached(plane: ControlPlane, namespace: Namespace) -> Iterator[tuple[str, str]]:
    """A cable from a namespace to the control plane; gives the addresses here and there."""
    number = next(_cables)
    high, low = divmod(number, 250)
    here, there = f"172.{20 + high}.{low}.2", f"172.{20 + high}.{low}.1"
    here6, there6 = f"fd00:172:{number:x}::2", f"fd00:172:{number:x}::1"
    link(plane.namespace, namespace, f"node{number}", "control")
    plane.namespace.add_address(f"node{number}", f"{there}/30", f"{there6}/64")
    namespace.add_address("control", f"{here}/30", f"{here6}/64")
    namespace.add_route(API_ADDRESS[4], there)
    namespace.add_route(f"{API_ADDRESS[6]}/128", there6)
    try:
        yield here, there
    finally:
        plane.namespace.run("ip", "link", "delete", f"node{number}")


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
    with ExitStack() as stack:
        if namespace is None:
            (namespace,) = stack.enter_context(namespaces("node"))
        address, gateway = stack.enter_context(attached(plane, namespace))
        add_mark_masq(namespace, IPV4, "nft")
        name = name or namespace.name
        made = Worker(plane, namespace, name, address, directory)
        made.gateway = gateway
        client = plane.servers[0].client()
        made.register(client)
        try:
            yield made
        finally:
            made.agent.kill_if_running()
            if clean:
                client = next(server for server in plane.servers if server.running).client()
                client.delete(f"/api/v1/nodes/{name}")
                client.delete(SERVICES + "?fieldSelector=metadata.name!=kubernetes")


def add_service(
    client: Client,
    name: str,
    external_ip: str,
    cluster_ip: str | None = None,
    **fields: Any,
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
    made["status"] = _status(external_ip)["status"]
    # Replaced and not patched, which takes the server a fraction of the time.
    client.put(f"{SERVICES}/{name}/status", made)
    return external_ip, name, made["spec"]["clusterIP"]


def set_external_ips(client: Client, name: str, *external_ips: str) -> None:
    """Tells which addresses the load balancer has for a Service."""
    client.patch(f"{SERVICES}/{name}/status", _status(*external_ips))


def _status(*external_ips: str) -> dict[str, Any]:
    return {"status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in external_ips]}}}


def streams(client: Client) -> bool:
    """Whether the server's etcd tells how far it is, which streaming lists and bookmarks need."""
    text = client.text(
        "GET",
        "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        "&allowWatchBookmarks=true&timeoutSeconds=1",
    )
    return '"k8s.io/initial-events-end":"true"' in text
