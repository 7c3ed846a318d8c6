"""Whatever a kubeconfig and its files hold, nothing but an error of the agent's own comes of it.

An error that nobody expects ends the agent, in whichever thread it comes up. So each boundary to
what reads such files for it (PyYAML, `kubernetes`, `cryptography`, OpenSSL, urllib3, the codec of
host names) is tried with files that are spoilt at any place.
"""

from __future__ import annotations

import base64
import functools
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.config.file import load
from ipvs_node_agent.errors import AgentError, UsageError
from ipvs_node_agent.kubeconfig.contents import fingerprint
from ipvs_node_agent.kubeconfig.reader import Reader, settings
from tests.support.examples import examples
from tests.support.kubeconfigs import SECRET, document
from tests.support.pki import Pki
from tests.support.rawobjects import mapping, mostly, spoilt

# Files


@functools.lru_cache
def pems() -> dict[str, bytes]:
    """What good files hold: a CA, two nodes' certificates with their keys."""
    pki = Pki()
    with tempfile.TemporaryDirectory() as directory:
        found = {"ca": pki.ca_pem.encode()}
        for name in ("one", "two"):
            path = Path(directory) / name
            pki.write_node_client(path, name)
            found[name] = path.read_bytes()
    return found


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A PEM file, most often a node's, with a few of its parts exchanged."""
    data = pems()[draw(st.sampled_from(["one", "one", "one", "two", "ca"]))]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.sampled_from([0, 0, 1, 64, 5000]))
        pieces = [b"", b"\n", b"\0", b"\xff", b"-----BEGIN CERTIFICATE-----\n", b"# caf\xc3\xa9\n"]
        piece = draw(st.sampled_from([*pieces, pems()["two"]]) | st.binary(max_size=8))
        data = data[:start] + piece + data[end:]
    return data


ODD = ("", "a..b", "a\u3002b", "a" * 64, "\ud800", "a\nb", "a\0b", "../..", "/", "fifo", "x" * 300)
text = st.sampled_from(ODD) | st.text(max_size=6)
named = st.sampled_from(["one.pem", "one.pem", "two.pem", "ca.pem", *ODD])
hosts = mostly(st.sampled_from(["api.example.org", "127.0.0.1", "[::1]"]), text)
odd_hosts = st.sampled_from([*ODD, ".a", "a.", "1.2", "a.0x1", "::1", "[::]", "*.a", "xn--a", "-a"])
inline = files().map(lambda data: base64.b64encode(data).decode()) | text


@st.composite
def urls(draw: st.DrawFn, hosts: st.SearchStrategy[str] = hosts) -> str:
    """The URL of a server, or what somebody might take for one."""
    scheme = draw(mostly(st.sampled_from(["https://", "http://"]), text))
    user = draw(mostly(st.just(""), st.sampled_from([f"me:{SECRET}@", f"{SECRET}@", "@", "%ff@"])))
    port = draw(mostly(st.sampled_from(["", ":6443"]), text | st.sampled_from([":", ":0", ":a"])))
    end = draw(mostly(st.sampled_from(["", "/"]), text))
    return f"{scheme}{user}{draw(hosts)}{port}{end}"


cluster = st.fixed_dictionaries(
    {"server": urls()},
    optional={
        "certificate-authority": named,
        "certificate-authority-data": inline,
        "insecure-skip-tls-verify": st.booleans(),
        "tls-server-name": hosts,
        "proxy-url": urls(),
    },
)
user = st.fixed_dictionaries(
    {},
    optional={
        "client-certificate": named,
        "client-certificate-data": inline,
        "client-key": named,
        "client-key-data": inline,
        "token": text | st.just(SECRET),
        "tokenFile": named,
        "username": text,
        "password": text | st.just(SECRET),
        "exec": mapping(apiVersion=text, command=text, args=st.lists(text, max_size=2)),
        "auth-provider": mapping(
            name=st.sampled_from(["oidc", "azure", "none"]), config=mapping(**{"id-token": text})
        ),
    },
)


good = st.builds(lambda cluster, user: document(user, **cluster), cluster, user)
TAGS = (
    *("bool", "int", "float", "binary", "timestamp", "null", "set"),
    *("omap", "pairs", "map", "seq", "str", "python/none", "x"),
)
PIECES = [
    *(f"!!{tag} ".encode() for tag in TAGS),
    *(b"&a ", b"*a ", b"&a {a: *a} ", b"<<: *a\n", b"? ", b"- "),
    *(b"[", b"{", b'"', b"'", b"|", b">", b"\t", b"#", b"\0", b"\xff", b"\xc3", b"\xe2\x80\xa8"),
    *(b"---\n", b"...\n", b"%YAML 9.9\n---\n"),
    *(b"1:1:1.5 ", b"2026-99-99 ", b'"\\UFFFFFFFF" ', b'"\\uD800" ', b"9" * 5000, b"[" * 200),
]


