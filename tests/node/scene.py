"""A node of a cluster, with real IPVS: what is in the machine, and what is around it.

    pod ---- node (the machine) ---- remote     another node, with a pod of its own
                  |        `-------- outside    neither a node nor a pod
                  `- - - - etcd, kube-apiserver (not in the machine)

The node has what kubeadm leaves there. kube-proxy is a service, and so are the servers in the
namespaces, so all of it is there again after a boot.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipvs_node_agent.host.ipvs import parse
from tests.cluster.bed import NODES, SERVICES, KubeletCertificate, set_external_ips
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Client
from tests.node.vm import Machine
from tests.support.cluster import POD_CIDRS, node
from tests.support.tables import ours
from tests.support.waiting import PATIENCE, eventually

NODE, OTHER_NODE = "worker-1", "worker-2"
NODE_ADDRESS = {4: "192.168.7.11", 6: "fd00:192:168:7::11"}
POD = {4: "10.240.2.130", 6: "fd00:10:240:2::2"}
REMOTE_POD = {4: "10.240.3.130", 6: "fd00:10:240:3::2"}
OUTSIDE = {4: "203.0.113.9", 6: "2001:db8:113::9"}
EXTERNAL = {4: "10.19.20.201", 6: "fd00:10:19:20::201"}
VERSIONS = (4, 6)
PORT, TARGET_PORT = 80, 8080
_POLL_SECONDS = 0.3
# To ask more often would take the emulated processor from what is waited for.
_LONG_WAIT, _LONG_POLL_SECONDS = 30.0, 1.0
# For kube-proxy to start, and to make what it knows.
_PROXY_SECONDS = 90.0

USE_LEGACY = """\
for family in iptables ip6tables; do
    update-alternatives --set $family /usr/sbin/$family-legacy
done
"""
KUBELET_CONF = "/etc/kubernetes/kubelet.conf"
_CURRENT = "/var/lib/kubelet/pki/kubelet-client-current.pem"
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

# Cables and addresses; what a network plugin does for pods, and a router for the rest.
_TOPOLOGY = f"""\
#!/bin/sh
set -eu
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
for name in pod remote outside; do
    ip netns add $name
    ip link add to-$name type veth peer name eth0 netns $name
    ip link set to-$name up
    ip -n $name link set lo up
    ip -n $name link set eth0 up
done
add() {{ # NAMESPACE DEVICE ADDRESS...
    where=$1 device=$2
    shift 2
    for address in "$@"; do
        case $address in *:*) nodad=nodad ;; *) nodad= ;; esac
        ip $where address add $address dev $device $nodad
    done
}}
gateway() {{ # NAMESPACE GATEWAY...
    for each in $2 $3; do
        case $each in *:*) to=::/0 ;; *) to=0.0.0.0/0 ;; esac
        ip -n $1 route add $to via $each
    done
}}
add "" to-pod 10.240.2.129/25 fd00:10:240:2::1/64
add "-n pod" eth0 {POD[4]}/25 {POD[6]}/64
gateway pod 10.240.2.129 fd00:10:240:2::1
add "" to-remote {NODE_ADDRESS[4]}/24 {NODE_ADDRESS[6]}/64
add "-n remote" eth0 192.168.7.12/24 fd00:192:168:7::12/64
add "-n remote" lo {REMOTE_POD[4]}/32 {REMOTE_POD[6]}/128
# The other node's kube-proxy has bound the external IP there as well: answers to it stay there.
add "-n remote" lo {EXTERNAL[4]}/32 {EXTERNAL[6]}/128
gateway remote {NODE_ADDRESS[4]} {NODE_ADDRESS[6]}
ip route add 10.240.3.128/25 via 192.168.7.12
ip route add fd00:10:240:3::/64 via fd00:192:168:7::12
add "" to-outside 203.0.113.1/24 2001:db8:113::1/64
add "-n outside" eth0 {OUTSIDE[4]}/24 {OUTSIDE[6]}/64
gateway outside 203.0.113.1 2001:db8:113::1
# In IPv4 it is qemu's. Without one the host would have no source address for external IPs.
ip route add default via {OUTSIDE[6]}
# What the kubelet leaves behind to say which iptables the node uses.
iptables -t mangle -N KUBE-IPTABLES-HINT
"""

_UNITS = {
    "topology.service": """\
