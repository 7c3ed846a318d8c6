"""The node's credentials: a kubeconfig and the files it names, loaded whole or not at all.

The `kubernetes` package reads the kubeconfig. The certificate, key and CA go into one SSLContext at
once, so that a rotation that breaks the files afterwards cannot break connections: what was loaded
stays good for as long as the certificate is valid.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import urllib3
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_kube_config
from urllib3.util.ssl_ import create_urllib3_context

from ipvs_node_agent.errors import RefusedError

_FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_NODE_USER = "system:node:"

# A connection whose peer vanished is given up within 45 s, so that its watch is replaced within 60.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 25),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 45_000),
]

Fingerprint = tuple[tuple[str, Optional[tuple[int, int, int]]], ...]


@dataclass(frozen=True)
class Credentials:
    """How to reach the API server, and as whom.

    `user` is the CN of the client certificate, None without one; `headers` gives what to send along
    with a request made now; `pool` opens the connections.
    """

    server: str
    user: str | None
    headers: Callable[[], Mapping[str, str]]
    pool: urllib3.PoolManager

    @property
    def node_name(self) -> str | None:
        """The Node that the client certificate was made out to, None where to something else."""
        if self.user is None or not self.user.startswith(_NODE_USER):
            return None
        return self.user[len(_NODE_USER) :]


def load_credentials(path: Path) -> Credentials:
    """The credentials in the kubeconfig at `path`. Raises RefusedError with what is wrong."""
    # Older versions of the package would take localhost where the file names no server.
    configuration = Configuration(host="")
    try:
        document = _document(path)
        load_kube_config(  # type: ignore[no-untyped-call]  # its module has no types
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
    except OSError as error:
        why = error.strerror or str(error)
        if error.filename not in (None, str(path)):
            raise _refused(path, f"cannot read {error.filename}: {why}") from None
        raise _refused(path, why, "is this node's kubelet set up?") from None
    except (yaml.YAMLError, RecursionError):
        raise _refused(path, "is no YAML") from None
    # The package meets a malformed file with whatever its code runs into first.
    except (ConfigException, LookupError, TypeError, ValueError, AttributeError) as error:
        # It may show a whole entry, with token and key.
        why = str(error).partition("{")[0]
        raise _refused(path, f"is no usable kubeconfig: {why}") from None
    if not isinstance(document, dict) or not configuration.host:
        raise _refused(path, "names no server")
    if not all(
        value.isascii() and value.isprintable() for value in _headers(configuration).values()
    ):
        raise _refused(path, "its token has characters that no HTTP header can carry")
    context = _ssl_context(path, configuration)
    pool = urllib3.PoolManager(
        maxsize=4,
        retries=False,
        ssl_context=context,
        # Debian's urllib3 1.26 would set it to required in the context otherwise.
        cert_reqs=context.verify_mode,
        socket_options=_SOCKET_OPTIONS,
    )
    return Credentials(
        server=str(configuration.host),
        user=_common_name(configuration.cert_file) if configuration.cert_file else None,
        headers=lambda: _headers(configuration),
        pool=pool,
    )


def fingerprint(path: Path) -> Fingerprint:
    """Changes whenever the kubeconfig at `path`, or a file that it names, becomes another one."""
    own = _identity(str(path))
    return tuple((name, _identity(name)) for name in (str(path), *_files_named_in(path, own)))


def host_name() -> str:
    """The name that a kubelet gives its Node unless told otherwise: the lower-cased host name."""
    return socket.gethostname().strip().lower()


def _document(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# Looked at every second, and parsing YAML takes longer than all the rest of an idle second.
@functools.lru_cache(maxsize=4)
def _files_named_in(path: Path, identity: tuple[int, int, int] | None) -> tuple[str, ...]:
    try:
        return tuple(sorted(set(_named_files(_document(path), path.parent))))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return ()


def _named_files(document: Any, base: Path) -> Iterator[str]:
    """Every path under one of the keys that hold paths; relative ones start at the kubeconfig."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in _FILE_KEYS and isinstance(value, str):
                yield os.path.join(base, value)
            else:
                yield from _named_files(value, base)
    elif isinstance(document, list):
        for value in document:
            yield from _named_files(value, base)


def _identity(name: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _ssl_context(path: Path, configuration: Any) -> ssl.SSLContext:
    loading = configuration.ssl_ca_cert
    try:
        # Verifies the certificate and, in one way or another by version, the host name in it.
        context: ssl.SSLContext = create_urllib3_context()
        if configuration.ssl_ca_cert:
            context.load_verify_locations(cafile=configuration.ssl_ca_cert)
        else:
            context.load_default_certs()
        # On by default since Python 3.13, it refuses CAs without key identifiers, as older
        # clusters have them; Go's and so Kubernetes' own clients take those.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.cert_file:
            named = filter(None, (configuration.cert_file, configuration.key_file))
            loading = " and ".join(dict.fromkeys(named))
            # An empty password, as otherwise OpenSSL would ask for one on the terminal.
            context.load_cert_chain(
                configuration.cert_file, configuration.key_file, password=lambda: ""
            )
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise _refused(path, f"cannot load {loading}: {why}") from None
    return context


def _common_name(cert_file: str) -> str | None:
    try:
        subject = x509.load_pem_x509_certificate(Path(cert_file).read_bytes()).subject
    except (OSError, ValueError):
        return None
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _headers(configuration: Any) -> Mapping[str, str]:
    settings: dict[str, Any] = configuration.auth_settings()
    # A token file ends in a newline, which no header takes.
    return {
        setting["key"]: str(setting["value"]).strip()
        for setting in settings.values()
        if setting["in"] == "header" and setting["value"]
    }


def _refused(path: Path, why: str, hint: str = "") -> RefusedError:
    return RefusedError(f"kubeconfig {path}", why, hint)
