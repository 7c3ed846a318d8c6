"""Requests to the API server: what they carry, and what a failure is called."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver import client
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.errors import RefusedError
from tests.support.apiclient import (
    TOKEN,
    NodeFiles,
    failure,
    get,
    plain,
    watching,
    write_token_kubeconfig,
)
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki
from tests.support.wire import Response, WiredApi

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

EXPIRED = datetime(2020, 1, 1, tzinfo=timezone.utc)


# 1. Requests


def test_a_request_carries_certificate_and_parameters(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    selectors = {"labelSelector": "a=b", "fieldSelector": "spec.type=LoadBalancer"}
    assert b"ServiceList" in get(api, selectors=selectors)
    (request,) = server.requests
    assert request.params == selectors
    assert (request.user, request.serial) == ("system:node:worker-1", files.serial)


def test_a_request_carries_the_token(server: ApiServer, pki: Pki, tmp_path: Path) -> None:
    write_token_kubeconfig(tmp_path / "token.conf", server, pki)
    assert b"ServiceList" in get(Api(tmp_path / "token.conf"))
    assert server.requests[-1].user == "system:node:worker-1"


def test_requests_run_at_the_same_time(api: Api, server: ApiServer) -> None:
    with watching(api, server):
        assert b"ServiceList" in get(api)
        assert server.watches("services") == 1


# 2. Errors


class Refusing:
    """In the place of urllib3's pool: refuses everything."""

    def __init__(self, status: int, message: object, retry_after: str = "") -> None:
        self._status, self._message = status, message
        self._headers = {"Retry-After": retry_after}

    def request(self, *_: Any, **__: Any) -> Response:
        body = json.dumps({"message": self._message}).encode()
        return Response(self._status, [body], headers=self._headers)


USER = "system:node:worker-1"
NOT_ACCEPTED = " (the server does not accept the credentials of {}; have they expired?)"
NOT_ALLOWED = " ({} lacks the permission to {} services; a node's own credentials have it)"


@pytest.mark.parametrize(
    ("status", "user", "verb", "hint"),
    [
        (401, USER, "list", NOT_ACCEPTED.format(USER)),
        (401, None, "watch", NOT_ACCEPTED.format("the kubeconfig's user")),
        (403, "intern", "list", NOT_ALLOWED.format("intern", "list")),
        (403, "intern", "watch", NOT_ALLOWED.format("intern", "watch")),
        *((status, USER, "list", "") for status in (302, 400, 404, 410, 429, 500, 503)),
    ],
)
def test_a_refusal_is_said_with_the_servers_own_reason_and_what_may_mend_it(
    status: int, user: str | None, verb: str, hint: str
) -> None:
    api = WiredApi(Refusing(status, "a reason"), user)
    error = failure(api, watch=verb == "watch")
    wanted = f"API server http://api: refused to {verb} services: {status} Whatever: a reason"
    assert str(error) == wanted + hint
    assert error.status == status


@pytest.mark.parametrize("message", [None, 7, ["why"], {}])
def test_a_refusal_without_a_reason_still_reads_well(message: object) -> None:
    error = failure(WiredApi(Refusing(500, message)))
    assert error.why == "refused to list services: 500 Whatever"


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [
        *((status, "7", 7.0) for status in (429, 503)),
        (503, "0", 0.0),
        (503, "60", 60.0),
        # Nobody may silence the agent for hours.
        *((429, asked, 60.0) for asked in ("61", "99999999999", "9" * 5000)),
        *((429, asked, 0.0) for asked in ("", "-1", "1.5", "soon", "1e9", "\xb2")),
        (429, "Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        (500, "7", 0.0),
    ],
)
def test_a_busy_server_says_how_long_it_wants_to_be_left_alone(
    status: int, asked: str, seconds: float
) -> None:
    assert failure(WiredApi(Refusing(status, "", asked))).retry_after == seconds


