"""What is gathered of the cluster: credentials, answers, refusals; and nothing is raised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.check import gather_cluster
from ipvs_node_agent.check.facts import ClusterFacts
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.kubeconfig.reader import MissingError
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.pki import Pki, plain_kubeconfig

# What was said to take its time.
DOING: list[str] = []


@pytest.fixture
def server(tmp_path: Path, kubeconfig_read_here: None) -> Iterator[ApiServer]:
    with ApiServer() as running:
        plain_kubeconfig(tmp_path / "kubelet.conf", running.url, "worker-1")
        running.put(node(*POD_CIDRS))
        running.put(service("web", ["10.231.42.164"], ["10.19.20.201"]))
        yield running


def gathered(directory: Path) -> ClusterFacts:
    early: list[ClusterFacts] = []
    config = Config(node_name="worker-1")
    found = look_at_cluster(Api(directory / "kubelet.conf"), config, DOING.append, early.append)
    # What is told early stays, but for what the Services add.
    (first,) = early
    assert first.services is None
    assert (first.error, first.node, first.node_name) == (found.error, found.node, found.node_name)
    return found


def test_a_server_is_asked_for_all_that_the_agent_will_ask(
    server: ApiServer, tmp_path: Path
) -> None:
    DOING.clear()
    found = gathered(tmp_path)
    assert DOING == ["reading the credentials", "listing nodes", "listing services"]
    assert found.node is not None
    assert (found.node.name, set(found.services or ())) == ("worker-1", {"default/web"})
    assert (found.server, found.refused, found.unreachable) == (server.url, (), None)
    asked = [(request.verb, request.resource) for request in server.requests]
    assert asked == [
        (verb, resource) for resource in ("nodes", "services") for verb in ("list", "watch")
    ]


def test_without_credentials_nobody_is_asked(server: ApiServer, tmp_path: Path, pki: Pki) -> None:
    (tmp_path / "kubelet.conf").unlink()
    found = gathered(tmp_path)
    assert isinstance(found.error, MissingError)
    assert (found.node_name, found.node, found.services) == ("worker-1", None, None)
    pki.write_kubeconfig(tmp_path / "kubelet.conf", "https://127.0.0.1:1", tmp_path / "none.pem")
    assert isinstance(gathered(tmp_path).error, MissingError)
    assert not server.requests


def test_a_server_that_is_away_is_asked_once(server: ApiServer, tmp_path: Path) -> None:
    server.stop()
    found = gathered(tmp_path)
    assert found.unreachable is not None
    assert (found.node, found.services, found.refused) == (None, None, ())


def test_a_server_that_hangs_keeps_nobody_waiting(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_cluster, "_TIMEOUT", 0.3)
    server.hang()
    started = time.monotonic()
    found = gathered(tmp_path)
    assert time.monotonic() - started < 5
    assert found.unreachable is not None


@pytest.mark.parametrize("resource", ["nodes", "services"])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_refusal_does_not_end_the_asking(
    server: ApiServer, tmp_path: Path, resource: str, verb: str
) -> None:
    server.fail(403, resource=resource, verb=verb)
    found = gathered(tmp_path)
    (refused,) = found.refused
    assert f"{verb} {resource}" in str(refused)
    assert {request.resource for request in server.requests} == {"nodes", "services"}
