"""Requests to the API server: what they carry, and what a failure is called."""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver import client, leash
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.ownpods import own_pods
from tests.support.apiclient import NodeFiles, failure, get, plain, token_kubeconfig
from tests.support.apiserver import ApiServer
from tests.support.execplugin import plugin, saying
from tests.support.kubeconfigs import document, write
from tests.support.pki import Pki
from tests.support.rawserver import RawServer
from tests.support.waiting import eventually
from tests.support.wire import Response, WiredApi

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

USER = "system:node:worker-1"


# 1. Requests


def test_a_request_carries_certificate_and_parameters(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    selectors = {"labelSelector": "a=b", "fieldSelector": "spec.type=LoadBalancer"}
    with api.get("/api/v1/services", selectors, "list services", 10.0) as answer:
        assert b"ServiceList" in b"".join(answer.pieces())
    (request,) = server.requests
    assert request.params == selectors
    assert (request.user, request.serial) == (USER, files.serial)


def test_a_request_carries_the_token(server: ApiServer, pki: Pki, tmp_path: Path) -> None:
    assert b"ServiceList" in get(Api(token_kubeconfig(tmp_path / "token.conf", server, pki)))
    assert server.requests[-1].user == USER


@pytest.mark.parametrize(
    ("resource", "ask"),
    [
        ("pods", lambda api: own_pods(api, "worker-1")),
        ("endpoints", leash.ask),
        ("events", lambda api: api.post("/api/v1/namespaces/default/events", {}, "say", 10.0)),
    ],
)
def test_what_is_asked_now_and_then_keeps_no_connection(
    resource: str, ask: Callable[[Api], object], api: Api, server: ApiServer
) -> None:
    """Thousands of nodes would each keep one more at the API server."""
    get(api)
    with suppress(ApiError):
        ask(api)  # What becomes of it matters to nobody here.
    assert [(r.resource, r.keeps) for r in server.requests] == [
        ("services", True),
        (resource, False),
    ]


def test_nothing_stays_open_of_one_that_is_closed(api: Api, server: ApiServer) -> None:
    """With other credentials comes another one, and nobody collects what is left soon."""

    def files() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return found

    before = files()
    get(api)
    # Of the connection that is kept for another request, both ends are here.
    kept = files() - before
    assert kept
    api.close()
    eventually(lambda: not kept & files())


def test_whether_anybody_takes_connections_is_told_without_a_request(
    api: Api, server: ApiServer
) -> None:
    assert api.answers()
    server.stop()
    assert not api.answers()
    assert server.requests == []


# 2. Refusals

OK = b"HTTP/1.1 200 OK\r\n"
CUT = "the connection broke: it ended in the middle"
NO_HTTP = "what answers there does not speak valid HTTP"


class Refusing:
    """In the place of urllib3's pool: refuses everything."""

    def __init__(self, status: int, message: object, retry_after: str = "") -> None:
        self._status, self._message = status, message
        self._headers = {"Retry-After": retry_after}

    def request(self, *_: Any, **__: Any) -> Response:
        body = json.dumps({"message": self._message}).encode()
        return Response(self._status, [body], headers=self._headers)


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
    user = plugin(tmp_path, saying(token="abc"))
    with ApiServer() as server:
        api = Api(write(tmp_path / "exec.conf", document(user, server=server.url)))
        before = api.credentials()
        server.fail(403, times=1)
        failure(api)
        assert api.credentials() is before
        server.fail(401)
        failure(api)
        assert api.credentials() is not before


# 3. Servers that are out of reach, or none


def test_a_refused_connection_is_one_short_sentence(api: Api, server: ApiServer) -> None:
    server.stop()
    error = failure(api)
    assert error.status == 0
    assert str(error).startswith(f"API server {server.url}: ")
    assert str(error).endswith("Connection refused")


@pytest.mark.parametrize(
    ("host", "known", "why", "hint"),
    [
        ("127.0.0.1", False, "certificate is not accepted", "the kubeconfig needs /etc/kubernetes"),
        ("0.0.0.0", True, "127.0.0.1", "set the kubeconfig's server, or tls-server-name"),
    ],
    ids=["authority", "name"],
)
def test_a_server_of_another_authority_or_name_is_one_short_sentence(
    host: str, known: bool, why: str, hint: str, pki: Pki, node_pem: Path, tmp_path: Path
) -> None:
    with ApiServer(host=host, pki=pki if known else Pki()) as server:
        url = f"https://127.0.0.1:{server.port}"
        pki.write_kubeconfig(tmp_path / "kubelet.conf", url, node_pem)
        error = failure(Api(tmp_path / "kubelet.conf"))
    assert why in error.why
    assert error.hint.startswith(hint)
    assert server.requests == []


def test_a_name_that_cannot_be_resolved_is_one_short_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure(plain(tmp_path, "http://api.example.org:6443"))
    assert str(error).startswith("API server http://api.example.org:6443: ")
    assert str(error).endswith("Name or service not known")


def test_a_server_that_is_silent_is_one_short_sentence(api: Api, server: ApiServer) -> None:
    assert failure(api, timeout=0.3, watch=True).why.endswith("timed out")
    server.hang()
    assert failure(api, timeout=0.3).why.endswith("timed out")


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
    ("answer", "words"),
    [
        (b"", "cannot be reached: it was closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", f"cannot be reached: {NO_HTTP}"),
        (OK + b"Content-Length: 100\r\n\r\nshort", CUT),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", CUT),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", CUT),
        (OK + b"A: b\r\n" * 200 + b"\r\n", f"cannot be reached: {NO_HTTP}"),
    ],
    ids=["nothing", "another protocol", "a short body", "a broken chunk", "no chunk", "headers"],
)
@pytest.mark.parametrize("watch", [False, True])
def test_an_answer_that_is_none_is_told_in_plain_words(
    answer: bytes, words: str, watch: bool, tmp_path: Path
) -> None:
    with RawServer(answer, hangs_up=True) as server:
        assert failure(plain(tmp_path, server.url), watch=watch).why == words


