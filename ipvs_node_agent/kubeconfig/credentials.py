"""The node's credentials: a kubeconfig and the files it names, loaded whole or not at all.

The certificate, key and CA go into one SSLContext at once, so that a rotation that breaks the files
afterwards cannot break connections: what was loaded stays good while the certificate is valid.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import urllib3
from urllib3.util.ssl_ import create_urllib3_context

from ipvs_node_agent.kubeconfig import urls
from ipvs_node_agent.kubeconfig.connections import pool
from ipvs_node_agent.kubeconfig.reader import File, Reader, Settings, refused

_NODE_USER = "system:node:"
# X509_V_FLAG_PARTIAL_CHAIN, which ssl names since Python 3.10.
_PARTIAL_CHAIN = 0x80000


@dataclass(frozen=True)
class Credentials:
    """How to reach the API server, and as whom.

    `headers` gives what to send along with a request made now; `pool` opens the connections, and
    `address` is where to. `warning` says what makes them unsafe, if anything does. The rest is as
    in `Settings`.
    """

    server: str
    user: str | None
    headers: Callable[[], Mapping[str, str]]
    pool: urllib3.PoolManager
    address: tuple[str, int]
    warning: str
    short_lived: bool
    valid: tuple[float, float] | None = None

    @property
    def node_name(self) -> str | None:
        """The Node that the client certificate was made out to, None where to something else."""
        user = self.user or ""
        return user[len(_NODE_USER) :] if user.startswith(_NODE_USER) else None


def load_credentials(reader: Reader) -> Credentials:
    """The credentials in its kubeconfig. Raises RefusedError with what is wrong."""
    settings = reader.read()

    def headers() -> Mapping[str, str]:
        return reader.read().headers if settings.short_lived else settings.headers

    return Credentials(
        settings.server,
        settings.user,
        headers,
        pool(settings, _ssl_context(reader.path, settings)),
        urls.parse(settings.proxy or settings.server, "https", "http").address,
        _warning(settings),
        settings.short_lived,
        settings.valid,
    )


def _warning(settings: Settings) -> str:
    danger = "an attacker on the network path can steer this node's traffic"
    if not settings.server.startswith("https://"):
        return f"the API server {settings.server} is asked without TLS: {danger}"
    if settings.verify:
        return ""
    # Said once, and better, by the one that is given here.
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return (
        f"the certificate of the API server {settings.server} is not verified"
        f" (insecure-skip-tls-verify): {danger}"
    )


def _ssl_context(kubeconfig: Path, settings: Settings) -> ssl.SSLContext:
    loading = settings.authority.name if settings.authority else ""
    try:
        # Verifies the certificate and, in one way or another by version, the host name in it.
        context: ssl.SSLContext = create_urllib3_context()
        if settings.authority:
            # By path, as only so OpenSSL passes over what people write between certificates.
            with _in_memory(settings.authority) as path:
                context.load_verify_locations(cafile=path)
        else:
            context.load_default_certs()
        # On by default since Python 3.13, it refuses CAs without key identifiers, as older
        # clusters have them; Go's and so Kubernetes' own clients take those.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        # They also trust each certificate of a CA file, be it an intermediate one.
        context.verify_flags |= _PARTIAL_CHAIN
        if not settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if settings.certificate:
            # Without a file of its own, the key has to be in the certificate's.
            key = settings.key or settings.certificate
            loading = " and ".join(dict.fromkeys((settings.certificate.name, key.name)))
            with _in_memory(settings.certificate) as cert_path, _in_memory(key) as key_path:
                # An empty password, as otherwise OpenSSL would ask for one on the terminal.
                context.load_cert_chain(cert_path, key_path, password=lambda: "")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise refused(kubeconfig, f"cannot load {loading}: {why}") from None
    return context


@contextmanager
def _in_memory(file: File) -> Iterator[str]:
    """A path to `file` as it was read: OpenSSL takes certificates and keys by path only."""
    with open(os.memfd_create("credentials"), "w+b", buffering=0) as memory:
        memory.write(file.data)
        yield f"/proc/self/fd/{memory.fileno()}"
