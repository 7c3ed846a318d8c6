"""Requests to the API server: what a failure is called, and how credentials are followed."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver import client
from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.errors import AgentError, RefusedError
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki, plain_kubeconfig, point_to
from tests.support.wire import Response, WiredApi

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

SERVICES = "/api/v1/services"
TOKEN = "s3cret-s3cret"
EXPIRED = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def server(pki: Pki) -> Iterator[ApiServer]:
    with ApiServer(pki=pki, tokens={TOKEN: "system:node:worker-1"}) as running:
        yield running


class NodeFiles:
    """A node's kubeconfig and certificate, rotated as the kubelet does it."""

    def __init__(self, directory: Path, pki: Pki, url: str) -> None:
        self._directory, self._pki, self._url = directory, pki, url
        self.kubeconfig = directory / "kubelet.conf"
        self.current = directory / "kubelet-client-current.pem"
        self.serial = 0
        self._issued = 0
        point_to(self.current, self.issue())
        pki.write_kubeconfig(self.kubeconfig, url, self.current)

    def issue(self) -> Path:
        """Writes a dated file with the next certificate and key."""
        self._issued += 1
        dated = self._directory / f"kubelet-client-{self._issued}.pem"
        self.serial = self._pki.write_node_client(dated, "worker-1")
        return dated

    def rotate(self) -> int:
        """Puts the next certificate in place of the current one, and gives its serial number."""
        point_to(self.current, self.issue())
        return self.serial

    @property
    def secrets(self) -> list[str]:
        """The lines of all keys so far."""
        texts = [path.read_text() for path in self._directory.glob("kubelet-client-?.pem")]
        return [line for text in texts for line in text.partition("PRIVATE KEY")[2].splitlines()]


@pytest.fixture
def files(tmp_path: Path, pki: Pki, server: ApiServer) -> NodeFiles:
    return NodeFiles(tmp_path, pki, server.url)


@pytest.fixture
def api(files: NodeFiles) -> Api:
    return Api(files.kubeconfig)


def get(
    api: Api, watch: bool = False, timeout: float = 10.0, selectors: Mapping[str, str] | None = None
) -> bytes:
    """The whole body of a list or, as soon as it has ended, of a watch."""
    parameters = {**(selectors or {}), **({"watch": "true"} if watch else {})}
    with api.get(SERVICES, parameters, f"{'watch' if watch else 'list'} services", timeout) as got:
        return b"".join(got.pieces())


