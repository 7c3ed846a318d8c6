"""Which pods are gathered as left out, and when the API server is asked for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.check import gather_pods
from ipvs_node_agent.check.gather_pods import look_at_pods
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.host import links, pods
from ipvs_node_agent.host.links import Links, Route
from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import Snapshot, UncoveredPod
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, node, pod
from tests.support.pki import plain_kubeconfig

SEEN = Snapshot({}, read_node(node(*POD_CIDRS)))


@pytest.fixture
def server(
    tmp_path: Path, kubeconfig_read_here: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiServer]:
    monkeypatch.setattr(gather_pods, "neighbours", frozenset)
    monkeypatch.setattr(pods, "plugins", list)
    with ApiServer() as running:
        plain_kubeconfig(tmp_path / "kubelet.conf", running.url, "worker-1")
        running.put(pod("web", "10.9.0.5"))
        yield running


@pytest.mark.parametrize(
    ("routed", "interfaces", "found", "asked"),
    [
        ("10.240.2.130/32", (), (), 0),
        ("10.9.0.5/32", ("veth+",), (), 0),
        ("10.9.0.6/32", (), (), 1),
        (
            "10.9.0.5/32",
            (),
            (UncoveredPod("default/web", parse_address("10.9.0.5"), "veth1"),),
            1,
        ),
    ],
)
def test_pods_are_asked_for_where_addresses_are_left_over(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    routed: str,
    interfaces: tuple[str, ...],
    found: tuple[UncoveredPod, ...],
    asked: int,
) -> None:
    route = Route(parse_network(routed), "veth1", False)
    monkeypatch.setattr(links, "ask", lambda: Links(routes=frozenset({route})))
    api, config = Api(tmp_path / "kubelet.conf"), Config()
    seen = Snapshot(SEEN.services, SEEN.node, pod_interfaces=interfaces)
    assert (look_at_pods(api, config, seen), len(server.requests)) == (found, asked)
    server.fail(403)
    assert look_at_pods(api, config, seen) == ()


def test_a_kernel_that_tells_nothing_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses() -> None:
        raise OSError("no netlink")

    monkeypatch.setattr(links, "ask", refuses)
    assert look_at_pods(Api(tmp_path), Config(), SEEN) == ()
