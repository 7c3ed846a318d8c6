"""Reads a kubeconfig with the `kubernetes` package, in a process of its own.

The package takes 30 MB and half a second to import, and is needed for a moment only: at the start
and when the credentials change. `read` starts such a process and gives what it found; `main` is
what runs in there. What passes between the two is one line of JSON in a pipe.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipvs_node_agent import ownprocess
from ipvs_node_agent.errors import RefusedError

# An exec plugin may ask some server for a token, and a busy node takes long to import the package.
_TIME_LIMIT = 120
_PLUGIN_KEYS = ("exec", "auth-provider")


@dataclass(frozen=True)
class File:
    """A file that the kubeconfig names, or the data it holds in its place."""

    name: str
    text: str = dataclasses.field(repr=False)


@dataclass(frozen=True)
class Settings:
    """What a kubeconfig says, files and all.

    `user` is the CN of the client certificate, and `valid` its first and last second since the
    epoch, None without one. `headers` have to be read again
    for each request where they are `short_lived`. `server_name` is what the server's certificate
    has to be made out to, None for the host in `server`; `proxy` may hold a password.
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
    proxy: str | None = dataclasses.field(repr=False)
    valid: tuple[float, float] | None = None


def read(path: Path) -> Settings:
    """What the kubeconfig at `path` says. Raises RefusedError with what is wrong."""
    try:
        # A node that has not joined its cluster yet is asked for long: without a process each time.
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    # It may name a program, which would run as this user.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise refused(path, "others than its owner can write it", f"chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        why = f"belongs to user {status.st_uid}, who could change it"
        raise refused(path, why, f"chown root {path}")
    return _read_elsewhere(path)


def _read_elsewhere(path: Path) -> Settings:
    try:
        done = subprocess.run(  # noqa: S603  (no shell, and nothing from outside but a path)
            ownprocess.command("kubeconfigreader", os.path.abspath(path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIME_LIMIT,
            check=False,
        )
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise refused(path, f"was not read within {_TIME_LIMIT} s", "a slow exec plugin?") from None
    except OSError as error:
        raise refused(path, f"no process to read it: {error.strerror}") from None
    except ValueError:
        raise refused(path, f"its reader ended with status {done.returncode}") from None
    if "why" in said:
        raise refused(path, said["why"], said["hint"])
    files = {name: File(**said[name]) for name in ("authority", "certificate", "key") if said[name]}
    said["valid"] = tuple(said["valid"]) if said["valid"] else None
    return Settings(**{**said, **files})


def refused(path: Path, why: str, hint: str = "") -> RefusedError:
    """The error that the kubeconfig at `path` gives."""
    return RefusedError(f"kubeconfig {path}", why, hint)


def _unreadable(path: Path, error: OSError) -> RefusedError:
    denied = isinstance(error, PermissionError)
    hint = "run it as root" if denied else "is this node's kubelet set up?"
    return refused(path, error.strerror or str(error), hint)


def main(path: str) -> None:
    """Prints what the kubeconfig at `path` says, or why it cannot be used."""
    # What the package, or a plugin that it starts, prints must not get in between.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        said = dataclasses.asdict(settings(Path(path)))
    except RefusedError as error:
        said = {"why": error.why, "hint": error.hint}
    with output:
        json.dump(said, output)


def settings(path: Path) -> Settings:
    """What the kubeconfig at `path` says, read in this process. Raises RefusedError."""
    import yaml
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_kube_config

    from ipvs_node_agent import yamlloader

    # Older versions of the package would take localhost where the file names no server.
    configuration: Any = Configuration(host="")
    try:
        document = yamlloader.load(path.read_text(encoding="utf-8"))
        load_kube_config(  # type: ignore[no-untyped-call]  # its module has no types
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
        certificate = _file(configuration.cert_file)
        found = Settings(
            server=str(configuration.host or ""),
            verify=bool(configuration.verify_ssl),
            user=_common_name(certificate) if certificate else None,
            valid=_validity(certificate) if certificate else None,
            headers=_headers(configuration),
            short_lived=any(key in _current(document, "user") for key in _PLUGIN_KEYS),
            authority=_file(configuration.ssl_ca_cert),
            certificate=certificate,
            key=_file(configuration.key_file),
            # Older versions of the package read neither of these.
            server_name=_current(document, "cluster").get("tls-server-name"),
            proxy=_current(document, "cluster").get("proxy-url"),
        )
    except OSError as error:
        why = error.strerror or str(error)
        if error.filename not in (None, str(path)):
            hint = "run it as root" if isinstance(error, PermissionError) else ""
            raise refused(path, f"cannot read {error.filename}: {why}", hint) from None
        raise _unreadable(path, error) from None
    except (yaml.YAMLError, RecursionError):
        raise refused(path, "is no YAML") from None
    # The package meets a malformed file with whatever its code runs into first.
    except (ConfigException, LookupError, TypeError, ValueError, AttributeError) as error:
        # It may show a whole entry, with token and key.
        why = str(error).partition("{")[0]
        raise refused(path, f"is no usable kubeconfig: {why}") from None
    if not isinstance(document, dict) or not found.server:
        raise refused(path, "names no server")
    if not all(value.isascii() and value.isprintable() for value in found.headers.values()):
        raise refused(path, "its token has characters that no HTTP header can carry")
    if found.short_lived and not (found.headers or found.certificate):
        # Some versions of the package go on without, as nobody.
        raise refused(path, "its exec plugin gave no credentials", "does it run by hand?")
    if not isinstance(found.server_name, (str, type(None))):
        raise refused(path, "its tls-server-name is no text")
    if found.proxy and not re.fullmatch(r"http://[^/?#\s]+/?", str(found.proxy)):
        # Not shown, as it may hold a password.
        raise refused(path, "its proxy-url is not of the form http://HOST:PORT", "no other works")
    return found


def _file(name: str | None) -> File | None:
    # What is no text cannot be PEM, and is refused as such when it is used.
    return File(name, Path(name).read_text(encoding="ascii", errors="replace")) if name else None


def _common_name(certificate: File) -> str | None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        subject = x509.load_pem_x509_certificate(certificate.text.encode()).subject
    except ValueError:
        return None
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _validity(certificate: File) -> tuple[float, float] | None:
    from datetime import timezone

    from cryptography import x509

    try:
        parsed: Any = x509.load_pem_x509_certificate(certificate.text.encode())
    except ValueError:
        return None
    # The first came with cryptography 42; the second, which has no time zone, goes away.
    dates = [
        getattr(parsed, f"not_valid_{end}_utc", None)
        or getattr(parsed, f"not_valid_{end}").replace(tzinfo=timezone.utc)
        for end in ("before", "after")
    ]
    return dates[0].timestamp(), dates[1].timestamp()


def _headers(configuration: Any) -> dict[str, str]:
    settings: dict[str, Any] = configuration.auth_settings()
    # A token file ends in a newline, which no header takes.
    return {
        setting["key"]: str(setting["value"]).strip()
        for setting in settings.values()
        if setting["in"] == "header" and setting["value"]
    }


def _current(document: Any, kind: str) -> dict[str, Any]:
    """The `user` or `cluster` of the current context; empty where it names none."""
    contexts = {entry["name"]: entry["context"] for entry in document["contexts"]}
    name = contexts[document["current-context"]].get(kind)
    named = (entry[kind] for entry in document.get(f"{kind}s") or () if entry["name"] == name)
    return next(named, None) or {}
