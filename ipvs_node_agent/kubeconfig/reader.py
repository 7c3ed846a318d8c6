"""Reads a kubeconfig with the `kubernetes` package, in a process of its own.

The package takes 30 MB and half a second to import, and is needed for a moment only: at the start
and when the credentials change. So a `Reader` starts a process, where `main` runs, and gives what
it says: one line of JSON in a pipe.

The package is asked what headers say who the user is, and no more than that: it writes certificates
and keys that the kubeconfig or a program gives into temporary files, and opens files that never
end. Where only a certificate says who, as on most nodes, there is nothing to ask it.
"""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TypeVar

from ipvs_node_agent.config import regularfile
from ipvs_node_agent.config.regularfile import Unfit
from ipvs_node_agent.errors import RefusedError, one_line
from ipvs_node_agent.kubeconfig import installers, urls
from ipvs_node_agent.kubeconfig.contents import (
    Fingerprint,
    content,
    current,
    fingerprint,
    flag,
    named_file,
    text,
)
from ipvs_node_agent.processes import isolated
from ipvs_node_agent.processes.isolated import Child

# An exec plugin may ask some server for a token, and a busy node takes long to import the package.
_TIME_LIMIT = 120
_PLUGIN_KEYS = ("exec", "auth-provider")
# What the package makes a header of.
_HEADER_KEYS = ("token", "username", "password", "auth-provider")

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file that the kubeconfig names, or the data it holds in its place: a character a byte."""

    name: str
    text: str = dataclasses.field(repr=False)

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return self.text.encode("latin-1")


@dataclass(frozen=True)
class Settings:
    """What a kubeconfig says, files and all.

    `server` and `proxy` are URLs that hold no password. `user` is the CN of the client certificate,
    and `valid` its first and last second since the epoch, None without one. `headers` have to be
    read again for each request where they are `short_lived`. `server_name` is what the server's
    certificate has to be made out to, None for the host in `server`.
    """

    server: str
    verify: bool
    user: str | None
    headers: dict[str, str] = dataclasses.field(repr=False)
    short_lived: bool
    authority: File | None
    certificate: File | None
    key: File | None
    server_name: str | None
    proxy: str | None
    proxy_authorization: str | None = dataclasses.field(repr=False)
    valid: tuple[float, float] | None = None


class MissingError(RefusedError):
    """A kubeconfig, or a file that it names, is not there."""


def refused(path: Path, why: str, hint: str = "", missing: bool = False) -> RefusedError:
    """The error that the kubeconfig at `path` gives."""
    return (MissingError if missing else RefusedError)(f"kubeconfig {path}", why, hint)


class Reader:
    """Reads the kubeconfig at `path` for several threads, of which never two read at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Nothing is waited for with it.
        self._lock = threading.Lock()
        self._reading: tuple[Fingerprint, Future[Settings]] | None = None
        # The latest; to end one that is over does nothing.
        self._child: Child | None = None
        self._closed = False

    def read(self) -> Settings:
        """What the kubeconfig says. Raises RefusedError with what is wrong.

        Who asks while it is being read gets the same answer, if the files are still the same.
        """
        while True:
            files = fingerprint(self.path)
            with self._lock:
                if self._reading is None:
                    mine: Future[Settings] = Future()
                    self._reading = files, mine
                    break
                of, other = self._reading
            wait([other])
            self._forget(other)
            if of == files:
                return other.result()
        self._read_into(mine)
        self._forget(mine)
        return mine.result()

    def begin(self) -> None:
        """Reads it in the background for whoever asks first, while the files are still the same."""
        mine: Future[Settings] = Future()
        self._reading = fingerprint(self.path), mine
        threading.Thread(target=self._read_into, args=(mine,), daemon=True).start()

    def _read_into(self, mine: Future[Settings]) -> None:
        try:
            mine.set_result(self._read())
        except BaseException as error:
            mine.set_exception(error)

    def _forget(self, read: Future[Settings]) -> None:
        """Has the next one read the file again."""
        with self._lock:
            if self._reading is not None and self._reading[1] is read:
                self._reading = None

    def close(self) -> None:
        """Ends the reading under way, with every program that it started, and all later ones."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.end()

    def _read(self) -> Settings:
        if self._closed:
            raise self._refused_for_good()
        # A node that has not joined yet is asked for long: without a process each time.
        with _refusing(self.path):
            regularfile.check(self.path, self.path.stat(), private=True)
        return self._read_elsewhere()

    def _read_elsewhere(self) -> Settings:
        try:
            with Child(__name__, os.path.abspath(self.path)) as child:
                with self._lock:
                    self._child = child
                    if self._closed:
                        child.end()
                said = json.loads(child.said(_TIME_LIMIT))
        except TimeoutError:
            why = f"was not read within {_TIME_LIMIT} s"
            raise refused(self.path, why, "a slow exec plugin?") from None
        except OSError as error:
            raise refused(
                self.path, f"cannot start a process to read it: {error.strerror}"
            ) from None
        except ValueError:
            if self._closed:
                raise self._refused_for_good() from None
            raise refused(self.path, "the process that reads it ended without a result") from None
        if "why" in said:
            raise refused(self.path, **said)
        for name in ("authority", "certificate", "key"):
            said[name] = said[name] and File(**said[name])
        said["valid"] = said["valid"] and tuple(said["valid"])
        return Settings(**said)

    def _refused_for_good(self) -> RefusedError:
        return refused(self.path, "the agent has stopped reading it")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Has what is wrong with the file meanwhile be a RefusedError."""
    try:
        yield
    except OSError as error:
        denied = isinstance(error, PermissionError)
        missing = isinstance(error, FileNotFoundError)
        other = installers.elsewhere() if missing else ""
        hint = f"set kubeconfig: {other}" if other else "is this node's kubelet set up?"
        hint = "run it as root" if denied else hint
        raise refused(path, error.strerror or str(error), hint, missing) from None
    except Unfit as error:
        raise refused(path, error.why, error.hint, error.missing) from None


