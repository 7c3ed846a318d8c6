"""A real etcd and real kube-apiservers in a network namespace, and what these tell of a node.

They have their addresses on the loopback device, so that they are the same for all nodes.
"""

from __future__ import annotations

import base64
import itertools
import json
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.cluster.rest import FAILED, Client
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki
from tests.support.waiting import eventually

API_ADDRESS = {4: "198.18.0.1", 6: "fd00:198:18::1"}
_ports = itertools.count(6443)
SERVICE_RANGES = "10.231.0.0/16,fd00:231::/108"

# A node that has tokens; the server reads them once, when it starts.
TOKEN_NODE = "token-node"
TOKENS = ("first-token-5c2b0c", "second-token-e1f7a9")

# Each request of a node or a kube-proxy, when it begins and when it ends.
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: [system:nodes]
- level: Metadata
  users: ["system:kube-proxy"]
- level: None
"""


class ControlPlane:
    """etcd, and as many API servers as a test wants; with what all of these share."""

    def __init__(self, binaries: Path, namespace: Namespace, directory: Path) -> None:
        self.binaries, self.namespace, self.directory = binaries, namespace, directory
        namespace.add_address("lo", f"{API_ADDRESS[4]}/32", f"{API_ADDRESS[6]}/128")
        self.pki = Pki()
        self.secrets = directory / "pki"
        self.secrets.mkdir()
        self.pki.write_ca(self.secrets / "ca.crt")
        names = ["localhost", "127.0.0.1", "::1", *API_ADDRESS.values(), "kubernetes"]
        self.pki.write_server(self.secrets / "server.pem", names)
        self.pki.write_client(self.secrets / "admin.pem", "kubernetes-admin", "system:masters")
        (self.secrets / "audit.yaml").write_text(_AUDIT_POLICY)
        lines = [f'{token},system:node:{TOKEN_NODE},uid,"system:nodes"\n' for token in TOKENS]
        (self.secrets / "tokens.csv").write_text("".join(lines))
        self.etcd = Etcd(self)
        self.servers: list[KubeApiServer] = []

    @contextmanager
    def another(self, *options: str) -> Iterator[KubeApiServer]:
        """Another API server for a while, not yet started."""
        server = KubeApiServer(self, next(_ports), *options)
        self.servers.append(server)
        try:
            yield server
        finally:
            server.kill()
            self.servers.remove(server)

    def url(self, server: KubeApiServer, version: int = 4) -> str:
        """Where nodes reach a server."""
        address = API_ADDRESS[version]
        return f"https://{f'[{address}]' if version == 6 else address}:{server.port}"


@contextmanager
def control_plane(binaries: Path, directory: Path) -> Iterator[ControlPlane]:
    """A control plane whose first API server is ready."""
    with namespaces("control") as (namespace,):
        plane = ControlPlane(binaries, namespace, directory)
        try:
            plane.etcd.start()
            with plane.another() as server:
                server.start()
                yield plane
        finally:
            plane.etcd.kill()


class Server:
    """A program of the control plane, with a directory of its own."""

    healthy: str

    def __init__(self, plane: ControlPlane, name: str, port: int, admin: str) -> None:
        self._plane, self.port = plane, port
        self.directory = plane.directory / name
        self.directory.mkdir()
        self.url = f"https://127.0.0.1:{port}"
        self._admin = plane.secrets / admin
        self.command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Client:
        """A client with all rights."""
        return Client(self._plane.namespace, self.url, self._plane.pki, self._admin)

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = process = self._plane.namespace.popen(
                self.command, stdout=output, stderr=output
            )

        def answers() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            try:
                return bool(self.client().text("GET", self.healthy))
            except FAILED:
                return False

        eventually(answers, f"{self.directory.name} is ready", timeout=120)

    def send(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it, if it runs, without a word to its clients."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait(timeout=15)
            self._process = None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Its process, which there has to be."""
        assert self._process is not None
        return self._process.pid


