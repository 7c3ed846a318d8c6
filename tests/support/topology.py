"""A node with a pod, a backend and a stranger around it, each in a namespace of its own.

    pod ---- node ---- backend (has the ClusterIPs)
               |
            outside

The backend stands for IPVS and the endpoints behind it. As on a real node the external IPs are
the node's own (kube-proxy binds them to kube-ipvs0), and the backend knows no way to them: an
answer to a packet that left with an external IP as its source is lost.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

from tests.support.netns import Namespace, link, namespaces

PORT = 80

POD = {4: "10.240.2.130", 6: "fd00:10:240:2::130"}
POD_GATEWAY = {4: "10.240.2.129", 6: "fd00:10:240:2::1"}
POD_CIDR = {4: "10.240.2.128/25", 6: "fd00:10:240:2::/64"}
# Another pod of the same pod CIDR, and one with a pod CIDR of its own.
NEIGHBOUR = {4: "10.240.2.200", 6: "fd00:10:240:2:8000::200"}
SECOND_POD = {4: "10.240.9.5", 6: "fd00:10:240:9::5"}
SECOND_POD_CIDR = {4: "10.240.9.0/24", 6: "fd00:10:240:9::/64"}
NODE = {4: "192.168.7.11", 6: "fd00:192:168:7::11"}
NODE_TO_BACKEND = {4: "10.200.0.1", 6: "fd00:10:200::1"}
BACKEND = {4: "10.200.0.2", 6: "fd00:10:200::2"}
OUTSIDE = {4: "192.168.7.99", 6: "fd00:192:168:7::99"}
CLUSTER_IP = {4: "10.231.42.164", 6: "fd00:231::164"}
EXTERNAL_IP = {4: "10.19.20.201", 6: "fd00:19::201"}
_EXTERNAL_RANGE = {4: "10.19.0.0/16", 6: "fd00:19::/32"}
_CLUSTER_RANGE = {4: "10.231.0.0/16", 6: "fd00:231::/32"}
_LENGTHS = {4: {"pod": 25, "lan": 24, "host": 32}, 6: {"pod": 64, "lan": 64, "host": 128}}


@dataclass(frozen=True)
class Topology:
    """The four namespaces."""

    node: Namespace
    pod: Namespace
    backend: Namespace
    outside: Namespace


@contextmanager
def topology() -> Iterator[Topology]:
    """The four namespaces wired up, and a server on the ClusterIPs."""
    with namespaces("node", "pod", "backend", "outside") as made:
        wired = Topology(*made)
        _wire(wired)
        with serving(wired.backend, *CLUSTER_IP.values()):
            yield wired


def _wire(t: Topology) -> None:
    link(t.node, t.pod, "to-pod", "eth0")
    link(t.node, t.backend, "to-backend", "eth0")
    link(t.node, t.outside, "eth0", "eth0")
    t.node.forward()
    # Not every kernel that tests run on has dummy devices.
    t.node.run("ip", "link", "add", "kube-ipvs0", "up", "type", "bridge")
    for version, lengths in _LENGTHS.items():
        t.node.add_address("to-pod", f"{POD_GATEWAY[version]}/{lengths['pod']}")
        t.pod.add_address("eth0", f"{POD[version]}/{lengths['pod']}")
        t.pod.add_route("default" if version == 4 else "::/0", POD_GATEWAY[version])
        t.node.add_address("to-backend", f"{NODE_TO_BACKEND[version]}/{lengths['lan']}")
        t.backend.add_address("eth0", f"{BACKEND[version]}/{lengths['lan']}")
        t.backend.add_address("lo", f"{CLUSTER_IP[version]}/{lengths['host']}")
        t.backend.add_route(POD_CIDR[version], NODE_TO_BACKEND[version])
        t.node.add_route(_CLUSTER_RANGE[version], BACKEND[version])
        t.node.add_address("eth0", f"{NODE[version]}/{lengths['lan']}")
        t.outside.add_address("eth0", f"{OUTSIDE[version]}/{lengths['lan']}")
        t.outside.add_route(_EXTERNAL_RANGE[version], NODE[version])
        t.node.add_address("kube-ipvs0", f"{EXTERNAL_IP[version]}/{lengths['host']}")


def other_node_pod(
    node: Namespace, remote: Namespace, device: str, addresses: Mapping[int, str]
) -> None:
    """Makes `remote` a pod of another node's, whose packets come in by a VXLAN tunnel `device`.

    Its addresses (ADDRESS/LENGTH) end in 7, and the node has the one that ends in 1.
    """
    link(node, remote, "to-remote", "underlay")
    ends = (node, "192.0.2.1", device, "1"), (remote, "192.0.2.2", "eth0", "7")
    for (there, own, name, last), (_, peer_address, *_) in zip(ends, reversed(ends)):
        there.add_address("to-remote" if there is node else "underlay", f"{own}/24")
        vxlan = ("vxlan", "id", "4096", "dstport", "4789", "local", own, "remote", peer_address)
        there.run("ip", "link", "add", name, "up", "type", *vxlan)
        for address in addresses.values():
            there.add_address(name, address.replace("7/", f"{last}/"))
    for version, address in addresses.items():
        gateway = address.replace("7/", "1/").partition("/")[0]
        remote.add_route("default" if version == 4 else "::/0", gateway)


def add_pods(t: Topology) -> None:
    """The pod's namespace has the addresses of the other pods as well."""
    t.node.add_address("to-pod", "10.240.9.1/24", "fd00:10:240:9::1/64")
    t.pod.add_address("eth0", f"{SECOND_POD[4]}/24", f"{SECOND_POD[6]}/64")
    t.pod.add_address("eth0", f"{NEIGHBOUR[4]}/25", f"{NEIGHBOUR[6]}/64")


