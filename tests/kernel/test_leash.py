"""A Service that claims the API server's address: the agent is never cut off from it.

The API server is in the namespace outside. The Service asks for its port as well as for another
one, and whoever is led astray gets to the Service's ClusterIP.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from tests.kernel.conftest import Bed, node_bed
from tests.support.agentprocess import altered
from tests.support.apiserver import ApiServer
from tests.support.cluster import service
from tests.support.kubeconfigs import document, write
from tests.support.netns import Namespace
from tests.support.relay import relay
from tests.support.topology import (
    CLUSTER_IP,
    NODE,
    NODE_TO_BACKEND,
    OUTSIDE,
    POD_CIDR,
    PORT,
    Topology,
    ask,
    own,
    serving,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

# What the Service claims; the API server has it beside another address of its own.
CLAIMED = {4: "192.168.7.50", 6: "fd00:192:168:7::50"}


class Scene(NamedTuple):
    """A node, its neighbours and its API server, in one family."""

    wired: Topology
    bed: Bed
    version: int
    directory: Path

    @property
    def claimed(self) -> str:
        return CLAIMED[self.version]

    def kubeconfig(self, host: str, port: int, **cluster: str) -> None:
        """Has the kubeconfig name a server there."""
        where = f"[{host}]" if ":" in host else host
        server = f"http://{where}:{port}"
        write(self.directory / "kubelet.conf", document({}, server=server, **cluster))

    def claim(self, *ports: int) -> None:
        """Makes the Service, with these ports and with its own."""
        listed = [{"name": f"p{n}", "protocol": "TCP", "port": n} for n in (PORT, *ports)]
        cluster = CLUSTER_IP[self.version]
        self.bed.api.put(service("greedy", [cluster], [self.claimed], ports=listed))


@pytest.fixture
def scene(wired: Topology, backend: str, version: int, tmp_path: Path) -> Iterator[Scene]:
    wired.outside.add_address("eth0", f"{CLAIMED[version]}/{24 if version == 4 else 64}")
    wired.outside.add_route(POD_CIDR[version], NODE[version])
    host = "0.0.0.0" if version == 4 else "::"
    server = ApiServer(host, netns=str(wired.outside.path))
    with node_bed(wired.node, backend, tmp_path, server=server) as bed:
        often = {f"commands.following._CREDENTIALS_{each}": 0.2 for each in ("PERIOD", "PAUSE")}
        bed.agent.program = altered(often)
        yield Scene(wired, bed, version, tmp_path)


# Each way to the API server: it gives the port of the claimed address that leads there.


@contextmanager
def by_address(scene: Scene) -> Iterator[int]:
    scene.kubeconfig(scene.claimed, scene.bed.api.port)
    yield scene.bed.api.port


@contextmanager
def by_name(scene: Scene) -> Iterator[int]:
    hosts = scene.directory / "hosts"
    hosts.write_text(f"{scene.claimed} api.example\n")
    mounted = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    scene.bed.agent.wrapper = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    scene.kubeconfig("api.example", scene.bed.api.port)
    yield scene.bed.api.port


@contextmanager
def by_proxy_url(scene: Scene) -> Iterator[int]:
    """The proxy is at the claimed address."""
    real = (OUTSIDE[scene.version], scene.bed.api.port)
    with relay(scene.wired.outside, scene.claimed, real) as port:
        url = f"http://[{scene.claimed}]:{port}" if scene.version == 6 else ""
        scene.kubeconfig(real[0], real[1], **{"proxy-url": url or f"http://{scene.claimed}:{port}"})
        yield port


@contextmanager
def by_local_proxy(scene: Scene) -> Iterator[int]:
    """As kubespray's nginx: the kubeconfig names localhost alone."""
    real = (scene.claimed, scene.bed.api.port)
    addresses, ports = [{"ip": scene.claimed}], [{"port": scene.bed.api.port}]
    scene.bed.api.put(
        {
            "kind": "Endpoints",
            "metadata": {"name": "kubernetes"},
            "subsets": [{"addresses": addresses, "ports": ports}],
        }
    )
    with relay(scene.wired.node, "127.0.0.1", real) as port:
        scene.kubeconfig("localhost", port)
        yield scene.bed.api.port


@contextmanager
def by_another_address(scene: Scene) -> Iterator[int]:
    """The kubeconfig comes to name the claimed address when the Service has all of it."""
    scene.kubeconfig(OUTSIDE[scene.version], scene.bed.api.port)
    scene.claim(scene.bed.api.port)
    scene.bed.agent.start()
    asked = ask(scene.wired.node, scene.claimed, scene.bed.api.port)
    assert asked == CLUSTER_IP[scene.version]
    scene.kubeconfig(scene.claimed, scene.bed.api.port)
    yield scene.bed.api.port


CASES = [
    pytest.param(way, version, backend, id=f"{way.__name__}-IPv{version}-{backend}")
    for way in (by_address, by_name, by_proxy_url, by_local_proxy, by_another_address)
    for version, backend in ((4, "nft"), (6, "legacy"))
]


@pytest.mark.parametrize(("way", "version", "backend"), CASES)
def test_no_service_takes_the_way_to_the_api_server(
    way: Callable[[Scene], AbstractContextManager[int]], scene: Scene
) -> None:
    wired, bed, cluster = scene.wired, scene.bed, CLUSTER_IP[scene.version]
    with ExitStack() as stack:
        stack.enter_context(serving(wired.backend, cluster, port=bed.api.port, says=own))
        stack.enter_context(serving(wired.backend, cluster, port=99, says=own))
        port = stack.enter_context(way(scene))
        scene.claim(port)
        if not bed.agent.running:
            bed.agent.start()
        refused = f"{scene.claimed} tcp {port} is refused: this node reaches the API server there"
        bed.agent.said(f"default/greedy: {refused}")
        if way is by_address:
            assert refused in bed.agent.call("status").stdout
        for client in (wired.pod, wired.node):
            assert says_http(client, scene.claimed, port), "the API server's port is its own"
            assert ask(client, scene.claimed) == NODE_TO_BACKEND[scene.version], "the other is not"
            assert ask(client, scene.claimed, 99) == "ConnectionRefusedError", "nor all the rest"
        # New connections of the agent's get there, and so does what it is told.
        bed.api.drop_watches()
        bed.api.wait_for(lambda: bed.api.watches("services") == 1)
        bed.delete("greedy")
        eventually(lambda: not bed.has(scene.claimed), lambda: bed.agent.log)


def says_http(client: Namespace, address: str, port: int) -> bool:
    """Whether an HTTP server answers there."""
    with client.enter(), socket.create_connection((address, port), 2.0) as asking:
        asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return asking.recv(100).startswith(b"HTTP/")