def main(leash: str, path: str) -> None:
    """Prints what the kubeconfig at `path` says, or why it cannot be used."""
    isolated.follow(leash)
    # What the package, or a plugin that it starts, prints must not get in between.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        said = dataclasses.asdict(settings(Path(path)))
    except RefusedError as error:
        said = {"why": error.why, "hint": error.hint, "missing": isinstance(error, MissingError)}
    with output:
        json.dump(said, output)


def settings(path: Path) -> Settings:
    """What the kubeconfig at `path` says, read in this process. Raises RefusedError."""
    with _refusing(path):
        return _settings(regularfile.read(path, private=True), path.parent)


def _settings(data: bytes, base: Path) -> Settings:
    cluster, user = current(data)
    server = _checked(cluster, "server", urls.server)
    if server is None:
        raise Unfit("names no server")
    proxy, authorization = _checked(cluster, "proxy-url", urls.proxy) or (None, None)
    server_name = _checked(cluster, "tls-server-name", urls.host)
    verify = not flag(cluster, "insecure-skip-tls-verify")
    user = {**user, **_token_in_file(user, base)}
    user = {**user, **_made_by_program(user, cluster, base)}

    def file(entry: Mapping[str, Any], key: str) -> File | None:
        # Without TLS there is nobody to show it to.
        found = None if server.startswith("http:") else content(entry, key, base)
        return File(found[0], found[1].decode("latin-1")) if found else None

    certificate = file(user, "client-certificate")
    name, valid = _certified(certificate.data) if certificate else (None, None)
    headers = _headers(user)
    short_lived = any(key in user for key in _PLUGIN_KEYS)
    if short_lived and not (headers or certificate):
        raise _nothing_made()
    return Settings(
        server=server,
        verify=verify,
        user=name,
        headers=headers,
        short_lived=short_lived,
        authority=file(cluster, "certificate-authority"),
        certificate=certificate,
        key=file(user, "client-key"),
        server_name=server_name,
        proxy=proxy,
        proxy_authorization=authorization,
        valid=valid,
    )


