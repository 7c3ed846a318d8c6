"""The test API server behaves as a Kubernetes API server does."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3

from ipvs_node_agent.apiserver.bodies import Line, read_lines
from tests.support import apiserver
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki

SERVICES = "/api/v1/services"
NODES = "/api/v1/nodes"
EVENTS = "/api/v1/namespaces/default/events"
STREAMING_LIST: dict[str, Any] = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(streaming_lists=True) as running:
        yield running


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "metadata": {"name": name}, "spec": spec}


def node(name: str) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": name}}


def call(
    server: ApiServer,
    path: str = SERVICES,
    *,
    body: Any = None,
    tls: ssl.SSLContext | None = None,
    token: str = "",
    **params: Any,
) -> Any:
    """The answer to a GET or, with a body, a POST, read to its end."""
    # Older versions of urllib3 compare names alone with a certificate.
    url = f"{server.url}{path}?{urlencode(params)}".replace("127.0.0.1", "localhost")
    data = None if body is None else json.dumps(body)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib3.PoolManager(ssl_context=tls, retries=False, timeout=5.0) as pool:
        return pool.request("GET" if body is None else "POST", url, body=data, headers=headers)


def content(answer: Any) -> Any:
    """What is in an answer."""
    return json.loads(answer.data)


class Stream:
    """An open watch."""

    def __init__(self, response: Any) -> None:
        self._lines = read_lines(response.stream(), "watch")

    def named(self) -> tuple[str, str]:
        kind, obj = next(self._lines)
        return kind, obj["metadata"]["name"]

    def event(self) -> Line:
        return next(self._lines)


@contextlib.contextmanager
def watching(server: ApiServer, **params: Any) -> Iterator[Stream]:
    """A watch of Services, from what there is now unless it says from where."""
    if "resourceVersion" not in params and "sendInitialEvents" not in params:
        params["resourceVersion"] = version(server)
    url = f"{server.url}{SERVICES}?{urlencode({'watch': 'true', **params})}"
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        response = pool.request("GET", url, preload_content=False)
        assert response.status == 200
        yield Stream(response)
        response.close()


def version(server: ApiServer) -> str:
    return str(content(call(server))["metadata"]["resourceVersion"])


def found(server: ApiServer, **params: Any) -> list[str]:
    return [item["metadata"]["name"] for item in content(call(server, **params))["items"]]


# 1. Objects


@pytest.mark.parametrize("weird", [None, "text", [], {"metadata": "x", "spec": None}])
def test_raw_objects_are_served_as_they_are(server: ApiServer, weird: Any) -> None:
    with watching(server, fieldSelector="spec.type!=ExternalName") as stream:
        server.put_raw("Service", "default", "odd", weird)
        assert stream.event() == ("ADDED", weird)
        assert content(call(server, fieldSelector="spec.type!=X"))["items"] == [weird]
        server.delete("Service", "default", "odd")
        assert stream.event() == ("DELETED", weird)


def test_lists_print_like_go(server: ApiServer) -> None:
    metadata = {"name": "web", "uid": "u", "creationTimestamp": "2024-01-01T00:00:00Z"}
    server.put({**service(note="<é&>"), "metadata": metadata})
    answer = call(server)
    assert answer.data.decode() == (
        '{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"2"},"items":['
        '{"metadata":{"name":"web","uid":"u","creationTimestamp":"2024-01-01T00:00:00Z",'
        '"namespace":"default","resourceVersion":"2"},"spec":{"note":"\\u003cé\\u0026\\u003e"}}]}\n'
    )
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Content-Type"].startswith("application/json")


# 2. Watches


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


def test_bookmarks_tell_the_version_to_who_wants_to_know(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver, "_BOOKMARK_SECONDS", 0.05)
    with watching(server, allowWatchBookmarks="true") as stream, watching(server) as other:
        for _ in range(2):
            kind, obj = stream.event()
            assert (kind, obj["metadata"]["resourceVersion"]) == ("BOOKMARK", version(server))
        server.put(service())
        assert other.named() == ("ADDED", "web")


def test_field_selectors(server: ApiServer) -> None:
    server.put(service("lb", type="LoadBalancer", clusterIP="10.0.0.1"))
    server.put(service("none", type="ClusterIP", clusterIP="None"))
    assert found(server, fieldSelector="metadata.name=lb") == ["lb"]
    assert found(server, fieldSelector="spec.type!=LoadBalancer") == ["none"]
    assert found(server, fieldSelector="spec.clusterIP!=None,spec.type!=ExternalName") == ["lb"]
    assert found(server, fieldSelector="spec.clusterIP==None") == ["none"]
    assert call(server, fieldSelector="spec.ports=1").status == 400


def test_objects_enter_and_leave_a_selection(server: ApiServer) -> None:
    with watching(server, fieldSelector="spec.type=LoadBalancer") as stream:
        server.put(service(type="ClusterIP"))
        server.put(service(type="LoadBalancer"))
        left = server.put(service(type="ClusterIP"))
        assert stream.named() == ("ADDED", "web")
        kind, obj = stream.event()
        assert (kind, obj["spec"]) == ("DELETED", {"type": "LoadBalancer"})
        assert obj["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]


def test_a_streaming_list_ends_in_a_marked_bookmark(server: ApiServer) -> None:
    server.put(service())
    with watching(server, allowWatchBookmarks="true", **STREAMING_LIST) as stream:
        assert stream.named() == ("ADDED", "web")
        kind, obj = stream.event()
        assert kind == "BOOKMARK"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert obj["metadata"]["resourceVersion"] == version(server)
        server.put(service("next"))
        assert stream.named() == ("ADDED", "next")


def test_older_servers_refuse_streaming_lists() -> None:
    with ApiServer() as server:
        answer = call(server, watch="true", **STREAMING_LIST)
    assert (answer.status, content(answer)["reason"]) == (422, "Invalid")
    assert "unless the WatchList feature gate is enabled" in content(answer)["message"]


def test_a_compacted_version_is_gone(server: ApiServer) -> None:
    old = version(server)
    server.compact()
    answer = call(server, watch="true", resourceVersion=old)
    assert (answer.status, content(answer)["reason"]) == (410, "Expired")
    with watching(server):
        pass


# 3. Users


def test_a_node_may_do_what_a_node_may(pki: Pki, node_pem: Path) -> None:
    tls = pki.client_context(node_pem)
    myself = {"fieldSelector": "metadata.name=worker-1"}
    now = {"watch": "true", "timeoutSeconds": "0"}
    event = {"metadata": {"name": "e"}}
    with ApiServer(pki=pki) as server:

        def status(path: str, **params: Any) -> int:
            return int(call(server, path, tls=tls, **params).status)

        assert status(SERVICES) == status(SERVICES, **now) == 200
        assert status(NODES, **myself) == status(NODES, **now, **myself) == 200
        assert status(NODES) == status(NODES, fieldSelector="metadata.name=worker-2") == 403
        assert status(NODES, watch="true") == 403
        assert status(EVENTS, body=event) == 201
        assert status("/api/v1/events") == 403
        assert status("/api/v1/namespaces/default/services", body=event) == 403
        assert {request.user for request in server.requests} == {"system:node:worker-1"}
        assert content(call(server, NODES, tls=tls))["message"] == (
            'nodes is forbidden: User "system:node:worker-1" cannot list resource "nodes"'
            " in API group \"\" at the cluster scope: node 'worker-1' cannot read all nodes,"
            " only its own Node object"
        )


def test_tokens_stand_for_users(pki: Pki) -> None:
    tls = pki.client_context()
    with ApiServer(pki=pki, tokens={"secret": "system:node:worker-1"}) as server:
        answer = call(server, tls=tls)
        assert (answer.status, content(answer)["message"]) == (401, "Unauthorized")
        assert call(server, tls=tls, token="wrong").status == 401
        assert call(server, tls=tls, token="secret").status == 200
        assert server.requests[-1].user == "system:node:worker-1"


def test_strangers_get_no_connection(pki: Pki, tmp_path: Path) -> None:
    Pki().write_node_client(tmp_path / "stranger.pem", "worker-1")
    tls = pki.client_context()
    tls.load_cert_chain(tmp_path / "stranger.pem")
    with ApiServer(pki=pki) as server, pytest.raises(urllib3.exceptions.HTTPError):
        call(server, tls=tls)


def test_a_certificate_has_a_serial_number_and_an_end(pki: Pki, node_pem: Path) -> None:
    serial = pki.write_node_client(node_pem, "worker-1")
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    with ApiServer(pki=pki) as server:
        assert call(server, tls=pki.client_context(node_pem)).status == 200
        assert server.requests[-1].serial == serial
        pki.write_node_client(node_pem, "worker-1", not_after=past)
        assert call(server, tls=pki.client_context(node_pem)).status == 401