def spliced(draw: st.DrawFn, data: bytes, starts: list[int]) -> bytes:
    """`data` with something else put in at one of `starts`, or in the place of what is there."""
    start = draw(st.sampled_from(starts))
    piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
    return data[:start] + piece + data[start + draw(st.sampled_from([0, 0, 1, 1000])) :]


@st.composite
def kubeconfigs(draw: st.DrawFn) -> bytes:
    """A kubeconfig with a few of its values, and a few pieces of its text, replaced."""
    written = yaml.safe_dump(draw(spoilt(good)), allow_unicode=draw(st.booleans()))
    data = written.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        starts = [place + 1 for place in range(len(data)) if data[place : place + 1] in b" \n"]
        data = spliced(draw, data, [0, *starts])
    return data


def unknown(host: Any, *_: Any, **__: Any) -> Any:
    """No host has an address; what comes before that is done as always."""
    if isinstance(host, str):
        host.encode("idna")
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@contextmanager
def alone() -> Iterator[None]:
    """Nobody is asked for an address, and no other process is started."""
    nothing = mock.patch.object(subprocess, "Popen", side_effect=FileNotFoundError)
    here = mock.patch.object(Reader, "_read_elsewhere", lambda reader: settings(reader.path))
    with nothing, here, mock.patch.object(socket, "getaddrinfo", unknown):
        yield


def loaded_or_refused(kubeconfig: bytes, **pem_files: bytes) -> str:
    """The error that comes of it; shown to be one of the agent's own, and to tell no secret."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kubelet.conf"
        for name, data in pem_files.items():
            (path.parent / f"{name}.pem").write_bytes(data)
        os.mkfifo(path.parent / "fifo")
        path.write_bytes(kubeconfig)
        assert fingerprint(path) == fingerprint(path)
        with alone():
            api = Api(path)
            try:
                credentials = api.credentials()
                shown = f"{credentials.server}{credentials.user or ''}{credentials.warning}"
                assert shown.isprintable()
                assert SECRET not in shown + repr(credentials)
                with api.get("/api", {}, "list services", 1.0):
                    raise AssertionError("somebody answered")
            except AgentError as error:
                said = str(error)
            assert not api.answers()
            api.refresh()
    assert said.isprintable()
    assert SECRET not in said
    return said


@examples(300)
@given(kubeconfig=mostly(kubeconfigs(), st.binary(max_size=40)), one=files())
def test_a_kubeconfig_is_loaded_or_refused(kubeconfig: bytes, one: bytes) -> None:
    loaded_or_refused(kubeconfig, one=one, two=pems()["two"], ca=pems()["ca"])


@examples(200)
@given(
    server=urls(odd_hosts) | urls(),
    proxy=mostly(st.none(), urls(odd_hosts) | urls()),
    name=mostly(st.none(), odd_hosts),
)
def test_whoever_is_to_be_asked_is_or_is_refused(
    server: str, proxy: str | None, name: str | None
) -> None:
    cluster = {"server": server, "proxy-url": proxy, "tls-server-name": name}
    loaded_or_refused(yaml.safe_dump(document({"token": "abc"}, **cluster)).encode())


@examples(200)
@given(
    ca=files(),
    certificate=files(),
    key=files(),
    keys=st.lists(st.sampled_from(["certificate-authority", "client-certificate", "client-key"])),
)
def test_certificates_and_keys_are_loaded_or_refused(
    ca: bytes, certificate: bytes, key: bytes, keys: list[str]
) -> None:
    data = {"certificate-authority": ca, "client-certificate": certificate, "client-key": key}
    entry: dict[str, str] = {f"{k}-data": base64.b64encode(data[k]).decode() for k in keys}
    entry = {**{k: f"{k}.pem" for k in data}, **entry}
    said = loaded_or_refused(yaml.safe_dump(document(entry, **entry)).encode(), **data)
    assert "cannot load" in said or said.endswith("cannot be reached: Name or service not known")


CONFIG = b"""kubeconfig: /etc/kubernetes/kubelet.conf
podCIDRs: [10.240.2.128/25]
chains: {prerouting: A, servicesPerChain: 16}
services:
  externalIPs: true
  allowedExternalCIDRs: [10.0.0.0/8]
driftCheckPeriod: 2s
metricsBindAddress: 127.0.0.1:10273
"""


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    """A configuration with a few pieces of its text replaced."""
    data = CONFIG
    for _ in range(draw(st.integers(1, 3))):
        data = spliced(draw, data, [*range(len(data) + 1)])
    return data


@examples(300)
@given(data=configurations())
def test_a_configuration_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_bytes(data)
        with suppress(UsageError):
            load(path)
