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
from ipvs_node_agent.model.events import NODES, SERVICES, Event, Listed, Skipped
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


def listing(resource: str, version: str = "0", **document: Any) -> tuple[str, list[Event], Any]:
    """The version to go on from, what was told, and the request."""
    told: list[Event] = []
    api = Answering(json.dumps(document).encode())
    followed = {one.name: one for one in resources(cast(Api, api), Config())}
    after = list_all(cast(Api, api), followed[resource], version, told.append, clock=lambda: 7.0)
    return after, told, api.asked


def test_all_services_are_listed_and_what_is_none_is_passed_over() -> None:
    items = [service("web", ["10.231.42.164"], []), {"kind": "Pod"}]
    after, told, asked = listing(SERVICES, items=items, metadata={"resourceVersion": "12"})
    assert after == "12"
    skipped, listed = told
    assert skipped == Skipped(SERVICES, "wanted a Service, got 'Pod'")
    assert isinstance(listed, Listed)
    assert [item.key for item in listed.items] == ["default/web"]
    assert listed.arrived == 7.0
    assert asked == [("/api/v1/services", {"resourceVersion": "0"}, "list services", 60.0)]


def test_of_the_nodes_its_own_alone_is_asked_for() -> None:
    metadata = {"resourceVersion": "12"}
    _, told, asked = listing(NODES, "", items=[node("10.240.2.128/25")], metadata=metadata)
    assert isinstance(told[0], Listed)
    selector = {"fieldSelector": "metadata.name=worker-1"}
    assert asked == [("/api/v1/nodes", selector, "list nodes", 60.0)]


@pytest.mark.parametrize(
    ("document", "why"),
    [({"items": []}, "the list has no resourceVersion"), ({"items": [1], "metadata": 7}, "the l")],
)
def test_a_list_that_cannot_be_gone_on_from_tells_nothing(document: Any, why: str) -> None:
    with pytest.raises(ApiError, match=f"^API server: cannot list services: {why}"):
        listing(SERVICES, **document)


def test_half_a_list_is_an_error() -> None:
    api = cast(Api, Answering(b'{"items": ['))
    with pytest.raises(ApiError, match=r"^API server: cannot list services: the list breaks off$"):
        list_all(api, resources(api, Config())[0], "0", cast(Any, pytest.fail))


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
