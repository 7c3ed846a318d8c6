"""kube-proxy in a network namespace, in nftables or iptables mode, and what it follows."""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipvs_node_agent.model.objects import Port, Service
from tests.support.apiserver import ApiServer
from tests.support.fleet import NODE, raw, raw_node
from tests.support.netns import Namespace
from tests.support.waiting import eventually

MODES = ("nftables", "iptables")
_PORT = Port("udp", 80)
_CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
hostnameOverride: {node}
clusterCIDR: 10.240.0.0/16
# Settings of the machine are left alone.
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
clientConnection: {{kubeconfig: {kubeconfig}, contentType: application/json}}
"""
_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{}}}}]
current-context: c
"""
_RANGE = {
    "kind": "ServiceCIDR",
    "metadata": {"name": "kubernetes"},
    "spec": {"cidrs": ["198.18.0.0/15"]},
}
_SYNCED = re.compile(
    r"^kubeproxy_sync_proxy_rules_last_timestamp_seconds(?:\{.*\})? (\S+)$", re.MULTILINE
)


def binary() -> Path | None:
    """kube-proxy's program, where the binaries of the cluster tests are at hand."""
    found = Path(os.environ.get("KUBEBUILDER_ASSETS", ""), "kube-proxy")
    return found if os.access(found, os.X_OK) and found.is_file() else None


def version() -> str:
    """Its version, or why it is not there."""
    program = binary()
    if program is None:
        return "was not at hand"
    said = subprocess.run([str(program), "--version"], check=True, capture_output=True, text=True)
    return said.stdout.rpartition(" ")[2].strip()


def udp(services: Iterable[Service]) -> dict[str, Service]:
    """`services` with a UDP port in place of theirs."""
    return {one.key: one._replace(ports=(_PORT,)) for one in services}


def seen_by_all(service: Service) -> dict[str, Any]:
    """`service` as both sides are told of it: without node ports, which would have to differ."""
    told = raw(service)
    spec: dict[str, Any] = told["spec"]
    del spec["healthCheckNodePort"], spec["ports"][0]["nodePort"]
    spec["ports"][0]["protocol"] = service.ports[0].protocol.upper()
    spec["allocateLoadBalancerNodePorts"] = False
    return told


def _slice(service: Service) -> dict[str, Any]:
    """Its one endpoint, a pod of the node's."""
    namespace, _, name = service.key.partition("/")
    number = int(name.rpartition("-")[2])
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-abcde",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [f"10.248.{number // 250}.{number % 250 + 1}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": NODE.name,
            }
        ],
        "ports": [{"name": "http", "protocol": "UDP", "port": 8080}],
    }


class KubeProxy:
    """A kube-proxy that is not running at first."""

    def __init__(self, namespace: Namespace, api: ApiServer, mode: str, folder: Path) -> None:
        self.namespace, self.mode, self._folder = namespace, mode, folder
        self._process: subprocess.Popen[bytes] | None = None
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(_KUBECONFIG.format(server=api.url))
        config = _CONFIG.format(mode=mode, node=NODE.name, kubeconfig=kubeconfig)
        (folder / "config").write_text(config)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float) -> float:
        """Starts it; the seconds until it has written the rules of everything."""
        program = binary()
        assert program is not None
        began = time.time()
        with (self._folder / "log").open("ab") as log:
            self._process = self.namespace.popen(
                [str(program), f"--config={self._folder / 'config'}"], stdout=log, stderr=log
            )
        said = f"kube-proxy in sync, see {self._folder / 'log'}"
        return eventually(self._synced, said, timeout, pause=0.25) - began

    def _synced(self) -> float:
        """When it last ended a write of IPv4's rules; 0 before the first one."""
        with self.namespace.enter():
            try:
                with urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                return 0.0
        values = [m[1] for m in _SYNCED.finditer(text) if 'ip_family="IPv6"' not in m[0]]
        return max(map(float, values), default=0.0)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def kube_proxy(
    namespace: Namespace, mode: str, services: dict[str, Service], folder: Path
) -> Iterator[tuple[KubeProxy, ApiServer]]:
    """A kube-proxy that follows an API server with `services`."""
    folder.mkdir()
    with ApiServer(netns=str(namespace.path), streaming_lists=True) as api:
        api.put(raw_node())
        api.put(_RANGE)
        for service in services.values():
            api.put(seen_by_all(service))
            api.put(_slice(service))
        proxy = KubeProxy(namespace, api, mode, folder)
        try:
            yield proxy, api
        finally:
            proxy.stop()