[Unit]
Description=Network namespaces of the test bed
After=netfilter-persistent.service nftables.service
RequiresMountsFor=/bed
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/topology
[Install]
WantedBy=multi-user.target
""",
    "answer@.service": """\
[Unit]
Description=A server in the namespace %i
Requires=topology.service
After=topology.service
[Service]
ExecStart=/usr/bin/python3 -B /bed/traffic.py serve %i
[Install]
WantedBy=multi-user.target
""",
    "watch.service": """\
[Unit]
Description=Connections from the boot on
Requires=topology.service
After=topology.service
Before=kube-proxy.service ipvs-node-agent.service
[Service]
ExecStart=/usr/bin/python3 -B /bed/traffic.py watch /run/watch.log
StandardInput=file:/etc/watch.json
[Install]
WantedBy=multi-user.target
""",
    "kube-proxy.service": """\
[Unit]
Description=Kubernetes' kube-proxy
Wants=network-online.target
After=network-online.target topology.service
[Service]
ExecStart=/bed/kube-proxy --config=/etc/kubernetes/kube-proxy.yaml
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
""",
}

_KUBE_PROXY = f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
metricsBindAddress: "%s:10249"
hostnameOverride: {NODE}
clusterCIDR: 10.240.0.0/16,fd00:10:240::/48
clientConnection:
  kubeconfig: /etc/kubernetes/kube-proxy.conf
"""


@dataclass(frozen=True)
class Service:
    """A Service of the cluster, dual-stack."""

    cluster: dict[int, str]
    node_port: int
    # Its ClusterIPs have the endpoints of this node alone, where there are some.
    prefers_local: bool


@dataclass(frozen=True)
class Connection:
    """From a namespace ("host" is the node itself) to somewhere."""

    client: str
    address: str
    port: int = PORT

    @property
    def raw(self) -> list[Any]:
        """As traffic.py reads it."""
        return [self.client, self.address, self.port]


def is_answer(result: str) -> bool:
    """Whether a connection came about: who the server saw, and not an error."""
    return "." in result or ":" in result


@dataclass(frozen=True)
class Attempt:
    """One connection; times are seconds since the boot. `twice`: packets that were sent again."""

    connection: Connection
    began: float
    ended: float
    saw: str
    twice: int

    @property
    def good(self) -> bool:
        """Whether it came about."""
        return is_answer(self.saw)


def real_servers(table: str) -> set[tuple[str, str]]:
    """Who gets new connections in /proc/net/ip_vs: pairs of virtual server and real server."""
    return {
        (str(virtual.address), str(server.address))
        for virtual in parse(table)
        for server in virtual.servers
        if server.weight
    }


