"""A real etcd with TLS, for one cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.pki import ClusterPki
from tests.cluster.rest import NO_ANSWER, Client, HttpError
from tests.support.netns import Namespace
from tests.support.waiting import eventually

_CLIENTS, _PEERS = 2379, 2380


class Etcd:
    """One member, in a namespace and a directory of its own."""

    def __init__(self, program: Path, namespace: Namespace, directory: Path) -> None:
        self._program, self._namespace, self._directory = program, namespace, directory
        directory.mkdir()
        self._pki = ClusterPki()
        self.url = f"https://127.0.0.1:{_CLIENTS}"
        self.ca = directory / "ca.crt"
        self.certificate = directory / "member.pem"
        self._pki.write_ca(self.ca)
        self._pki.write_server(self.certificate, ["127.0.0.1", "localhost"])
        self._client = Client(namespace, self.url, self._pki, self.certificate)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        tls = [
            f"--{prefix}{option}"
            for prefix in ("", "peer-")
            for option in (
                f"cert-file={self.certificate}",
                f"key-file={self.certificate}",
                f"trusted-ca-file={self.ca}",
                "client-cert-auth",
            )
        ]
        peer = f"https://127.0.0.1:{_PEERS}"
        command = [
            str(self._program),
            f"--data-dir={self._directory / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            *tls,
        ]
        with (self._directory / "etcd.log").open("ab") as log:
            self._process = self._namespace.popen(command, stdout=log, stderr=log)
        eventually(self._answers, "etcd answers", timeout=60)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=15)
            self._process = None

    def compact(self) -> None:
        """Forgets all history up to now (etcd's gateway, v3/kv/compaction)."""
        revision = int(self._client.post("/v3/kv/range", {"key": "AA=="})["header"]["revision"])
        self._client.post("/v3/kv/compaction", {"revision": revision, "physical": True})

    def _answers(self) -> bool:
        assert self._process is not None
        log = self._directory / "etcd.log"
        assert self._process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            return bool(self._client.text("GET", "/health"))
        except (HttpError, *NO_ANSWER):
            return False
