"""The test API server behaves as a Kubernetes API server does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import yaml

from tests.support.apiserver import ApiServer
from tests.support.pki import Pki, plain_kubeconfig

SERVICES = "/api/v1/services"
NODES = "/api/v1/nodes"
WEB = "/api/v1/namespaces/default/services/web"
STREAMING_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}


def node(name: str) -> dict[str, Any]:
    return {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}}


def connect(server: ApiServer, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    address = urlsplit(server.url)
    assert address.hostname
    if address.scheme == "https":
        assert tls
        return http.client.HTTPSConnection(address.hostname, address.port, timeout=5, context=tls)
    return http.client.HTTPConnection(address.hostname, address.port, timeout=5)


class Answer:
    """A response read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(
    server: ApiServer,
    path: str,
    method: str = "GET",
    *,
    body: Any = None,
    tls: ssl.SSLContext | None = None,
    token: str = "",
    **params: str,
) -> Answer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with contextlib.closing(connect(server, tls)) as connection:
        data = None if body is None else json.dumps(body)
        target = f"{path}?{urlencode(params)}" if params else path
        connection.request(method, target, data, headers)
        return Answer(connection.getresponse())


class Stream:
    """An open watch."""

    def __init__(self, server: ApiServer, path: str = SERVICES, **params: str) -> None:
        self._connection = connect(server)
        self._connection.request("GET", f"{path}?{urlencode({'watch': 'true', **params})}")
        self.response = self._connection.getresponse()

    def line(self) -> bytes:
        return self.response.readline()

    def event(self) -> tuple[str, Any]:
        event = json.loads(self.line())
        return event["type"], event["object"]

    def named(self) -> tuple[str, str]:
        kind, obj = self.event()
        return kind, obj["metadata"]["name"]

    def close(self) -> None:
        # The response holds the socket too, once the server has asked to close it.
        self.response.close()
        self._connection.close()


@contextlib.contextmanager
def watching(server: ApiServer, path: str = SERVICES, **params: str) -> Iterator[Stream]:
    if "resourceVersion" not in params and "sendInitialEvents" not in params:
        params["resourceVersion"] = version(server)
    stream = Stream(server, path, **params)
    try:
        assert stream.response.status == 200
        resource = path.rpartition("/")[2]
        server.wait_for(lambda: server.watches(resource) > 0)
        yield stream
    finally:
        stream.close()


def version(server: ApiServer) -> str:
    return str(call(server, SERVICES).json["metadata"]["resourceVersion"])


# 1. Life


def test_an_outage_keeps_port_and_objects(server: ApiServer) -> None:
    server.put(service())
    url = server.url
    with watching(server) as stream:
        server.stop()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            stream.response.read()
    with pytest.raises(ConnectionRefusedError):
        call(server, SERVICES)
    assert server.watches("services") == 0
    server.start()
    assert server.url == url
    assert call(server, WEB).json["metadata"]["name"] == "web"


def test_a_port_in_use_is_an_error_in_start(server: ApiServer) -> None:
    with pytest.raises(OSError, match="in use"):
        ApiServer(port=server.port).start()


def test_listens_in_a_network_namespace() -> None:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("making a network namespace takes root and iproute2")
    name = f"apiserver-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        with ApiServer(netns=f"/run/netns/{name}") as server:
            with pytest.raises(ConnectionRefusedError):
                call(server, "/version")
            inside = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)"
            command = ["ip", "netns", "exec", name, sys.executable, "-c", inside]
            url = f"{server.url}/version"
            answer = subprocess.run([*command, url], check=True, capture_output=True, timeout=10)
            assert answer.stdout == b"200\n"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


# 2. Store


def test_put_completes_metadata_and_counts_versions(server: ApiServer) -> None:
    first = server.put(service())["metadata"]
    other = server.put(node("worker-1"))["metadata"]
    again = server.put(service(type="NodePort"))
    assert int(first["resourceVersion"]) < int(other["resourceVersion"])
    assert int(other["resourceVersion"]) < int(again["metadata"]["resourceVersion"])
    assert first["namespace"] == "default"
    assert "namespace" not in other
    assert first["uid"] == again["metadata"]["uid"] != other["uid"]
    assert first["creationTimestamp"].endswith("Z")
    assert server.get("Service", "default", "web") == again
    assert server.delete("Service", "default", "web") == again
    with pytest.raises(KeyError):
        server.get("Service", "default", "web")


