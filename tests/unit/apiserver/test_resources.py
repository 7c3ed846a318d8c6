"""What is followed: the requests for it, and what one list of it gives."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.resources import host_name, list_all, node_name, resources
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.events import NODES, SERVICES
from tests.support.cluster import node, service


class Answering:
    """In the place of an Api: each request gets the same body, and is kept."""

    def __init__(self, body: bytes = b"", certified: str | None = "worker-1") -> None:
        self._body, self._certified = body, certified
        self.asked: list[tuple[str, Mapping[str, str], str, float]] = []

    def credentials(self) -> Any:
        return SimpleNamespace(node_name=self._certified)

    @contextmanager
    def get(self, *asked: Any) -> Iterator[Any]:
        self.asked.append(asked)
        yield SimpleNamespace(pieces=lambda: iter([self._body]))


def listing(name: str, body: bytes, version: str = "0") -> tuple[list[Any], str, list[str], Any]:
    """What is listed, the version to go on from, what was passed over, and the request."""
    skipped: list[str] = []
    api = Answering(body)
    followed = {one.name: one for one in resources(cast(Api, api), Config())}
    items, after = list_all(cast(Api, api), followed[name], version, skipped.append)
    return [*items], after, skipped, api.asked


def a_list(*items: Any) -> bytes:
    return json.dumps({"items": items, "metadata": {"resourceVersion": "12"}}).encode()


def test_all_services_are_listed_and_what_is_none_is_passed_over() -> None:
    body = a_list(service("web", ["10.231.42.164"], []), {"kind": "Pod"})
    items, after, skipped, asked = listing(SERVICES, body)
    assert [item.key for item in items] == ["default/web"]
    assert after == "12"
    assert skipped == ["wanted a Service, got 'Pod'"]
    assert asked == [("/api/v1/services", {"resourceVersion": "0"}, "list services", 60.0)]


def test_of_the_nodes_its_own_alone_is_asked_for() -> None:
    items, _, _, asked = listing(NODES, a_list(node("10.240.2.128/25")), "")
    assert [item.name for item in items] == ["worker-1"]
    selector = {"fieldSelector": "metadata.name=worker-1"}
    assert asked == [("/api/v1/nodes", selector, "list nodes", 60.0)]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"items": [1], "metadata": 7}', "the list has no resourceVersion"),
        (b'{"items": [', "the list breaks off"),
    ],
)
def test_what_cannot_be_gone_on_from_is_an_error(body: bytes, why: str) -> None:
    with pytest.raises(ApiError) as caught:
        listing(SERVICES, body)
    assert str(caught.value) == f"API server: cannot list services: {why}"


@pytest.mark.parametrize(
    ("configured", "certified", "name"),
    [
        ("worker-9", "worker-1", "worker-9"),
        (None, "worker-1", "worker-1"),
        # As the kubelet does it.
        (None, None, "worker-1.example.org"),
    ],
)
def test_the_nodes_name_is_the_first_that_is_known(
    configured: str | None, certified: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: " Worker-1.Example.ORG\n")
    api, config = cast(Api, Answering(certified=certified)), Config(node_name=configured)
    assert node_name(api, config) == name
    assert host_name() == "worker-1.example.org"
    services, nodes = resources(api, config)
    assert nodes.selector() == {"fieldSelector": f"metadata.name={name}"}
    assert services.selector() == {}
    # Whatever hides a ClusterIP would let another Service have it for an external IP.
    assert services.sparing == {"fieldSelector": "spec.type!=ExternalName,spec.clusterIP!=None"}
