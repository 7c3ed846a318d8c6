"""kubeconfigs that people have: each works on a real API server, or is refused in one line."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.apiserver import TOKEN_NODE, TOKENS
from tests.cluster.bed import API_ADDRESS, ControlPlane, Entry, Worker, add_service, worker
from tests.cluster.pki import ClusterPki
from tests.cluster.proxy import proxy
from tests.cluster.rest import Client
from tests.support.waiting import eventually


@pytest.fixture
def web(node: Worker, admin: Client) -> Entry:
    """A Service of the cluster."""
    return add_service(admin, "web", "10.19.20.201")


@pytest.fixture
def token_node(plane: ControlPlane, tmp_path: Path) -> Iterator[Worker]:
    """The node that has tokens and no certificate; its name has to be configured."""
    with worker(plane, tmp_path, name=TOKEN_NODE) as made:
        made.agent.configure(made.settings(nodeName=TOKEN_NODE))
        yield made


@pytest.fixture
def its_web(token_node: Worker, admin: Client) -> Entry:
    return add_service(admin, "web", "10.19.20.201")


def cluster(node: Worker, **fields: Any) -> dict[str, Any]:
    """A kubeconfig's cluster."""
    authority = base64.b64encode(node.plane.pki.ca_pem.encode()).decode()
    return {
        "server": node.plane.url(node.server),
        "certificate-authority-data": authority,
        **fields,
    }


def by_certificate(node: Worker) -> dict[str, Any]:
    """A kubeconfig's user, as kubeadm leaves it."""
    path = str(node.certificate.path)
    return {"client-certificate": path, "client-key": path}