@pytest.mark.parametrize("weird", [None, 7, "text", [], {}, {"metadata": "x", "spec": None}])
def test_raw_objects_are_served_as_they_are(server: ApiServer, weird: Any) -> None:
    with watching(server, fieldSelector="spec.type!=ExternalName", labelSelector="!a") as stream:
        server.put_raw("Service", "default", "odd", weird)
        assert stream.event() == ("ADDED", weird)
        assert call(server, SERVICES, fieldSelector="spec.type!=X").json["items"] == [weird]
        server.delete("Service", "default", "odd")
        assert stream.event() == ("DELETED", weird)


def test_raw_metadata_carries_the_version(server: ApiServer) -> None:
    server.put_raw("Service", "default", "odd", {"metadata": {}})
    assert call(server, SERVICES).json["items"] == [
        {"metadata": {"resourceVersion": version(server)}}
    ]


# 3. HTTP


def test_lists_print_like_go(server: ApiServer) -> None:
    metadata = {"name": "web", "uid": "u", "creationTimestamp": "2024-01-01T00:00:00Z"}
    server.put({**service(note="<é&>"), "metadata": metadata})
    answer = call(server, SERVICES)
    assert answer.text == (
        '{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"2"},"items":['
        '{"metadata":{"name":"web","uid":"u","creationTimestamp":"2024-01-01T00:00:00Z",'
        '"namespace":"default","resourceVersion":"2"},"spec":{"note":"\\u003cé\\u0026\\u003e"}}]}\n'
    )
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Content-Type"].startswith("application/json")


def test_reads_and_writes_single_objects(server: ApiServer) -> None:
    collection = "/api/v1/namespaces/default/services"
    assert call(server, "/version").json["major"] == "1"
    assert call(server, collection, "POST", body=service()).status == 201
    assert call(server, collection, "POST", body=service()).json["reason"] == "AlreadyExists"
    assert call(server, collection, "POST", body=["no object"]).status == 400
    assert call(server, WEB).json["kind"] == "Service"
    changed = call(server, WEB, "PUT", body=service(type="NodePort"))
    assert (changed.status, changed.json["spec"]) == (200, {"type": "NodePort"})
    assert call(server, WEB, "PATCH", body={}).status == 405
    assert call(server, WEB, "DELETE").json["status"] == "Success"
    gone = call(server, WEB).json
    assert (gone["code"], gone["message"]) == (404, 'services "web" not found')
    assert call(server, f"{NODES}/worker-1").status == 404
    assert call(server, "/apis/apps/v1/deployments").status == 404


def test_events_are_kept(server: ApiServer) -> None:
    event = {"kind": "Event", "metadata": {"name": "web.1"}, "reason": "Testing"}
    path = "/api/v1/namespaces/default/events"
    assert call(server, path, "POST", body=event).status == 201
    assert server.get("Event", "default", "web.1")["reason"] == "Testing"


def test_namespaces_separate(server: ApiServer) -> None:
    server.put(service())
    assert call(server, "/api/v1/namespaces/other/services").json["items"] == []


def test_a_watch_replays_history_then_follows(server: ApiServer) -> None:
    start = version(server)
    server.put(service("a"))
    server.put(service("a", type="NodePort"))
    server.put(node("worker-1"))
    server.delete("Service", "default", "a")
    with watching(server, resourceVersion=start) as stream:
        events = [stream.event() for _ in range(3)]
        assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED"]
        versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
        assert versions == sorted(set(versions))
        server.put(service("b"))
        assert stream.named() == ("ADDED", "b")


@pytest.mark.parametrize("start", ["", "0"])
def test_a_watch_from_no_version_begins_with_the_state(server: ApiServer, start: str) -> None:
    server.put(service())
    with watching(server, resourceVersion=start) as stream:
        assert stream.named() == ("ADDED", "web")


def test_a_watch_ends_cleanly_when_its_time_is_over(server: ApiServer) -> None:
    with watching(server, timeoutSeconds="1") as stream:
        assert stream.response.read() == b""
    server.wait_for(lambda: server.watches("services") == 0)


def test_bookmarks_tell_the_version(server: ApiServer) -> None:
    with watching(server, allowWatchBookmarks="true") as stream, watching(server) as other:
        server.put(node("worker-1"))
        server.send_bookmarks()
        kind, obj = stream.event()
        assert (kind, obj["metadata"]["resourceVersion"]) == ("BOOKMARK", version(server))
        server.put(service())
        assert other.named() == ("ADDED", "web")


def test_bookmarks_come_on_their_own() -> None:
    bookmarks = {"allowWatchBookmarks": "true"}
    with ApiServer(bookmark_interval=0.05) as server, watching(server, **bookmarks) as stream:
        assert [stream.event()[0] for _ in range(2)] == ["BOOKMARK"] * 2


