"""Certificates and kubeconfigs as kubeadm leaves them on a node."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import trustme
from cryptography import x509

# X509_V_FLAG_NO_CHECK_TIME: Kubernetes looks at the dates itself, and answers 401 where
# a failed handshake would tell the client nothing.
_IGNORE_DATES = 0x200000


class Pki:
    """A certificate authority and what it issues."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self._of_servers: dict[tuple[str, ...], trustme.LeafCert] = {}

    @property
    def ca_pem(self) -> str:
        """The authority's own certificate."""
        return self._ca.cert_pem.bytes().decode()

    def server_context(self, names: Sequence[str]) -> ssl.SSLContext:
        """TLS for a server of these names and addresses; clients may show a certificate.

        Servers of the same names share one, as to make a key takes up to half a second.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = tuple(names)
        if key not in self._of_servers:
            self._of_servers[key] = self._ca.issue_cert(*names)
        self._of_servers[key].configure_cert(context)
        self._ca.configure_trust(context)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags(_IGNORE_DATES)
        return context

    def client_context(self, client_pem: Path | None = None) -> ssl.SSLContext:
        """TLS for a client that trusts the authority and may show a certificate."""
        context = ssl.create_default_context(cadata=self.ca_pem)
        if client_pem:
            context.load_cert_chain(client_pem)
        return context

    def write_ca(self, path: Path) -> None:
        """Write the authority's certificate."""
        write_private(path, self.ca_pem)

    def write_node_client(self, path: Path, node: str, not_after: datetime | None = None) -> int:
        """Write a node's certificate and key into one file; returns the serial number."""
        return self.write_client(path, f"system:node:{node}", "system:nodes", not_after)

    def write_client(
        self, path: Path, user: str, group: str, not_after: datetime | None = None
    ) -> int:
        """Write a client's certificate and key into one file; returns the serial number."""
        leaf = self._ca.issue_cert(
            "client", common_name=user, organization_name=group, not_after=not_after
        )
        _write_leaf(path, leaf)
        return x509.load_pem_x509_certificate(path.read_bytes()).serial_number

    def write_server(self, path: Path, names: Sequence[str]) -> None:
        """Write a server's certificate and key into one file; it may be a client's as well."""
        _write_leaf(path, self._ca.issue_cert(*names))

    def write_kubeconfig(self, path: Path, url: str, client_pem: Path) -> None:
        """Write a kubeconfig that names one file for both certificate and key."""
        authority = base64.b64encode(self.ca_pem.encode()).decode()
        _write_kubeconfig(
            path,
            cluster=[f"certificate-authority-data: {authority}", f"server: {url}"],
            user=[
                f"client-certificate: {client_pem.absolute()}",
                f"client-key: {client_pem.absolute()}",
            ],
            user_name="default-auth",
        )


def _write_leaf(path: Path, leaf: trustme.LeafCert) -> None:
    certificates = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    write_private(path, (certificates + leaf.private_key_pem.bytes()).decode())


def plain_kubeconfig(path: Path, url: str, node: str) -> None:
    """Write a kubeconfig for a server without TLS, which asks for no credentials."""
    _write_kubeconfig(path, [f"server: {url}"], [], f"system:node:{node}")


def point_to(link: Path, dated: Path) -> None:
    """Removes a symlink and renames one to `dated` into place, as the kubelet rotates."""
    updated = link.with_name("kubelet-client-updated.pem")
    updated.symlink_to(dated.name)
    link.unlink(missing_ok=True)
    updated.replace(link)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _write_kubeconfig(path: Path, cluster: list[str], user: list[str], user_name: str) -> None:
    lines = [
        "apiVersion: v1",
        "clusters:",
        "- cluster:",
        *(f"    {line}" for line in cluster),
        "  name: default-cluster",
        "contexts:",
        "- context:",
        "    cluster: default-cluster",
        "    namespace: default",
        f"    user: {user_name}",
        "  name: default-context",
        "current-context: default-context",
        "kind: Config",
        "preferences: {}",
        "users:",
        f"- name: {user_name}",
        *(["  user:", *(f"    {line}" for line in user)] if user else ["  user: {}"]),
    ]
    write_private(path, "\n".join(lines) + "\n")