def reaching(t: Topology, version: int) -> str:
    """The names of those who reach the Service at the external IP."""
    nobodys = {4: "", 6: ""}
    clients = (
        ("pod", t.pod, POD),
        ("neighbour", t.pod, NEIGHBOUR),
        ("second", t.pod, SECOND_POD),
        ("host", t.node, nobodys),
        ("outsider", t.outside, nobodys),
    )
    return " ".join(
        name
        for name, client, sources in clients
        if ask(client, EXTERNAL_IP[version], source=sources[version]) == NODE_TO_BACKEND[version]
    )


def peer(connection: socket.socket) -> str:
    """The address that a connection came from."""
    return str(connection.getpeername()[0])


def own(connection: socket.socket) -> str:
    """The address that a connection was made to, as its server sees it."""
    return str(connection.getsockname()[0])


@contextmanager
def serving(
    namespace: Namespace,
    *addresses: str,
    port: int = PORT,
    says: Callable[[socket.socket], str] = peer,
) -> Iterator[None]:
    """A TCP server in `namespace` that tells each client the address it came from, or else."""
    listeners = []
    for address in addresses:
        with namespace.enter():
            listeners.append(socket.create_server((address, port), family=_socket_family(address)))
        threading.Thread(target=_answer, args=(listeners[-1], says), daemon=True).start()
    try:
        yield
    finally:
        for listener in listeners:
            # Closing alone would leave the thread in accept(2).
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _answer(listener: socket.socket, says: Callable[[socket.socket], str]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                connection.sendall(says(connection).encode())
            except OSError:
                continue  # The client has gone.


def ask(
    client: Namespace, address: str, port: int = PORT, timeout: float = 10.0, source: str = ""
) -> str:
    """Connects from `client`; what the server told, or the name of the error."""
    with client.enter():
        return ask_here(address, port, timeout, source)


def ask_here(address: str, port: int = PORT, timeout: float = 10.0, source: str = "") -> str:
    """`ask` from the namespace that the thread is in."""
    with socket.socket(_socket_family(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            if source:
                sock.bind((source, 0))
            sock.connect((address, port))
            return sock.recv(100).decode() or "nothing"
        except OSError as error:
            return type(error).__name__


def _socket_family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