def test_a_401_has_the_program_that_made_the_credentials_asked_again(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    said = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1"}
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps({**said, 'status': {'token': TOKEN}})}'\n")
    plugin.chmod(0o755)
    user = {
        "apiVersion": said["apiVersion"],
        "command": str(plugin),
        "interactiveMode": "Never",
    }
    with ApiServer() as server:
        api = plain(tmp_path, server.url)
        kubeconfig = tmp_path / "plain.conf"
        text = kubeconfig.read_text()
        kubeconfig.write_text(text.replace("user: {}", f"user: {json.dumps({'exec': user})}"))
        before = api.credentials()
        assert before.short_lived
        server.fail(403)
        failure(api)
        assert api.credentials() is before
        server.heal()
        server.fail(401)
        failure(api)
        assert api.credentials() is not before


def test_an_expired_certificate_is_a_401(
    api: Api, files: NodeFiles, pki: Pki, server: ApiServer
) -> None:
    pki.write_node_client(files.current, "worker-1", EXPIRED)
    error = failure(api)
    assert error.status == 401
    assert "have they expired?" in error.hint


def test_a_refused_connection_is_one_short_sentence(api: Api, server: ApiServer) -> None:
    server.stop()
    error = failure(api)
    assert error.status == 0
    assert str(error).startswith(f"API server {server.url}: ")
    assert str(error).endswith("Connection refused")


def test_a_server_of_another_authority_is_one_short_sentence(
    pki: Pki, files: NodeFiles, tmp_path: Path
) -> None:
    with ApiServer(pki=Pki()) as stranger:
        pki.write_kubeconfig(tmp_path / "stranger.conf", stranger.url, files.current)
        error = failure(Api(tmp_path / "stranger.conf"))
    assert "certificate verify failed" in error.why
    assert error.hint.startswith("the kubeconfig needs /etc/kubernetes/pki/ca.crt")


def test_a_server_of_another_name_is_one_short_sentence(
    pki: Pki, files: NodeFiles, tmp_path: Path
) -> None:
    with ApiServer(host="0.0.0.0", pki=pki) as server:
        url = f"https://127.0.0.1:{server.port}"
        pki.write_kubeconfig(tmp_path / "other.conf", url, files.current)
        error = failure(Api(tmp_path / "other.conf"))
    assert "127.0.0.1" in error.why
    assert error.hint.startswith("set the kubeconfig's server, or tls-server-name")


def test_a_name_that_cannot_be_resolved_is_one_short_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure(plain(tmp_path, "http://api.example.org:6443"))
    assert str(error).startswith("API server http://api.example.org:6443: ")
    assert str(error).endswith("Name or service not known")


def test_a_server_that_does_not_answer_is_one_short_sentence(api: Api, server: ApiServer) -> None:
    server.hang()
    assert failure(api, timeout=0.3).why.endswith("timed out")


def test_a_stream_that_falls_silent_is_one_short_sentence(api: Api, server: ApiServer) -> None:
    assert failure(api, timeout=0.3, watch=True).why.endswith("timed out")


def test_a_server_that_takes_no_connection_is_one_short_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT", 0.3)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Connections that nobody accepts, until the kernel lets no more in.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert failure(plain(tmp_path, url)).why.endswith("timed out")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", id="a short body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", id="a broken chunk"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", id="endless headers"),
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", id="a redirect"),
        pytest.param(
            b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n[[[[[[[[[", id="a status in no JSON"
        ),
        pytest.param(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n[]", id="a status as a list"),
    ],
)
def test_a_server_that_is_none_is_an_error_like_any_other(answer: bytes, tmp_path: Path) -> None:
    with answering(answer) as url:
        failure(plain(tmp_path, url))


def test_an_error_that_is_compressed_is_not_unpacked(tmp_path: Path) -> None:
    """Nobody asked for that, and a few bytes may unpack to gigabytes."""
    body = gzip.compress(b'{"message": "unpacked"}')
    head = f"HTTP/1.1 403 No\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    with answering(head.encode() + body) as url:
        assert "unpacked" not in str(failure(plain(tmp_path, url)))


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The URL of a server that sends `answer` and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "http://[::1", "http://a b", "nonsense:x"])
def test_a_server_that_is_no_url_is_an_error_like_any_other(url: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        get(plain(tmp_path, url))