# 4. Selectors


def test_field_selectors(server: ApiServer) -> None:
    server.put(service("lb", type="LoadBalancer", clusterIP="10.0.0.1"))
    server.put(service("none", type="ClusterIP", clusterIP="None"))

    def found(selector: str) -> list[str]:
        items = call(server, SERVICES, fieldSelector=selector).json["items"]
        return [item["metadata"]["name"] for item in items]

    assert found("metadata.name=lb") == ["lb"]
    assert found("spec.type=LoadBalancer") == ["lb"]
    assert found("spec.type!=LoadBalancer") == ["none"]
    assert found("spec.clusterIP!=None,spec.type!=ExternalName") == ["lb"]
    assert found("spec.clusterIP==None") == ["none"]
    assert call(server, SERVICES, fieldSelector="spec.ports=1").status == 400


def test_label_selectors(server: ApiServer) -> None:
    server.put(service("bare"))
    server.put({**service("app"), "metadata": {"name": "app", "labels": {"a/b": "1", "c": ""}}})

    def found(selector: str) -> list[str]:
        items = call(server, SERVICES, labelSelector=selector).json["items"]
        return [item["metadata"]["name"] for item in items]

    assert found("!a/b,!x") == ["bare"]
    assert found("a/b") == ["app"]
    assert found("a/b=1,c=") == ["app"]
    assert found("a/b!=1") == ["bare"]
    assert call(server, SERVICES, labelSelector="a in (b)").status == 400


def test_objects_enter_and_leave_a_selection(server: ApiServer) -> None:
    with watching(server, fieldSelector="spec.type=LoadBalancer") as stream:
        server.put(service(type="ClusterIP"))
        server.put(service(type="LoadBalancer"))
        left = server.put(service(type="ClusterIP"))
        assert stream.named() == ("ADDED", "web")
        kind, obj = stream.event()
        assert (kind, obj["spec"]) == ("DELETED", {"type": "LoadBalancer"})
        assert obj["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]


def test_older_servers_refuse_the_fields_of_services(server: ApiServer) -> None:
    server.service_field_selectors = False
    answer = call(server, SERVICES, fieldSelector="spec.type=LoadBalancer")
    assert (answer.status, answer.json["message"]) == (
        400,
        '"spec.type" is not a known field selector: only "metadata.name", "metadata.namespace"',
    )
    assert call(server, SERVICES, fieldSelector="metadata.name=web").status == 200


# 5. Streaming lists


def test_a_streaming_list_ends_in_a_marked_bookmark(server: ApiServer) -> None:
    server.streaming_lists = True
    server.put(service())
    with watching(server, allowWatchBookmarks="true", **STREAMING_LIST) as stream:
        assert stream.named() == ("ADDED", "web")
        kind, obj = stream.event()
        assert kind == "BOOKMARK"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert obj["metadata"]["resourceVersion"] == version(server)
        server.put(service("next"))
        assert stream.named() == ("ADDED", "next")


def test_older_servers_refuse_streaming_lists(server: ApiServer) -> None:
    answer = call(server, f"{SERVICES}?{urlencode({'watch': 'true', **STREAMING_LIST})}")
    assert (answer.status, answer.json["reason"]) == (422, "Invalid")
    assert "unless the WatchList feature gate is enabled" in answer.json["message"]
    assert answer.json["details"]["causes"][0]["field"] == "sendInitialEvents"


# 6. Faults


def test_a_compacted_version_is_gone_as_a_status(server: ApiServer) -> None:
    old = version(server)
    server.compact()
    answer = call(server, SERVICES, watch="true", resourceVersion=old)
    assert (answer.status, answer.json["code"], answer.json["reason"]) == (410, 410, "Expired")
    with watching(server, resourceVersion=version(server)):
        pass


def test_a_compacted_version_is_gone_as_an_event(server: ApiServer) -> None:
    old = version(server)
    server.compact(gone_as="event")
    answer = call(server, SERVICES, watch="true", resourceVersion=old)
    assert answer.status == 200
    assert answer.json["type"] == "ERROR"
    assert answer.json["object"]["code"] == 410


def test_watches_are_closed(server: ApiServer) -> None:
    with watching(server) as stream, watching(server, NODES) as other:
        server.close_watches("services")
        assert stream.response.read() == b""
        server.wait_for(lambda: server.watches("services") == 0)
        server.put(node("worker-1"))
        assert other.named() == ("ADDED", "worker-1")


def test_watches_are_dropped(server: ApiServer) -> None:
    with watching(server) as stream:
        server.drop_watches()
        with pytest.raises(ConnectionResetError):
            stream.response.read()
    server.wait_for(lambda: server.watches("services") == 0)


def test_watches_are_truncated(server: ApiServer) -> None:
    with watching(server) as stream:
        server.truncate_watches()
        half = stream.response.read()
        assert half.startswith(b'{"type":"')
        assert not half.endswith(b"\n")


def test_raw_bytes_reach_open_watches(server: ApiServer) -> None:
    with watching(server) as stream:
        server.put(service())
        server.send_raw(b"not json\n")
        assert stream.named() == ("ADDED", "web")
        assert stream.line() == b"not json\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
def test_failures_look_like_a_servers(server: ApiServer, code: int, reason: str) -> None:
    server.fail(code)
    answer = call(server, SERVICES)
    assert (answer.status, answer.json["code"], answer.json["reason"]) == (code, code, reason)
    assert answer.json["kind"] == "Status"
    assert answer.headers["Retry-After"] == ("1" if code == 429 else None)
    server.heal()
    assert call(server, SERVICES).status == 200


def test_failures_match_and_run_out(server: ApiServer) -> None:
    server.fail(503, verb="list", resource="services", times=2)
    assert call(server, NODES).status == 200
    assert call(server, SERVICES, watch="true", timeoutSeconds="0").status == 200
    assert [call(server, SERVICES).status for _ in range(3)] == [503, 503, 200]


def test_answers_are_delayed(server: ApiServer) -> None:
    server.delay(0.2)
    began = time.monotonic()
    call(server, SERVICES)
    assert time.monotonic() - began >= 0.2


def test_a_hung_server_answers_when_healed(server: ApiServer) -> None:
    with watching(server) as stream:
        server.hang()
        server.put(service())
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(call(server, SERVICES)))
        thread.start()
        server.wait_for(lambda: server.requests[-1].verb == "list")
        thread.join(0.2)
        assert (answers, server.requests[-1].status) == ([], 0)
        server.heal()
        thread.join(5)
        assert [answer.status for answer in answers] == [200]
        assert stream.named() == ("ADDED", "web")