class Scene:
    """The machine as a node, and the cluster."""

    def __init__(
        self, plane: ControlPlane, machine: Machine, directory: Path, backend: str
    ) -> None:
        self.plane, self.machine, self.backend = plane, machine, backend
        self._directory = directory
        self._certificate = KubeletCertificate(plane.pki, directory / "kubelet", NODE)
        self.services: dict[str, Service] = {}
        # Where their pods are.
        self._places = {"remote": True, "local": False}
        # The nat tables before the agent's first installation.
        self.nat_without_us: dict[int, list[str]] = {}
        # How the agent ended by a test's doing, in systemd's words.
        self.caused: list[str] = []

    @property
    def admin(self) -> Client:
        """All rights."""
        return self.plane.servers[0].client()

    def make_cluster(self) -> None:
        """The cluster's objects; for kube-proxy to find them all at once, before it is there."""
        self.admin.post(NODES, node(*POD_CIDRS, name=NODE))
        self.admin.post(NODES, node("10.240.3.128/25", name=OTHER_NODE))
        self._post_service("web", EXTERNAL)
        self._post_service("plain", type="NodePort", externalTrafficPolicy="Cluster")
        self._put_endpoints()

    def set_up(self) -> None:
        """Everything in the machine but the agent."""
        self.machine.run("systemctl is-system-running --wait || true")
        self._write_credentials()
        self.machine.write("/usr/local/sbin/topology", _TOPOLOGY, "755")
        self.write_proxy_config("ipvs")
        if self.backend == "legacy":
            self.machine.run(USE_LEGACY)
        for name, text in _UNITS.items():
            self.machine.write(f"/etc/systemd/system/{name}", text)
        servers = "answer@pod answer@remote answer@outside"
        self.machine.run(f"systemctl enable -q --now topology kube-proxy {servers}")
        self._wait_for_proxy()

    def write_proxy_config(self, mode: str, metrics: str = "127.0.0.1") -> None:
        """Has kube-proxy be in a mode from its next start on, and tell of it at an address."""
        self.machine.write("/etc/kubernetes/kube-proxy.yaml", _KUBE_PROXY % (mode, metrics))

    def _write_credentials(self) -> None:
        self._certificate.rotate(24 * 3600)
        self.machine.write(_CURRENT, self._certificate.path.read_text(), "600")
        self.give_kubelet_conf()
        certificate = self._directory / "kube-proxy.pem"
        self.plane.pki.write_client(certificate, "system:kube-proxy", "system:node-proxier")
        self.machine.write("/etc/kubernetes/kube-proxy.pem", certificate.read_text(), "600")
        self._write_kubeconfig("/etc/kubernetes/kube-proxy.conf", "/etc/kubernetes/kube-proxy.pem")

    def give_kubelet_conf(self) -> None:
        """Has the node join the cluster, as far as files tell."""
        self._write_kubeconfig(KUBELET_CONF, _CURRENT)

    def _write_kubeconfig(self, path: str, certificate: str) -> None:
        draft = self._directory / "kubeconfig"
        url = self.plane.url(self.plane.servers[0])
        self.plane.pki.write_kubeconfig(draft, url, Path(certificate))
        self.machine.write(path, draft.read_text(), "600")

    # The cluster's objects

    @contextmanager
    def service(self, name: str, external: Mapping[int, str], **more: Any) -> Iterator[Service]:
        """Meanwhile there is one Service more, which kube-proxy knows; see `_post_service`."""
        self._post_service(name, external, **more)
        try:
            self._put_endpoints()
            self._wait_for_proxy()
            yield self.services[name]
        finally:
            del self.services[name]
            self.admin.delete(f"{SERVICES}/{name}")
            for version in VERSIONS:
                self.admin.delete(f"{_SLICES}/{name}-{version}")

    def _post_service(
        self,
        name: str,
        external: Mapping[int, str] | None = None,
        port: int = PORT,
        annotations: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        """Makes a Service with a port and external IPs; `fields` go into its spec."""
        spec = {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"protocol": "TCP", "port": port, "targetPort": TARGET_PORT}],
            **fields,
        }
        metadata = {"name": name, "annotations": annotations or {}}
        made = self.admin.post(SERVICES, {"metadata": metadata, "spec": spec})["spec"]
        cluster = {6 if ":" in ip else 4: ip for ip in made["clusterIPs"]}
        prefers_local = made["internalTrafficPolicy"] == "Local"
        self.services[name] = Service(cluster, made["ports"][0]["nodePort"], prefers_local)
        if external:
            set_external_ips(self.admin, name, *external.values())

    def set_endpoints(self, *, remote: bool, local: bool) -> None:
        """Has the Services' pods be on this node, on the other one, or on both."""
        self._places = {"remote": remote, "local": local}
        self._put_endpoints()
        self._wait_for_proxy()

    def _put_endpoints(self) -> None:
        found = {item["metadata"]["name"] for item in self.admin.get(_SLICES)["items"]}
        places = [(POD, NODE)] * self._places["local"]
        places += [(REMOTE_POD, OTHER_NODE)] * self._places["remote"]
        for service, version in itertools.product(self.services, VERSIONS):
            name = f"{service}-{version}"
            labels = {"kubernetes.io/service-name": service}
            wanted = {
                "metadata": {"name": name, "labels": labels},
                "addressType": f"IPv{version}",
                "ports": [{"name": "", "protocol": "TCP", "port": TARGET_PORT}],
                "endpoints": [
                    {"addresses": [ip[version]], "nodeName": where, "conditions": {"ready": True}}
                    for ip, where in places
                ],
            }
            if name in found:
                self.admin.patch(f"{_SLICES}/{name}", wanted)
            else:
                self.admin.post(_SLICES, wanted)

    def _wait_for_proxy(self) -> None:
        """Waits until IPVS gives new connections to the ClusterIPs to exactly the endpoints."""
        here, there = [POD] * self._places["local"], [REMOTE_POD] * self._places["remote"]
        for service in self.services.values():
            places = here or there if service.prefers_local else here + there
            self.wait_for_servers(service, *places)

    def wait_for_servers(self, service: Service, *pods: Mapping[int, str]) -> None:
        """Waits until IPVS gives new connections to its ClusterIPs to exactly these pods.

        One that is gone keeps its old connections, with a weight of 0.
        """
        cluster = service.cluster.items()
        wanted = {(address, pod[version]) for version, address in cluster for pod in pods}

        def proxied() -> set[tuple[str, str]]:
            found = real_servers(self.machine.read("/proc/net/ip_vs"))
            return {pair for pair in found if pair[0] in service.cluster.values()}

        eventually(lambda: proxied() == wanted, "IPVS", _PROXY_SECONDS, _LONG_POLL_SECONDS)

    # What the machine is asked

    def wait(self, condition: str, seconds: float = 15) -> float:
        """Waits in the machine until a command succeeds; after how many seconds it did."""
        pause = _LONG_POLL_SECONDS if seconds > _LONG_WAIT else _POLL_SECONDS
        limit = seconds * PATIENCE
        # In microseconds, and without a process that would take time from what is waited for.
        printed = self.machine.run(
            f"""exec 9<> <(:)
            began=${{EPOCHREALTIME/./}}
            until ( {condition} ) >/tmp/wait 2>&1; do
                if (( ${{EPOCHREALTIME/./}} - began > {limit * 1e6:.0f} )); then
                    echo 'not true within {limit:g} s:'; cat /tmp/wait; exit 1
                fi
                read -rt {pause} -u 9
            done
            echo $(( ${{EPOCHREALTIME/./}} - began ))""",
            timeout=seconds + 60,
        )
        return int(printed) / 1e6

    def ask(self, *connections: Connection) -> list[str]:
        """Who the server saw of each connection, or the error."""
        return self.machine.ask([connection.raw for connection in connections])

    def view(self, connections: Mapping[str, Connection]) -> dict[str, str]:
        """The same by the connections' names."""
        return dict(zip(connections, self.ask(*connections.values())))

    @contextmanager
    def watched(self, *connections: Connection) -> Iterator[list[Attempt]]:
        """Makes the connections again and again meanwhile; the list is filled at the end.

        It has what was tried since the last boot, all of it once more after the block.
        """
        wanted = json.dumps([connection.raw for connection in connections])
        self.machine.write("/etc/watch.json", wanted)
        self.machine.run(": >/run/watch.log; systemctl start watch")
        results: list[Attempt] = []
        try:
            self._tried(connections, 0.0)
            yield results
            since = float(self.machine.read("/proc/uptime").split()[0])
            results += self._tried(connections, since)
        finally:
            self.machine.run("systemctl stop watch")

    def _tried(self, connections: Sequence[Connection], since: float) -> list[Attempt]:
        """All that was tried, once everything was begun and ended since then."""

        def tried() -> list[Attempt]:
            lines = self.machine.read("/run/watch.log").splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            attempts = [Attempt(connections[index], *rest) for index, *rest in found]
            late = {attempt.connection for attempt in attempts if attempt.began > since}
            return attempts if late == set(connections) else []

        return eventually(tried, "everything tried", 60, _LONG_POLL_SECONDS)

    def nat(self, version: int) -> list[str]:
        """The lines of the nat table, without counts and comments."""
        command = {4: "iptables-save", 6: "ip6tables-save"}[version]
        text = self.machine.run(f"{command} -t nat")
        lines = [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines()]
        return [line for line in lines if not line.startswith("#")]

    def ours(self) -> list[str]:
        """The agent's lines in both nat tables."""
        return [line for version in VERSIONS for line in ours(self.nat(version))]

    def agent(self, name: str) -> str:
        """A property that systemd has of the agent."""
        return self.machine.run(f"systemctl show --value -p {name} ipvs-node-agent").strip()

    def journal(self) -> list[str]:
        """What the agent has said in all boots."""
        own = "-u ipvs-node-agent SYSLOG_IDENTIFIER=ipvs-node-agent"
        return self.machine.run(f"journalctl -q -o cat {own}").splitlines()