def test_a_server_without_tls_is_told_in_plain_words(
    pki: Pki, node_pem: Path, tmp_path: Path
) -> None:
    with RawServer(b"HTTP/1.1 400 Bad Request\r\n\r\n", hangs_up=True, hasty=True) as server:
        url = f"https://127.0.0.1:{server.port}"
        pki.write_kubeconfig(tmp_path / "kubelet.conf", url, node_pem)
        why = failure(Api(tmp_path / "kubelet.conf")).why
    assert why == "cannot be reached: what answers there does not speak TLS"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", id="a redirect"),
        pytest.param(
            b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n[[[[[[[[[", id="a status in no JSON"
        ),
        pytest.param(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n[]", id="a status as a list"),
    ],
)
def test_a_server_that_is_none_is_an_error_like_any_other(answer: bytes, tmp_path: Path) -> None:
    with RawServer(answer, hangs_up=True) as server:
        failure(plain(tmp_path, server.url))


def test_an_error_that_is_compressed_is_not_unpacked(tmp_path: Path) -> None:
    """Nobody asked for that, and a few bytes may unpack to gigabytes."""
    body = gzip.compress(b'{"message": "unpacked"}')
    head = f"HTTP/1.1 403 No\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    with RawServer(head.encode() + body, hangs_up=True) as server:
        assert "unpacked" not in str(failure(plain(tmp_path, server.url)))


# 4. When it was last heard of

HEARD = {
    "an answer": (lambda server: None, True),
    "something that is not there": (lambda server: server.fail(404), True),
    "a permission that is missing": (lambda server: server.fail(403), True),
    "credentials that are not taken": (lambda server: server.fail(401), False),
    "too much to do": (lambda server: server.fail(503), False),
    "nobody there": (lambda server: server.stop(), False),
}


@pytest.mark.parametrize(("happen", "is_heard"), HEARD.values(), ids=HEARD)
def test_it_is_heard_of_where_it_answers(
    happen: Callable[[ApiServer], None], is_heard: bool, api: Api, server: ApiServer
) -> None:
    assert api.contact == -math.inf
    happen(server)
    began = time.monotonic()
    with suppress(ApiError):
        get(api)
    assert (api.contact >= began) is is_heard


def test_a_proxys_own_refusal_is_nothing_of_the_servers(tmp_path: Path) -> None:
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n<ok>"
    with RawServer(page) as server:
        api = plain(tmp_path, server.url)
        with suppress(ApiError):
            get(api)
        assert api.contact == -math.inf


def test_each_piece_of_an_answer_is_heard(api: Api, server: ApiServer) -> None:
    with api.get("/api/v1/services", {}, "list services", 10.0) as answer:
        api.contact = -math.inf
        assert next(answer.pieces())
        assert api.contact > -math.inf