def test_a_client_may_leave_a_hung_server(server: ApiServer) -> None:
    with watching(server):
        server.hang()
    server.wait_for(lambda: server.watches("services") == 0)


def test_lists_break_off(server: ApiServer) -> None:
    server.truncate_lists()
    with pytest.raises(http.client.IncompleteRead):
        call(server, SERVICES)
    server.heal()
    assert call(server, SERVICES).json["items"] == []


# 7. Observation


def test_requests_are_recorded(server: ApiServer) -> None:
    with watching(server, NODES, resourceVersion="1", timeoutSeconds="60"):
        request = server.requests[-1]
        assert (request.verb, request.resource, request.status) == ("watch", "nodes", 200)
        assert request.params["timeoutSeconds"] == "60"
        assert request.peer_port > 0
    server.wait_for(lambda: server.watches("nodes") == 0)
    call(server, WEB)
    request = server.requests[-1]
    assert (request.verb, request.namespace, request.name) == ("get", "default", "web")
    assert (request.status, request.user, request.serial) == (404, None, None)


def test_waiting_in_vain_shows_the_last_requests(server: ApiServer) -> None:
    call(server, WEB)
    with pytest.raises(AssertionError, match="name='web'"):
        server.wait_for(lambda: False, timeout=0.01)


# 8. Users


def test_a_node_may_do_what_a_node_may(pki: Pki, node_pem: Path) -> None:
    tls = pki.client_context(node_pem)
    myself = {"fieldSelector": "metadata.name=worker-1"}
    with ApiServer(pki=pki) as server:
        for name in ("worker-1", "worker-2"):
            server.put(node(name))
        server.put(service())

        def status(path: str, method: str = "GET", **params: Any) -> int:
            return call(server, path, method, tls=tls, **params).status

        assert status("/version") == 200
        assert status(SERVICES) == status(WEB) == 200
        assert status(SERVICES, watch="true", timeoutSeconds="0") == 200
        assert status(f"{NODES}/worker-1") == status(NODES, **myself) == 200
        assert status(NODES, watch="true", timeoutSeconds="0", **myself) == 200
        assert status(f"{NODES}/worker-2") == 403
        assert status(NODES) == status(NODES, fieldSelector="metadata.name=worker-2") == 403
        assert status(NODES, watch="true") == status(WEB, "DELETE") == 403
        event = {"metadata": {"name": "e"}}
        assert status("/api/v1/namespaces/default/events", "POST", body=event) == 201
        assert status("/api/v1/namespaces/default/events") == 403
        assert {request.user for request in server.requests} == {"system:node:worker-1"}


