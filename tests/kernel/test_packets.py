"""What becomes of packets: from a pod, from the host and from outside, through real chains."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from ipvs_node_agent.model.addresses import IPV4, Family
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD,
    Topology,
    ask,
)

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

REFUSED = "ConnectionRefusedError"
VERSIONS = (4, 6)


@pytest.fixture
def bed(wired_bed: Bed) -> Bed:
    wired_bed.put(WEB, WEB6)
    return wired_bed


def expect(wired: Topology, pod: dict[int, str], host: dict[int, str]) -> None:
    """What the pod and the host get at the external IP; outsiders are left alone."""
    for version, external in EXTERNAL_IP.items():
        got = [ask(client, external) for client in (wired.pod, wired.node, wired.outside)]
        assert got == [pod[version], host[version], REFUSED]


NOTHING = dict.fromkeys(VERSIONS, REFUSED)


@pytest.mark.once("debian13", "oldest")
def test_pod_and_host_reach_the_service_and_outsiders_are_left_alone(
    wired: Topology, bed: Bed
) -> None:
    expect(wired, NOTHING, NOTHING)
    # The ClusterIP itself works, so that nothing else is to blame.
    for version, cluster in CLUSTER_IP.items():
        assert ask(wired.pod, cluster) == POD[version]
    bed.agent.start()
    expect(wired, NODE_TO_BACKEND, NODE_TO_BACKEND)
    # Stopping interrupts nothing; cleaning up takes the way back.
    bed.agent.stop()
    expect(wired, NODE_TO_BACKEND, NODE_TO_BACKEND)
    assert bed.agent.call("cleanup").returncode == 0
    expect(wired, NOTHING, NOTHING)


@pytest.mark.once("debian13", "oldest")
def test_connections_that_exist_outlive_the_agent_and_its_rules(
    wired: Topology, bed: Bed, family: Family
) -> None:
    bed.agent.start()
    with ExitStack() as stack:
        with wired.backend.enter():
            kind = socket.AF_INET if family is IPV4 else socket.AF_INET6
            listener = socket.create_server((CLUSTER_IP[family.version], 81), family=kind)
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
    expect(wired, NOTHING, NOTHING)


def test_other_destinations_are_as_before(wired: Topology, bed: Bed) -> None:
    def others() -> list[str]:
        clients = (wired.pod, wired.node, wired.outside)
        return [ask(one, to, timeout=0.5) for one in clients for to in CLUSTER_IP.values()]

    before = others()
    bed.agent.start()
    assert others() == before


def test_a_packet_walks_into_our_chain_and_no_further_than_it_must(
    wired: Topology, bed: Bed
) -> None:
    """The counters of the pod's rules rise by one for a connection, the host's by none."""
    bed.agent.start()
    ask(wired.pod, EXTERNAL_IP[4])
    lines = wired.node.run(f"iptables-{bed.backend}-save", "-c", "-t", "nat").splitlines()
    counts = {
        chain: [line.split(":")[0] for line in lines if f"] -A {chain} " in line]
        for chain in ("IPVS_PREROUTING", "IPVS_OUTPUT")
    }
    assert counts == {"IPVS_PREROUTING": ["[1", "[1"], "IPVS_OUTPUT": ["[0", "[0"]}