class Etcd(Server):
    """One member with TLS, for one cluster."""

    healthy = "/health"

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane, "etcd", 2379, "server.pem")
        peer = "https://127.0.0.1:2380"
        self.command = [
            str(plane.binaries / "etcd"),
            f"--data-dir={self.directory}/data",
            # What it holds is gone with the test.
            "--unsafe-no-fsync",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]
        for prefix in ("", "peer-"):
            self.command += [
                f"--{prefix}cert-file={plane.secrets}/server.pem",
                f"--{prefix}key-file={plane.secrets}/server.pem",
                f"--{prefix}trusted-ca-file={plane.secrets}/ca.crt",
                f"--{prefix}client-cert-auth",
            ]

    def compact(self) -> None:
        """Forgets all history up to now (etcd's gateway, v3/kv/compaction)."""
        client = self.client()
        revision = int(client.post("/v3/kv/range", {"key": "AA=="})["header"]["revision"])
        client.post("/v3/kv/compaction", {"revision": revision, "physical": True})

    def get(self, key: str) -> bytes:
        """What the API server has stored there."""
        (found,) = self.client().post("/v3/kv/range", {"key": _encoded(key.encode())})["kvs"]
        return base64.b64decode(found["value"])

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Stores this in the API server's place, in one transaction; at most 128."""
        puts = [
            {"requestPut": {"key": _encoded(key.encode()), "value": _encoded(value)}}
            for key, value in values
        ]
        self.client().post("/v3/kv/txn", {"success": puts})


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Asked:
    """A request as the audit log has it. `stage` is ResponseStarted (a watch's) or ...Complete."""

    id: str
    stage: str
    verb: str
    resource: str
    params: dict[str, str]
    agent: str
    status: int
    credential: str


class KubeApiServer(Server):
    """One API server of a cluster, as kubeadm would start it, on all addresses of its namespace."""

    healthy = "/readyz"

    def __init__(self, plane: ControlPlane, port: int, *options: str) -> None:
        super().__init__(plane, f"apiserver-{port}", port, "admin.pem")
        ca, own = plane.secrets / "ca.crt", plane.secrets / "server.pem"
        self.command = [
            str(plane.binaries / "kube-apiserver"),
            f"--secure-port={port}",
            "--bind-address=::",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--etcd-servers={plane.etcd.url}",
            f"--etcd-cafile={ca}",
            f"--etcd-certfile={own}",
            f"--etcd-keyfile={own}",
            f"--client-ca-file={ca}",
            f"--tls-cert-file={own}",
            f"--tls-private-key-file={own}",
            f"--token-auth-file={plane.secrets}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={own}",
            f"--service-account-signing-key-file={own}",
            f"--service-cluster-ip-range={SERVICE_RANGES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--audit-policy-file={plane.secrets}/audit.yaml",
            f"--audit-log-path={self.directory}/audit.log",
            "--audit-log-mode=blocking",
            *options,
        ]

    def asked(self, node: str) -> list[Asked]:
        """All requests of a node so far, in their order."""
        path = self.directory / "audit.log"
        lines = path.read_text().splitlines() if path.exists() else ()
        events = [json.loads(line) for line in lines]
        return [
            _asked(event) for event in events if event["user"]["username"] == f"system:node:{node}"
        ]


def _asked(event: dict[str, Any]) -> Asked:
    credentials = event["user"].get("extra", {}).get("authentication.kubernetes.io/credential-id")
    return Asked(
        id=event["auditID"],
        stage=event["stage"],
        verb=event["verb"],
        resource=event.get("objectRef", {}).get("resource", ""),
        params=dict(parse_qsl(urlsplit(event["requestURI"]).query)),
        agent=event.get("userAgent", ""),
        status=event.get("responseStatus", {}).get("code", 0),
        credential=credentials[0] if credentials else "",
    )