def write(node: Worker, cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> None:
    """Writes the node's kubeconfig."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "default",
        "contexts": [{"name": "default", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    for key, entries in more.items():
        document[key] = entries + document[key]
    node.kubeconfig.write_text(yaml.safe_dump(document))
    node.kubeconfig.chmod(0o600)


def works(node: Worker, web: Entry) -> None:
    """The agent with this kubeconfig programs the table."""
    node.agent.start()
    node.holds(web)
    assert node.agent.running


def refusal(node: Worker) -> str:
    """What a command says that needs the API server; one line, and status 3."""
    done = node.agent.call("diff")
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ipvs-node-agent: ")
    return str(line)


def test_inline_data(node: Worker, web: Entry) -> None:
    pem = base64.b64encode(node.certificate.path.read_bytes()).decode()
    write(node, cluster(node), {"client-certificate-data": pem, "client-key-data": pem})
    node.certificate.path.unlink()
    works(node, web)


def test_files_relative_to_the_kubeconfig(node: Worker, web: Entry) -> None:
    node.plane.pki.write_ca(node.directory / "pki/ca.crt")
    of = cluster(node, **{"certificate-authority": "pki/ca.crt"})
    del of["certificate-authority-data"]
    relative = os.path.relpath(node.certificate.path, node.directory)
    write(node, of, {"client-certificate": relative, "client-key": relative})
    works(node, web)


def test_a_token(token_node: Worker, its_web: Entry) -> None:
    write(token_node, cluster(token_node), {"token": TOKENS[0]})
    works(token_node, its_web)


def test_a_token_file_that_rotates(token_node: Worker, its_web: Entry) -> None:
    file = token_node.directory / "token"
    file.write_text(TOKENS[0] + "\n")
    write(token_node, cluster(token_node), {"tokenFile": "token"})
    works(token_node, its_web)
    # One that the server does not take, so that what follows is known to come from the file.
    file.write_text("no-such-token\n")
    token_node.agent.said("401 Unauthorized")
    file.write_text(TOKENS[1] + "\n")
    token_node.agent.said("answers again")


@pytest.mark.parametrize("kind", ["token", "certificate"])
def test_an_exec_plugin(kind: str, token_node: Worker, its_web: Entry) -> None:
    status: dict[str, Any] = {"token": TOKENS[0]}
    if kind == "certificate":
        pem = token_node.certificate.path.read_text()
        status = {"clientCertificateData": pem, "clientKeyData": pem}
    said = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    (token_node.directory / "said.json").write_text(json.dumps({**said, "status": status}))
    plugin = token_node.directory / "plugin"
    plugin.write_text(f"#!/bin/sh\nexec cat {token_node.directory}/said.json\n")
    plugin.chmod(0o755)
    user = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(plugin),
        "interactiveMode": "Never",
    }
    write(token_node, cluster(token_node), {"exec": user})
    works(token_node, its_web)


def test_an_exec_plugin_that_is_not_there(node: Worker, web: Entry) -> None:
    user = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/no/such/plugin"}
    write(node, cluster(node), {"exec": user})
    assert re.search("exec plugin gave no credentials|/no/such/plugin", refusal(node))


def test_several_contexts(node: Worker, web: Entry) -> None:
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/no/such/plugin"}
    write(
        node,
        cluster(node),
        by_certificate(node),
        contexts=[{"name": "other", "context": {"cluster": "far", "user": "else"}}],
        clusters=[{"name": "far", "cluster": {"server": "https://203.0.113.7:6443"}}],
        users=[{"name": "else", "user": {"exec": exec_}}],
    )
    works(node, web)


def test_an_ipv6_server_address(node: Worker, web: Entry) -> None:
    url = node.plane.url(node.server, version=6)
    assert url.startswith("https://[")
    write(node, cluster(node, server=url), by_certificate(node))
    works(node, web)


def test_a_tls_server_name(node: Worker, web: Entry) -> None:
    url = f"https://{node.gateway}:{node.server.port}"
    write(node, cluster(node, server=url), by_certificate(node))
    # In the words of one urllib3 or the other.
    assert re.search("doesn't match|is not valid for", refusal(node))
    named = cluster(node, server=url, **{"tls-server-name": "kubernetes"})
    write(node, named, by_certificate(node))
    works(node, web)


def test_a_proxy_url(node: Worker, web: Entry) -> None:
    with proxy(node.namespace, "agent:s3cret:word") as between:
        url = f"http://agent:s3cret%3Aword@127.0.0.1:{between.port}"
        write(node, cluster(node, **{"proxy-url": url}), by_certificate(node))
        node.agent.options = ["--log-level", "debug"]
        works(node, web)
        assert set(between.targets) == {f"{API_ADDRESS[4]}:{node.server.port}"}
        assert "s3cret" not in node.agent.log


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "https://127.0.0.1:3128"])
def test_another_kind_of_proxy_is_refused(url: str, node: Worker, web: Entry) -> None:
    write(node, cluster(node, **{"proxy-url": url}), by_certificate(node))
    assert "its proxy-url is not of the form http://HOST:PORT" in refusal(node)


# What goes over the wire


def test_a_server_that_the_cas_did_not_sign_for_is_refused(node: Worker, web: Entry) -> None:
    stranger = base64.b64encode(ClusterPki().ca_pem.encode()).decode()
    write(node, cluster(node, **{"certificate-authority-data": stranger}), by_certificate(node))
    assert "certificate verify failed" in refusal(node)
    node.agent.start(wait=False)
    node.agent.said("certificate verify failed")
    assert node.rules() == []
    assert node.server.asked(node.name) == []


def test_an_unverified_server_is_warned_of_at_every_start(node: Worker, web: Entry) -> None:
    of = cluster(node, **{"insecure-skip-tls-verify": True})
    del of["certificate-authority-data"]
    write(node, of, by_certificate(node))
    for starts in (1, 2):
        works(node, web)
        warnings = [line for line in node.agent.log.splitlines() if "is not verified" in line]
        assert len(warnings) == starts
        assert "insecure-skip-tls-verify" in warnings[-1]
        assert "InsecureRequestWarning" not in node.agent.log
        node.agent.stop()


@pytest.mark.parametrize("broken", [False, True], ids=["working", "refused"])
def test_no_secret_is_ever_said(broken: bool, token_node: Worker, its_web: Entry) -> None:
    pem = token_node.certificate.path.read_text()
    encoded = base64.b64encode(pem.encode()).decode()
    if broken:
        encoded = encoded[:-40]
    user = {"client-certificate-data": encoded, "client-key-data": encoded, "token": TOKENS[0]}
    write(token_node, cluster(token_node), user)
    token_node.agent.options = ["--log-level", "debug"]
    token_node.agent.start(wait=False)
    token_node.agent.said("cannot load" if broken else "ready: ")
    token_node.agent.call("--log-level", "debug", "diff")
    # A rotation, and one that cannot be read.
    token_node.kubeconfig.write_text(token_node.kubeconfig.read_text() + "# changed\n")
    if not broken:
        token_node.agent.said("read the credentials")
    token_node.kubeconfig.write_text("users: [" + token_node.kubeconfig.read_text())
    eventually(lambda: "is no YAML" in token_node.agent.log or broken)
    lines = [line for line in pem.splitlines() if line and not line.startswith("-----")]
    secrets = [*TOKENS, encoded, *lines]
    log = token_node.agent.log
    assert broken or "DEBUG GET https://" in log
    assert [secret for secret in secrets if secret in log] == []
