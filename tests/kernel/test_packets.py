"""What becomes of packets: from a pod, from the host and from outside, through real chains."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4, IPV6, Family
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.tables import restore
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    Topology,
    ask,
)

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13", "oldest")]

REFUSED = "ConnectionRefusedError"
SOCKETS = {4: socket.AF_INET, 6: socket.AF_INET6}

SERVICE = service("one", list(CLUSTER_IP.values()), EXTERNAL_IP.values())


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """The node's API server and agent; the Service is known, the agent is not started."""
    with node_bed(wired.node, backend, tmp_path, node(*POD_CIDR.values()), SERVICE) as made:
        yield made


def test_without_the_agent_the_external_ip_is_unreachable(wired: Topology, family: Family) -> None:
    external = EXTERNAL_IP[family.version]
    assert ask(wired.pod, external) == REFUSED
    assert ask(wired.node, external) == REFUSED
    assert ask(wired.outside, external) == REFUSED
    # The ClusterIP itself works, so that nothing else is to blame.
    assert ask(wired.pod, CLUSTER_IP[family.version]) == POD[family.version]


def test_pod_and_host_reach_the_service_and_outsiders_are_left_alone(
    wired: Topology, bed: Bed, family: Family
) -> None:
    external, seen = EXTERNAL_IP[family.version], NODE_TO_BACKEND[family.version]
    bed.agent.start()
    assert ask(wired.pod, external) == seen
    assert ask(wired.node, external) == seen
    assert ask(wired.outside, external) == REFUSED
    # Stopping interrupts nothing; cleaning up takes the way back.
    bed.agent.stop()
    assert ask(wired.pod, external) == seen
    assert ask(wired.node, external) == seen
    assert bed.agent.call("cleanup").returncode == 0
    assert ask(wired.pod, external) == REFUSED
    assert ask(wired.node, external) == REFUSED


def test_connections_that_exist_outlive_the_agent_and_its_rules(
    wired: Topology, bed: Bed, family: Family
) -> None:
    bed.agent.start()
    with ExitStack() as stack:
        with wired.backend.enter():
            address = (CLUSTER_IP[family.version], 81)
            listener = socket.create_server(address, family=SOCKETS[family.version])
        stack.callback(listener.close)
        pairs = []
        for client in (wired.pod, wired.node):
            with client.enter():
                one = socket.create_connection((EXTERNAL_IP[family.version], 81), 5)
            stack.callback(one.close)
            other, _ = listener.accept()
            stack.callback(other.close)
            pairs.append((one, other))

        def they_talk() -> None:
            for one, other in pairs:
                other.settimeout(5)
                for source, target in ((one, other), (other, one)):
                    source.sendall(b"?")
                    assert target.recv(10) == b"?"

        they_talk()
        bed.agent.stop()
        they_talk()
        assert bed.agent.call("cleanup").returncode == 0
        they_talk()
    assert ask(wired.node, EXTERNAL_IP[family.version]) == REFUSED


def test_host_only_masquerade_keeps_the_pods_own_address(
    wired: Topology, bed: Bed, family: Family
) -> None:
    bed.agent.configure({**bed.settings, "masquerade": "HostOnly"})
    bed.agent.start()
    assert ask(wired.pod, EXTERNAL_IP[family.version]) == POD[family.version]
    assert ask(wired.node, EXTERNAL_IP[family.version]) == NODE_TO_BACKEND[family.version]


def test_other_destinations_are_as_before(wired: Topology, bed: Bed, family: Family) -> None:
    version = family.version

    def others() -> list[str]:
        clients = (wired.pod, wired.node, wired.outside)
        return [ask(client, CLUSTER_IP[version], timeout=0.5) for client in clients]

    before = others()
    bed.agent.start()
    assert others() == before


def test_rendered_rules_do_the_same(
    wired: Topology, bed: Bed, family: Family, tmp_path: Path
) -> None:
    """`render` piped into iptables-restore, with no agent at all."""
    import json

    manifest = tmp_path / "service.json"
    manifest.write_text(json.dumps(SERVICE))
    done = bed.agent.call(
        *("render", "-f", str(manifest), "--family", family.name),
        *("--pod-cidr", POD_CIDR[family.version]),
    )
    assert (done.returncode, done.stderr) == (0, "")
    restore(wired.node, family, bed.backend, done.stdout)
    assert ask(wired.pod, EXTERNAL_IP[family.version]) == NODE_TO_BACKEND[family.version]
    assert ask(wired.node, EXTERNAL_IP[family.version]) == NODE_TO_BACKEND[family.version]
    assert ask(wired.outside, EXTERNAL_IP[family.version]) == REFUSED
    # The agent finds nothing left to do in this family.
    bed.agent.start()
    assert f"{family}: wrote" not in bed.agent.log


def test_a_packet_walks_into_our_chain_and_no_further_than_it_must(
    wired: Topology, bed: Bed
) -> None:
    """The counters of the pod's rules rise by one for a connection, the host's by none."""
    bed.agent.start()
    ask(wired.pod, EXTERNAL_IP[IPV4.version])
    lines = wired.node.run(f"iptables-{bed.backend}-save", "-c", "-t", "nat").splitlines()
    counts = {
        chain: [line.split(":")[0] for line in lines if f"] -A {chain} " in line]
        for chain in ("IPVS_PREROUTING", "IPVS_OUTPUT")
    }
    assert counts == {"IPVS_PREROUTING": ["[1", "[1"], "IPVS_OUTPUT": ["[0", "[0"]}
    assert ask(wired.pod, EXTERNAL_IP[IPV6.version]) == NODE_TO_BACKEND[IPV6.version]
