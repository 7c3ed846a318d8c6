"""External IPs by protocol and port: shared by Services, or since `matchPorts` says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.topology import EXTERNAL_IP, POD_CIDR, Topology, ask, own, serving
from tests.support.traffic import ask_sctp, ask_udp, more, serving_udp, streaming
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

FIRST = {4: "10.231.2.1", 6: "fd00:231::2:1"}
SECOND = {4: "10.231.2.2", 6: "fd00:231::2:2"}
OTHER_IP = {4: "10.19.20.202", 6: "fd00:19::202"}
# Nobody's port in any Service; the node itself answers on it, at the external IP.
NODES_PORT = 99


@pytest.fixture
def wired(wired: Topology) -> Iterator[Topology]:
    """The backend has two ClusterIPs, and tells which of them was asked."""
    clusters = [*FIRST.values(), *SECOND.values()]
    wired.backend.add_address("lo", *(f"{a}/{128 if ':' in a else 32}" for a in clusters))
    with ExitStack() as stack:
        for port in (80, 90):
            stack.enter_context(serving(wired.backend, *clusters, port=port, says=own))
            stack.enter_context(serving_udp(wired.backend, *clusters, port=port))
        stack.enter_context(serving(wired.backend, *clusters, port=NODES_PORT, says=own))
        stack.enter_context(
            serving(wired.node, *EXTERNAL_IP.values(), port=NODES_PORT, says=lambda _: "the node")
        )
        yield wired


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """The API server knows no Service yet; the agent is down."""
    with node_bed(wired.node, backend, tmp_path, node(*POD_CIDR.values())) as made:
        yield made


def first(*ports: str, created: str = "2024-01-01T00:00:00Z", **fields: Any) -> dict[str, Any]:
    return _sharing("first", FIRST, ports or ("80/TCP",), created, **fields)


def second(*ports: str, created: str = "2025-01-01T00:00:00Z", **fields: Any) -> dict[str, Any]:
    return _sharing("second", SECOND, ports or ("90/TCP",), created, **fields)


def _sharing(
    name: str, clusters: dict[int, str], ports: tuple[str, ...], created: str, **fields: Any
) -> dict[str, Any]:
    split = [port.split("/") for port in ports]
    listed = [{"name": f"p{n}{p.lower()}", "protocol": p, "port": int(n)} for n, p in split]
    made = service(name, list(clusters.values()), EXTERNAL_IP.values(), ports=listed, **fields)
    made["metadata"]["creationTimestamp"] = created
    return made


def by_port(bed: Bed) -> bool:
    """Whether the rules match ports, in both families."""
    lines = [line for f in FAMILIES for line in bed.ours(f) if "DNAT" in line and "first" in line]
    return len(lines) >= 4 and all("--dport" in line for line in lines)


def not_by_port(bed: Bed) -> bool:
    lines = [line for f in FAMILIES for line in bed.ours(f) if "DNAT" in line and "first" in line]
    return len(lines) == 4 and not any("--dport" in line for line in lines)


def test_services_that_share_an_ip_get_their_own_traffic(wired: Topology, bed: Bed) -> None:
    """TCP, UDP and SCTP; the same port of another protocol is another Service's."""
    bed.api.put(first("80/TCP", "90/UDP", "91/SCTP"))
    bed.api.put(second("90/TCP", "80/UDP", "92/SCTP"))
    bed.agent.start()
    for client in (wired.pod, wired.node):
        for version, external in EXTERNAL_IP.items():
            one, two = FIRST[version], SECOND[version]
            tcp = [ask(client, external, port) for port in (80, 90, NODES_PORT)]
            assert tcp == [one, two, "the node"]
            assert [ask_udp(client, external, port) for port in (80, 90)] == [two, one]
            sctp = [ask_sctp(client, external, p, wired.backend, one, two) for p in (91, 92)]
            assert sctp == [one, two]


@pytest.mark.once("debian13")
def test_matching_ports_always_leaves_the_ips_other_ports_alone(wired: Topology, bed: Bed) -> None:
    bed.api.put(first("80/TCP", "90/UDP", "91/SCTP"))
    bed.agent.start()
    for version, external in EXTERNAL_IP.items():
        assert ask(wired.pod, external, NODES_PORT) == FIRST[version], "every port is the Service's"
    bed.reload(services={"matchPorts": "Always"})
    eventually(lambda: by_port(bed))
    for client in (wired.pod, wired.node):
        for version, external in EXTERNAL_IP.items():
            one = FIRST[version]
            assert ask(client, external, 80) == ask_udp(client, external, 90) == one
            assert ask_sctp(client, external, 91, wired.backend, one) == one
            assert ask(client, external, NODES_PORT) == "the node"


@pytest.mark.once("debian13")
def test_shared_unshared_and_shared_again_without_a_gap(wired: Topology, bed: Bed) -> None:
    bed.api.put(first())
    bed.agent.start()
    elsewhere = second()
    elsewhere["status"]["loadBalancer"]["ingress"] = [{"ip": ip} for ip in OTHER_IP.values()]
    ignored = second()
    ignored["metadata"]["annotations"] = {"ipvs-node-agent/ignore": "true"}
    with (
        streaming(wired.pod, *EXTERNAL_IP.values()) as pod,
        streaming(wired.node, *EXTERNAL_IP.values()) as host,
    ):
        for gone in (elsewhere, ignored, None):
            bed.api.put(second())
            eventually(lambda: by_port(bed))
            more(pod, host)
            if gone is None:
                bed.api.delete("Service", "default", "second")
            else:
                bed.api.put(gone)
            eventually(lambda: not_by_port(bed))
            more(pod, host)
        for choice in ("Always", "Shared"):
            bed.reload(services={"matchPorts": choice})
            eventually(lambda: (by_port if choice == "Always" else not_by_port)(bed))  # noqa: B023
            more(pod, host)
        assert pod.seen() == host.seen() == {EXTERNAL_IP[v]: {FIRST[v]} for v in (4, 6)}


@pytest.mark.once("debian13")
def test_the_oldest_has_a_port_that_two_want_and_the_other_takes_over(
    wired: Topology, bed: Bed
) -> None:
    bed.api.put(second("80/TCP"))
    bed.api.put(first("80/TCP"))
    bed.agent.start()
    for external in EXTERNAL_IP.values():
        bed.agent.said(f"default/second: {external} tcp 80 is default/first's")
    with (
        streaming(wired.pod, *EXTERNAL_IP.values()) as pod,
        streaming(wired.node, *EXTERNAL_IP.values()) as host,
    ):
        more(pod, host)
        assert pod.seen() == host.seen() == {EXTERNAL_IP[v]: {FIRST[v]} for v in (4, 6)}
        bed.api.delete("Service", "default", "first")
        eventually(lambda: ask(wired.pod, EXTERNAL_IP[6]) == SECOND[6])
        eventually(lambda: ask(wired.pod, EXTERNAL_IP[4]) == SECOND[4])
        more(pod, host)
        # Each answer was one of the two: nobody found the IP without a Service.
        for seen in (pod.seen(), host.seen()):
            for version in (4, 6):
                assert seen[EXTERNAL_IP[version]] <= {FIRST[version], SECOND[version]}
        # Made again it is the younger one, and the port stays where it is.
        bed.api.put(first("80/TCP", created="2026-01-01T00:00:00Z"))
        bed.agent.said(f"default/first: {EXTERNAL_IP[4]} tcp 80 is default/second's")
        more(pod, host)
        assert pod.seen() == host.seen() == {EXTERNAL_IP[v]: {SECOND[v]} for v in (4, 6)}
