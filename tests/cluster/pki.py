"""A cluster's certificates, and a node's own ones as the kubelet keeps and rotates them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.pki import Pki, point_to, write_private

_serial = itertools.count(1)


class ClusterPki(Pki):
    """A cluster's certificate authority, which also issues what servers need."""

    def write_server(self, path: Path, names: Sequence[str]) -> None:
        """Writes a server's certificate and key into one file; it may be a client's as well."""
        leaf = self._ca.issue_cert(*names)
        certificates = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        write_private(path, (certificates + leaf.private_key_pem.bytes()).decode())


def write_signing_key(path: Path) -> None:
    """Writes a key that tokens of service accounts can be signed with."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    write_private(path, pem.decode())


class KubeletCertificate:
    """kubelet-client-current.pem: a symlink to a dated file with certificate and key, mode 0600."""

    def __init__(self, pki: Pki, directory: Path, node: str) -> None:
        self._pki, self._node = pki, node
        directory.mkdir(parents=True)
        self.path = directory / "kubelet-client-current.pem"

    def rotate(self, lifetime: timedelta = timedelta(hours=1)) -> str:
        """Puts a new certificate in place, and gives the name that the API server has for it."""
        now = datetime.now(timezone.utc)
        dated = self._dated(now)
        self._pki.write_node_client(dated, self._node, now + lifetime)
        point_to(self.path, dated)
        return credential_id(dated)

    def break_off(self) -> None:
        """Rotates to a file that was cut off within the key."""
        whole = self.path.read_text()
        dated = self._dated(datetime.now(timezone.utc))
        write_private(dated, whole[: len(whole) - 200])
        point_to(self.path, dated)

    def _dated(self, now: datetime) -> Path:
        # Two of one second would share a name; the kubelet never is that fast.
        stamp = f"{now:%Y-%m-%d-%H-%M-%S}-{next(_serial)}"
        return self.path.with_name(f"kubelet-client-{stamp}.pem")


def credential_id(path: Path) -> str:
    """How the API server's audit log names the certificate in `path`."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return f"X509SHA256={certificate.fingerprint(hashes.SHA256()).hex()}"
