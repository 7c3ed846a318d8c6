"""A real kube-apiserver, as kubeadm would start it, and what its audit log says of a node."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.cluster.etcd import Etcd
from tests.cluster.pki import ClusterPki, write_signing_key
from tests.cluster.rest import NO_ANSWER, Client, HttpError
from tests.support.netns import Namespace
from tests.support.waiting import eventually

SERVICE_RANGES = "10.231.0.0/16,fd00:231::/108"

# A node that has tokens; the server reads them once, when it starts.
TOKEN_NODE = "token-node"
TOKENS = ("first-token-5c2b0c", "second-token-e1f7a9")

# Each request of a node about what the agent follows, when it begins and when it ends.
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: [system:nodes]
- level: None
"""


@dataclass(frozen=True)
class Asked:
    """A request as the audit log has it. `stage` is ResponseStarted (a watch's) or ...Complete."""

    id: str
    stage: str
    verb: str
    resource: str
    params: dict[str, str]
    user: str
    agent: str
    status: int
    credential: str


@dataclass(frozen=True)
class Secrets:
    """What all API servers of a cluster share."""

    pki: ClusterPki
    directory: Path

    def write(self, names: list[str]) -> None:
        """Writes everything once."""
        self.directory.mkdir()
        self.pki.write_ca(self.directory / "ca.crt")
        self.pki.write_server(self.directory / "apiserver.pem", names)
        self.pki.write_client(self.directory / "admin.pem", "kubernetes-admin", "system:masters")
        write_signing_key(self.directory / "sa.key")
        (self.directory / "audit.yaml").write_text(_AUDIT_POLICY)
        lines = [f'{token},system:node:{TOKEN_NODE},uid,"system:nodes"' for token in TOKENS]
        (self.directory / "tokens.csv").write_text("\n".join(lines) + "\n")

    def path(self, name: str) -> str:
        """Where one of the files is."""
        return str(self.directory / name)


class KubeApiServer:
    """One API server of a cluster, on all addresses of its namespace."""

    def __init__(
        self, program: Path, namespace: Namespace, directory: Path, etcd: Etcd, secrets: Secrets
    ) -> None:
        self._program, self._namespace = program, namespace
        self._etcd, self._secrets = etcd, secrets
        self.port = 0
        self.directory = directory
        directory.mkdir()
        self.options: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Client:
        """A client with all rights."""
        admin = Path(self._secrets.path("admin.pem"))
        return Client(self._namespace, f"https://127.0.0.1:{self.port}", self._secrets.pki, admin)

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        with (self.directory / "kube-apiserver.log").open("ab") as log:
            self._process = self._namespace.popen(self._command(), stdout=log, stderr=log)
        eventually(self._ready, f"{self.directory.name} is ready", timeout=120)

    def kill(self) -> None:
        """Ends it without a word to its clients."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(timeout=15)
        self._process = None

    def send(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def asked(self, node: str) -> list[Asked]:
        """All requests of a node so far, in their order."""
        return [entry for entry in self._audit() if entry.user == f"system:node:{node}"]

    def _audit(self) -> Iterator[Asked]:
        path = self.directory / "audit.log"
        for line in path.read_text().splitlines() if path.exists() else ():
            event = json.loads(line)
            user: dict[str, Any] = event["user"]
            credentials = user.get("extra", {}).get("authentication.kubernetes.io/credential-id")
            yield Asked(
                id=event["auditID"],
                stage=event["stage"],
                verb=event["verb"],
                resource=event.get("objectRef", {}).get("resource", ""),
                params=dict(parse_qsl(urlsplit(event["requestURI"]).query)),
                user=user["username"],
                agent=event.get("userAgent", ""),
                status=event.get("responseStatus", {}).get("code", 0),
                credential=credentials[0] if credentials else "",
            )

    def _ready(self) -> bool:
        assert self._process is not None
        log = self.directory / "kube-apiserver.log"
        assert self._process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            return self.client().text("GET", "/readyz") == "ok"
        except (HttpError, *NO_ANSWER):
            return False

    def _command(self) -> list[str]:
        path = self._secrets.path
        return [
            str(self._program),
            f"--secure-port={self.port}",
            "--bind-address=::",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--etcd-servers={self._etcd.url}",
            f"--etcd-cafile={self._etcd.ca}",
            f"--etcd-certfile={self._etcd.certificate}",
            f"--etcd-keyfile={self._etcd.certificate}",
            f"--client-ca-file={path('ca.crt')}",
            f"--tls-cert-file={path('apiserver.pem')}",
            f"--tls-private-key-file={path('apiserver.pem')}",
            f"--token-auth-file={path('tokens.csv')}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={path('sa.key')}",
            f"--service-account-signing-key-file={path('sa.key')}",
            f"--service-cluster-ip-range={SERVICE_RANGES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--audit-policy-file={path('audit.yaml')}",
            f"--audit-log-path={self.directory / 'audit.log'}",
            "--audit-log-mode=blocking",
            *self.options,
        ]