def test_refusals_read_like_a_servers(pki: Pki, node_pem: Path) -> None:
    with ApiServer(pki=pki) as server:
        tls = pki.client_context(node_pem)
        server.fail(403, resource="services")
        assert call(server, SERVICES, tls=tls).json["message"] == (
            'services is forbidden: User "system:node:worker-1" cannot list resource "services"'
            ' in API group "" at the cluster scope'
        )
        assert call(server, f"{NODES}/other", tls=tls).json["message"] == (
            'nodes "other" is forbidden: User "system:node:worker-1" cannot get resource "nodes"'
            " in API group \"\" at the cluster scope: node 'worker-1' cannot read 'other',"
            " only its own Node object"
        )


def test_tokens_stand_for_users(pki: Pki) -> None:
    tls = pki.client_context()
    with ApiServer(pki=pki, tokens={"secret": "admin"}) as server:
        answer = call(server, SERVICES, tls=tls)
        assert (answer.status, answer.json["message"]) == (401, "Unauthorized")
        assert call(server, SERVICES, tls=tls, token="wrong").status == 401
        server.put(service())
        assert call(server, WEB, "DELETE", tls=tls, token="secret").status == 200
        assert server.requests[-1].user == "admin"
        del server.tokens["secret"]
        assert call(server, SERVICES, tls=tls, token="secret").status == 401


def test_strangers_get_no_connection(pki: Pki, tmp_path: Path) -> None:
    Pki().write_node_client(tmp_path / "stranger.pem", "worker-1")
    tls = pki.client_context()
    tls.load_cert_chain(tmp_path / "stranger.pem")
    with ApiServer(pki=pki) as server, pytest.raises((ssl.SSLError, ConnectionError)):
        call(server, SERVICES, tls=tls)


def test_an_expired_certificate_is_unauthorized(pki: Pki, tmp_path: Path) -> None:
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    pki.write_node_client(tmp_path / "old.pem", "worker-1", not_after=past)
    with ApiServer(pki=pki) as server:
        tls = pki.client_context(tmp_path / "old.pem")
        assert call(server, SERVICES, tls=tls).status == 401


def test_serial_numbers_show_a_rotation(pki: Pki, node_pem: Path) -> None:
    with ApiServer(pki=pki) as server:
        call(server, SERVICES, tls=pki.client_context(node_pem))
        serial = pki.write_node_client(node_pem, "worker-1")
        call(server, SERVICES, tls=pki.client_context(node_pem))
        first, second = server.requests
        assert first.serial != second.serial == serial


def test_watches_are_dropped_through_tls(pki: Pki, node_pem: Path) -> None:
    tls = pki.client_context(node_pem)
    with ApiServer(pki=pki) as server, contextlib.closing(connect(server, tls)) as connection:
        connection.request("GET", f"{SERVICES}?watch=true")
        response = connection.getresponse()
        server.wait_for(lambda: server.watches("services") == 1)
        server.drop_watches()
        # Up to Python 3.12, ssl takes a reset for the end of the stream.
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            response.read()


# 9. Files


def test_kubeconfig_is_as_kubeadm_leaves_it(pki: Pki, node_pem: Path, tmp_path: Path) -> None:
    path = tmp_path / "kubelet.conf"
    pki.write_kubeconfig(path, "https://127.0.0.1:6443", node_pem)
    config = yaml.safe_load(path.read_text())
    (context,) = config["contexts"]
    (cluster,) = config["clusters"]
    (user,) = config["users"]
    assert config["current-context"] == context["name"]
    assert context["context"]["cluster"] == cluster["name"]
    assert context["context"]["user"] == user["name"]
    assert cluster["cluster"]["server"] == "https://127.0.0.1:6443"
    assert "certificate-authority-data" in cluster["cluster"]
    assert set(user["user"].values()) == {str(node_pem)}
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, node_pem)] == [0o600] * 2
    pem = node_pem.read_text()
    assert pem.index("BEGIN CERTIFICATE") < pem.index("PRIVATE KEY")


def test_kubeconfig_without_tls(tmp_path: Path) -> None:
    plain_kubeconfig(tmp_path / "plain.conf", "http://127.0.0.1:8080", "worker-1")
    config = yaml.safe_load((tmp_path / "plain.conf").read_text())
    assert config["clusters"][0]["cluster"] == {"server": "http://127.0.0.1:8080"}
    assert config["users"] == [{"name": "system:node:worker-1", "user": {}}]