def failure(api: Api, **arguments: Any) -> ApiError:
    """The error that a request ends with: one short sentence."""
    with pytest.raises(ApiError) as caught:
        get(api, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    for noise in ("HTTPConnectionPool", "HTTPSConnectionPool", "object at 0x", "Errno", "Retry"):
        assert noise not in text
    return caught.value


class Watch:
    """A watch in a thread of its own, and how it ended."""

    def __init__(self, api: Api) -> None:
        self.outcome: Any = None
        self._api = api
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = get(self._api, watch=True, timeout=60.0)
        except Exception as error:
            self.outcome = error

    def ended(self) -> Any:
        """What the watch ended with."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.outcome


@contextmanager
def watching(api: Api, server: ApiServer) -> Iterator[Watch]:
    """An open watch."""
    watch = Watch(api)
    server.wait_for(lambda: server.watches("services") == 1)
    yield watch


def plain(tmp_path: Path, url: str) -> Api:
    plain_kubeconfig(tmp_path / "plain.conf", url, "worker-1")
    return Api(tmp_path / "plain.conf")


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


# 3. Credentials that come late


def test_credentials_are_read_as_soon_as_they_are_there(
    files: NodeFiles, server: ApiServer
) -> None:
    aside = files.kubeconfig.with_suffix(".aside")
    files.kubeconfig.rename(aside)
    api = Api(files.kubeconfig)
    with pytest.raises(RefusedError, match="is this node's kubelet set up"):
        get(api)
    assert not api.refresh()
    aside.rename(files.kubeconfig)
    assert b"ServiceList" in get(api)


def test_credentials_that_come_late_are_news(files: NodeFiles) -> None:
    files.current.unlink()
    api = Api(files.kubeconfig)
    with pytest.raises(RefusedError):
        api.credentials()
    files.rotate()
    assert api.refresh()
    assert b"ServiceList" in get(api)


# 4. Rotation


def test_nothing_is_read_again_while_nothing_changes(api: Api) -> None:
    before = api.credentials()
    assert not api.refresh()
    assert api.credentials() is before


@pytest.mark.parametrize("in_place", [False, True], ids=["by a symlink", "in place"])
def test_a_new_certificate_is_used_from_then_on(
    in_place: bool, api: Api, server: ApiServer, files: NodeFiles
) -> None:
    get(api)
    old = files.serial
    if in_place:
        files.current.write_bytes(files.issue().read_bytes())
    else:
        files.rotate()
    assert api.refresh()
    get(api)
    assert [request.serial for request in server.requests] == [old, files.serial]
    assert not api.refresh()


def test_a_new_server_in_the_kubeconfig_is_used(
    api: Api, server: ApiServer, files: NodeFiles, pki: Pki
) -> None:
    get(api)
    with ApiServer(pki=pki) as other:
        pki.write_kubeconfig(files.kubeconfig, other.url, files.current)
        assert api.refresh()
        get(api)
        assert len(server.requests) == len(other.requests) == 1


def test_a_rotation_ends_the_open_watch(api: Api, server: ApiServer, files: NodeFiles) -> None:
    with watching(api, server) as watch:
        files.rotate()
        assert api.refresh()
        assert isinstance(watch.ended(), Superseded)
        server.wait_for(lambda: server.watches("services") == 0)
    with watching(api, server):
        assert server.requests[-1].serial == files.serial


def test_a_request_under_way_does_not_outlive_a_rotation(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    server.hang()
    watch = Watch(api)
    server.wait_for(lambda: len(server.requests) == 1)
    files.rotate()
    assert api.refresh()
    server.heal()
    assert isinstance(watch.ended(), Superseded)


def test_a_rotation_just_before_a_request_is_no_failure(
    api: Api, files: NodeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = api.credentials().pool
    connection_pool = pool.connection_from_host

    def rotated(*args: Any, **options: Any) -> Any:
        made = connection_pool(*args, **options)
        files.rotate()
        assert api.refresh()
        return made

    monkeypatch.setattr(pool, "connection_from_host", rotated)
    with pytest.raises(Superseded):
        get(api)
    get(api)


def test_closing_ends_what_is_under_way(api: Api, server: ApiServer) -> None:
    with watching(api, server) as watch:
        api.close()
        assert isinstance(watch.ended(), Superseded)


def test_closing_ends_a_request_that_has_no_answer_yet(api: Api, server: ApiServer) -> None:
    server.hang()
    watch = Watch(api)
    server.wait_for(lambda: len(server.requests) == 1)
    api.close()
    server.heal()
    assert isinstance(watch.ended(), Superseded)


def test_a_watch_that_the_server_breaks_off_is_not_superseded(api: Api, server: ApiServer) -> None:
    with watching(api, server) as watch:
        server.drop_watches()
        assert isinstance(watch.ended(), ApiError)


def test_many_rotations_leave_the_last_certificate_in_use(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    for _ in range(5):
        with watching(api, server) as watch:
            files.rotate()
            assert api.refresh()
            assert isinstance(watch.ended(), Superseded)
            server.wait_for(lambda: server.watches("services") == 0)
            get(api)
            assert server.requests[-1].serial == files.serial


# 5. Rotation that goes wrong


def test_a_file_that_is_missing_for_a_moment_is_no_error(
    api: Api, server: ApiServer, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    old, dated = files.serial, files.issue()
    files.current.unlink()
    assert not api.refresh()
    get(api)
    assert server.requests[-1].serial == old
    point_to(files.current, dated)
    assert api.refresh()
    get(api)
    assert server.requests[-1].serial == files.serial
    assert not warnings(caplog)


def test_a_file_that_is_often_missing_for_a_moment_is_no_error(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    aside = files.current.with_suffix(".aside")
    for _ in range(3):
        files.current.rename(aside)
        api.refresh()
        aside.rename(files.current)
        api.refresh()
    assert not warnings(caplog)


def test_a_moment_does_not_end_the_open_watch(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    with watching(api, server):
        files.current.unlink()
        assert not api.refresh()
        assert not api.refresh()
        assert server.watches("services") == 1


def break_by_removal(files: NodeFiles) -> None:
    files.current.unlink()


def break_certificate(files: NodeFiles) -> None:
    files.current.write_text("no certificate\n")


def break_key(files: NodeFiles) -> None:
    certificate, other = files.issue().read_text(), files.issue().read_text()
    key = "-----BEGIN" + other.rpartition("-----BEGIN")[2]
    files.current.write_text(certificate.rpartition("-----BEGIN")[0] + key)


def break_kubeconfig(files: NodeFiles) -> None:
    files.kubeconfig.write_text("users: [")


@pytest.mark.parametrize(
    "break_files", [break_by_removal, break_certificate, break_key, break_kubeconfig]
)
def test_a_broken_file_that_stays_is_said_once_and_the_old_credentials_go_on(
    break_files: Callable[[NodeFiles], None],
    api: Api,
    server: ApiServer,
    files: NodeFiles,
    pki: Pki,
    caplog: pytest.LogCaptureFixture,
) -> None:
    get(api)
    old = files.serial
    break_files(files)
    for _ in range(5):
        assert not api.refresh()
    (warning,) = warnings(caplog)
    assert warning.startswith("the credentials changed and cannot be read, going on: kubeconfig ")
    assert "\n" not in warning
    get(api)
    assert server.requests[-1].serial == old

    pki.write_kubeconfig(files.kubeconfig, server.url, files.current)
    files.rotate()
    assert api.refresh()
    get(api)
    assert server.requests[-1].serial == files.serial
    assert len(warnings(caplog)) == 1


def test_a_file_that_breaks_in_another_way_is_said_again(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    for break_files in (break_certificate, break_kubeconfig):
        break_files(files)
        for _ in range(3):
            assert not api.refresh()
    assert len(warnings(caplog)) == 2


def test_nothing_is_said_about_credentials_that_were_never_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api(tmp_path / "kubelet.conf")
    for _ in range(3):
        assert not api.refresh()
        with pytest.raises(AgentError):
            api.credentials()
    # Whoever asked for them got the error, and says it.
    assert not warnings(caplog)


def test_what_makes_credentials_unsafe_is_said_once_for_all_rotations(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    text = files.kubeconfig.read_text()
    unsafe = re.sub("certificate-authority-data: .*", "insecure-skip-tls-verify: true", text)
    files.kubeconfig.write_text(unsafe)
    for _ in range(3):
        files.rotate()
        assert api.refresh()
    (said,) = warnings(caplog)
    assert "is not verified" in said


# 6. Secrets stay secret


def test_no_log_holds_a_key(
    api: Api,
    server: ApiServer,
    files: NodeFiles,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    get(api)
    for break_files in (break_key, break_certificate, NodeFiles.rotate):
        break_files(files)
        api.refresh()
        api.refresh()
        get(api)
    server.fail(401, times=1)
    said = caplog.text + str(failure(api))
    assert "read the credentials" in said
    assert len(files.secrets) > 10
    for secret in filter(None, files.secrets):
        assert secret not in said


@pytest.mark.parametrize("status", [200, 401, 403, 500, 0])
def test_no_log_and_no_error_holds_a_token(
    status: int,
    server: ApiServer,
    pki: Pki,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "token.conf"
    write_token_kubeconfig(path, server, pki)
    api = Api(path)
    if status == 200:
        get(api)
        said = ""
    elif status:
        server.fail(status)
        said = str(failure(api))
    else:
        server.stop()
        said = str(failure(api))
    path.write_text(path.read_text() + "# changed\n")
    api.refresh()
    path.write_text(path.read_text().replace("user:\n", "usr:\n"))
    api.refresh()
    api.refresh()
    assert caplog.text
    assert TOKEN not in said + caplog.text


def write_token_kubeconfig(path: Path, server: ApiServer, pki: Pki) -> None:
    pki.write_kubeconfig(path, server.url, path)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if "client-certificate" not in line]
    text = "\n".join(kept)
    path.write_text(text.replace(f"client-key: {path.absolute()}", f"token: {TOKEN}") + "\n")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