def _checked(cluster: Mapping[str, Any], key: str, read: Callable[[str], T]) -> T | None:
    """What `read` makes of the text under a key, None where there is none."""
    value = text(cluster, key)
    try:
        return read(value) if value else None
    except urls.BadUrl as error:
        raise Unfit(f"its {key} {error}") from None


def _token_in_file(user: Mapping[str, Any], base: Path) -> dict[str, str]:
    given = text(user, "token")
    try:
        found = named_file(user, "tokenFile", base)
    except Unfit:
        # As in client-go, the file counts where both are given and it can be read.
        if not given:
            raise
        found = None
    return {"token": found[1].decode("latin-1").strip()} if found else {}


def _made_by_program(
    user: Mapping[str, Any], cluster: Mapping[str, Any], base: Path
) -> dict[str, str]:
    """What the user's exec plugin gives, under the keys that a user has it."""
    if "exec" not in user or "auth-provider" in user or text(user, "token"):
        return {}
    from kubernetes.config import exec_provider, kube_config

    # Their modules have no types.
    provider: Any = exec_provider.ExecProvider
    node: Any = kube_config.ConfigNode
    # Older versions of the package tell the program nothing of the cluster, and Debian 11's looks
    # for it in the current folder.
    about = {"cwd": str(base), "cluster": node("cluster", dict(cluster))}
    taken = inspect.signature(provider).parameters
    try:
        program = dict(user["exec"])
        if "/" in program["command"]:
            program["command"] = str(base / program["command"])
        options = {key: value for key, value in about.items() if key in taken}
        status = provider(node("exec", program), **options).run()
        made = {
            "token": text(status, "token"),
            "client-certificate-data": _encoded(text(status, "clientCertificateData")),
            "client-key-data": _encoded(text(status, "clientKeyData")),
        }
    # It may fail, and may say anything.
    except Exception:
        raise _nothing_made() from None
    return {key: value for key, value in made.items() if value}


def _nothing_made() -> Unfit:
    return Unfit("its exec plugin gave no credentials", "run it by hand to see why")


def _encoded(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()


def _headers(user: Mapping[str, Any]) -> dict[str, str]:
    """What says who the user is, along with each request."""
    known = {key: user[key] for key in _HEADER_KEYS if user.get(key) is not None}
    return _headers_of(known) if known else {}


def _headers_of(known: dict[str, Any]) -> dict[str, str]:
    """What the package makes of these keys of a user."""
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config_from_dict

    document = {
        "current-context": "only",
        "contexts": [{"name": "only", "context": {"cluster": "only", "user": "only"}}],
        "clusters": [{"name": "only", "cluster": {}}],
        "users": [{"name": "only", "user": known}],
    }
    configuration: Any = Configuration()
    try:
        load_kube_config_from_dict(  # type: ignore[no-untyped-call]  # its module has no types
            document, client_configuration=configuration, persist_config=False
        )
        settings: dict[str, Any] = configuration.auth_settings()
        found = {
            setting["key"]: str(setting["value"])
            for setting in settings.values()
            if setting["in"] == "header" and setting["value"]
        }
    # It, or the auth-provider's library, meets what is malformed with whatever it runs into first.
    except Exception as error:
        # It may show a whole entry, with token and key.
        raise Unfit(f"is not a usable kubeconfig: {str(error).partition('{')[0]}") from None
    if not all(value.isascii() and value.isprintable() for value in found.values()):
        raise Unfit("its token has characters that no HTTP header can carry")
    return found


def _certified(pem: bytes) -> tuple[str | None, tuple[float, float] | None]:
    """The CN in a certificate, and its first and last second since the epoch."""
    from datetime import timezone

    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        parsed: Any = x509.load_pem_x509_certificate(pem)
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        # The first came with cryptography 42; the second, which has no time zone, goes away.
        first, last = [
            getattr(parsed, f"not_valid_{end}_utc", None)
            or getattr(parsed, f"not_valid_{end}").replace(tzinfo=timezone.utc)
            for end in ("before", "after")
        ]
    # What is wrong in it shows at any of these, and OpenSSL says so when it is loaded.
    except Exception:
        return None, None
    name = one_line(str(names[0].value)) if names else None
    return name, (first.timestamp(), last.timestamp())
