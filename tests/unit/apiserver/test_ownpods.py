"""This node's own pods, out of a list that may hold anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver import ownpods
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.ownpods import own_pods
from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import OwnPod
from tests.support import apiserver
from tests.support.apiserver import ApiServer
from tests.support.cluster import pod
from tests.support.pki import Pki, plain_kubeconfig


@pytest.fixture
def server(kubeconfig_read_here: None) -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def ask(server: ApiServer, tmp_path: Path) -> Callable[[], tuple[OwnPod, ...]]:
    plain_kubeconfig(tmp_path / "kubelet.conf", server.url, "worker-1")
    return lambda: own_pods(Api(tmp_path / "kubelet.conf"), "worker-1")


WEB = OwnPod("default/web", (parse_address("10.9.0.5"), parse_address("fd00:9::5")))


def changed(**status: Any) -> dict[str, Any]:
    return {**pod("bad", "10.9.0.6"), "status": {**pod("bad", "10.9.0.6")["status"], **status}}


NONE: dict[str, Any] = {
    "on the host's network": pod("bad", "10.9.0.6", hostNetwork=True),
    "an odd network": pod("bad", "10.9.0.6", hostNetwork="yes"),
    "another node": pod("bad", "10.9.0.6", node="worker-2"),
    "ended": changed(phase="Succeeded"),
    "failed": changed(phase="Failed"),
    "no phase": changed(phase=[]),
    "not started": changed(podIPs=[]),
    "no list": changed(podIPs="10.9.0.6"),
    "no addresses": changed(podIPs=[7, {}, {"ip": 7}, {"ip": "x"}, {"ip": "010.9.0.6"}]),
    "no status": {**pod("bad"), "status": [1]},
    "no name": {**pod("bad", "10.9.0.6"), "metadata": {"namespace": "default", "name": "a b"}},
    "no namespace": {**pod("bad", "10.9.0.6"), "metadata": {"name": "bad"}},
    "no object": "pod",
}


@pytest.mark.parametrize("raw", NONE.values(), ids=NONE)
def test_who_has_no_address_of_its_own_here_is_left_out(
    server: ApiServer, ask: Callable[[], tuple[OwnPod, ...]], raw: Any
) -> None:
    server.put(pod("web", "10.9.0.5", "fd00:9::5"))
    server.put_raw("Pod", "default", "bad", raw)
    assert ask() == (WEB,)


def test_a_server_that_knows_no_selector_gives_no_others(
    server: ApiServer, ask: Callable[[], tuple[OwnPod, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver, "selector_of", lambda _: [])
    server.put(pod("web", "10.9.0.5", "fd00:9::5"))
    server.put(pod("far", "10.9.0.6", node="worker-2"))
    assert ask() == (WEB,)


def test_one_that_starts_counts(server: ApiServer, ask: Callable[[], tuple[OwnPod, ...]]) -> None:
    raw = pod("web", "10.9.0.5", "fd00:9::5")
    raw["status"]["phase"] = "Pending"
    server.put(raw)
    assert ask() == (WEB,)


def test_they_are_asked_for_as_a_node_may(tmp_path: Path, pki: Pki) -> None:
    with ApiServer(pki=pki) as server:
        server.put(pod("web", "10.9.0.5", "fd00:9::5"))
        pki.write_node_client(tmp_path / "client.pem", "worker-1")
        pki.write_kubeconfig(tmp_path / "kubelet.conf", server.url, tmp_path / "client.pem")
        assert own_pods(Api(tmp_path / "kubelet.conf"), "worker-1") == (WEB,)
        (request,) = server.requests
    # Out of the server's cache.
    assert request.params == {"fieldSelector": "spec.nodeName=worker-1", "resourceVersion": "0"}


@pytest.mark.parametrize("limit", ["_MOST_BYTES", "_MOST_PODS"])
def test_more_than_a_node_has_is_not_read(
    server: ApiServer,
    ask: Callable[[], tuple[OwnPod, ...]],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    for name in ("a", "b", "c"):
        server.put(pod(name, "10.9.0.5"))
    assert len(ask()) == 3
    monkeypatch.setattr(ownpods, limit, 2)
    with pytest.raises(ValueError, match=r"more pods than a node has|too large"):
        ask()


def test_what_is_refused_or_broken_is_an_error(
    server: ApiServer, ask: Callable[[], tuple[OwnPod, ...]]
) -> None:
    server.fail(403, resource="pods", times=1)
    with pytest.raises(ApiError, match="refused to list this node's pods: 403"):
        ask()
    server.truncate_lists()
    with pytest.raises((ApiError, ValueError)):
        ask()
