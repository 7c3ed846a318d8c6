"""kubeconfigs that people have: each works on a real API server, and none of its secrets is said.

Where credentials may stand, and what is refused, is tried in tests/unit/kubeconfig.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.cluster.bed import Entry, Worker, add_service, worker
from tests.cluster.controlplane import API_ADDRESS, TOKEN_NODE, TOKENS, ControlPlane
from tests.cluster.rest import Client
from tests.support.execplugin import VERSION, plugin, saying
from tests.support.kubeconfigs import document, write
from tests.support.netns import Namespace
from tests.support.relay import answering, hand_on

_V1 = "client.authentication.k8s.io/v1"


@pytest.fixture
def node(plane: ControlPlane, tmp_path: Path) -> Iterator[Worker]:
    """The node that has tokens beside its certificate; its name is configured."""
    with worker(plane, tmp_path, name=TOKEN_NODE) as made:
        made.agent.configure(made.settings(nodeName=TOKEN_NODE))
        made.agent.options = ["--log-level", "debug"]
        yield made


@pytest.fixture
def web(node: Worker, admin: Client) -> Entry:
    """A Service of the cluster."""
    return add_service(admin, "web", "10.19.20.201")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def by_certificate(node: Worker) -> dict[str, Any]:
    """A kubeconfig's user, as kubeadm leaves it."""
    path = str(node.certificate.path)
    return {"client-certificate": path, "client-key": path}


def kubeconfig(node: Worker, user: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    """One with this user; an entry of the cluster that is None is left out."""
    authority = encoded(node.plane.pki.ca_pem)
    url = node.plane.url(node.server)
    entries = {"server": url, "certificate-authority-data": authority, **cluster}
    return document(user, **{key: value for key, value in entries.items() if value is not None})


def token(node: Worker) -> dict[str, Any]:
    return kubeconfig(node, {"token": TOKENS[0]})


def inline(node: Worker) -> dict[str, Any]:
    pem = encoded(node.certificate.path.read_text())
    return kubeconfig(node, {"client-certificate-data": pem, "client-key-data": pem})


def plugin_with_token(node: Worker) -> dict[str, Any]:
    return by_plugin(node, token=TOKENS[0])


def plugin_with_certificate(node: Worker) -> dict[str, Any]:
    pem = node.certificate.path.read_text()
    return by_plugin(node, clientCertificateData=pem, clientKeyData=pem)


def by_plugin(node: Worker, **status: str) -> dict[str, Any]:
    user = plugin(node.directory, saying(**status).replace(VERSION, _V1))
    user["exec"]["apiVersion"] = _V1
    return kubeconfig(node, user)


def ipv6_server(node: Worker) -> dict[str, Any]:
    return kubeconfig(node, by_certificate(node), server=node.plane.url(node.server, version=6))


@pytest.mark.parametrize(
    "made",
    [token, inline, plugin_with_token, plugin_with_certificate, ipv6_server],
    ids=lambda made: made.__name__,
)
def test_it_works_and_no_secret_is_said(
    made: Callable[[Worker], dict[str, Any]], node: Worker, web: Entry
) -> None:
    pem = node.certificate.path.read_text()
    write(node.kubeconfig, made(node))
    node.start(web)
    # Read anew, and broken.
    with node.kubeconfig.open("a") as file:
        file.write("# changed\n")
    node.agent.said("read the credentials")
    write(node.kubeconfig, "users: [" + node.kubeconfig.read_text())
    node.agent.said("is not YAML")
    lines = [line for line in pem.splitlines() if line and not line.startswith("-----")]
    log = node.agent.log
    assert "DEBUG GET https://" in log
    assert [secret for secret in (*TOKENS, encoded(pem), *lines) if secret in log] == []


def test_a_token_file_that_rotates(node: Worker, web: Entry) -> None:
    file = node.directory / "token"
    file.write_text(TOKENS[0] + "\n")
    write(node.kubeconfig, kubeconfig(node, {"tokenFile": "token"}))
    node.start(web)
    # One that the server does not take, so that what follows is known to come from the file.
    file.write_text("no-such-token\n")
    node.agent.said("401 Unauthorized")
    file.write_text(TOKENS[1] + "\n")
    node.agent.said("answers again")


def test_an_unverified_server_is_warned_of_at_every_start(node: Worker, web: Entry) -> None:
    unverified = {"certificate-authority-data": None, "insecure-skip-tls-verify": True}
    write(node.kubeconfig, kubeconfig(node, by_certificate(node), **unverified))
    for starts in (1, 2):
        node.start(web)
        warnings = [line for line in node.agent.log.splitlines() if "is not verified" in line]
        assert len(warnings) == starts
        assert "insecure-skip-tls-verify" in warnings[-1]
        assert "InsecureRequestWarning" not in node.agent.log
        node.agent.stop()


def test_a_proxy_url(node: Worker, web: Entry) -> None:
    with proxy(node.namespace) as (port, asked):
        url = f"http://agent:s3cret%3Aword@127.0.0.1:{port}"
        write(node.kubeconfig, kubeconfig(node, by_certificate(node), **{"proxy-url": url}))
        node.start(web)
        user = f"Basic {encoded('agent:s3cret:word')}".lower()
        for line, headers in asked:
            assert line.startswith(f"CONNECT {API_ADDRESS[4]}:{node.server.port} ")
            assert f"proxy-authorization: {user}" in headers
        assert asked
        assert "s3cret" not in node.agent.log


@contextmanager
def proxy(namespace: Namespace) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """The port of an HTTP proxy inside, and what it was asked: lines, and headers."""
    asked: list[tuple[str, str]] = []

    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as reader:
            line, *headers = iter(lambda: reader.readline().decode().strip(), "")
            asked.append((line, "\n".join(headers).lower()))
            host, _, port = line.split()[1].rpartition(":")
            with namespace.enter(), socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                hand_on(client, server)

    with answering(namespace, "127.0.0.1", serve) as port:
        yield port, asked
