"""External IPs that would hijack traffic: packets go where they went, and nobody is held up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.agentnode import with_metadata
from tests.support.cluster import service
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE,
    NODE_TO_BACKEND,
    POD,
    Topology,
    ask,
    own,
    serving,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("oldest")]

SSH = 22
GREEDY = {4: "10.231.66.6", 6: "fd00:231::66:6"}
# What the greedy Service may have.
HARMLESS = {4: "10.19.66.6", 6: "fd00:19::66:6"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
REFUSED = [
    *POD.values(),
    *CLUSTER_IP.values(),
    *LOOPBACK.values(),
    *("169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"),
]


@pytest.fixture
def wired(wired: Topology) -> Iterator[Topology]:
    """The node and the pod have servers of their own, and the greedy Service has its backend."""
    for version, bits in ((4, 32), (6, 128)):
        wired.backend.add_address("lo", f"{GREEDY[version]}/{bits}")
        wired.node.add_address("kube-ipvs0", f"{HARMLESS[version]}/{bits}")
    with ExitStack() as stack:
        stack.enter_context(serving(wired.backend, *GREEDY.values(), says=own))
        nodes = [*NODE.values(), *LOOPBACK.values()]
        for port in (80, SSH):
            stack.enter_context(serving(wired.node, *nodes, port=port, says=own))
        stack.enter_context(serving(wired.pod, *POD.values(), says=own))
        yield wired


@pytest.fixture
def bed(wired_bed: Bed) -> Bed:
    """A node with one honest Service; the agent is down."""
    wired_bed.put(WEB, WEB6)
    return wired_bed


def greedy(*external: str, **labels: str) -> dict[str, Any]:
    return with_metadata(service("greedy", [*GREEDY.values()], external), labels=labels)


def answers(wired: Topology) -> list[str]:
    """What the clients get where the greedy Service would like to be asked."""
    asked = [
        (client, addresses[version])
        for version in (4, 6)
        for client, addresses in (
            (wired.pod, NODE),
            (wired.node, NODE),
            (wired.node, LOOPBACK),
            (wired.node, POD),
            (wired.outside, NODE),
            (wired.pod, CLUSTER_IP),
            (wired.pod, EXTERNAL_IP),
            (wired.node, EXTERNAL_IP),
        )
    ]
    return [ask(client, address) for client, address in asked]


@pytest.mark.once("debian13", "oldest")
def test_refused_ips_divert_nothing_hold_up_nobody_and_are_said_once(
    wired: Topology, bed: Bed
) -> None:
    bed.agent.start()
    before = answers(wired)
    assert set(before).isdisjoint(GREEDY.values())
    # However often it changes, and whatever else does, each refusal is said once.
    for attempt in range(3):
        bed.api.put(greedy(*REFUSED, *HARMLESS.values(), attempt=f"a{attempt}"))
        later = f"10.19.30.{attempt}"
        bed.put((later, "later", "10.231.1.1"))
        eventually(lambda ip=later: bed.has(ip))  # type: ignore[misc]
    for client in (wired.pod, wired.node):
        assert [ask(client, ip) for ip in HARMLESS.values()] == [*GREEDY.values()]
    for address in REFUSED:
        assert bed.agent.log.count(f"default/greedy: {address} is refused: it is ") == 1, address
    assert answers(wired) == before


def test_a_cluster_ip_that_appears_later_takes_the_external_ip_away_while_it_is_there(
    wired: Topology, bed: Bed
) -> None:
    """The Service behind it can be reached at its ClusterIP, and others keep their rules."""
    bed.api.put(greedy(*GREEDY.values()))
    bed.put((HARMLESS[4], "taken", "10.231.5.5"))
    bed.agent.start()
    bed.agent.said(f"default/greedy: {GREEDY[4]} is refused: it is the ClusterIP of default/greedy")
    eventually(lambda: bed.has(HARMLESS[4]))
    bed.api.put(service("other", [HARMLESS[4]], []))
    eventually(lambda: not bed.has(HARMLESS[4]))
    assert ask(wired.pod, EXTERNAL_IP[4]) == NODE_TO_BACKEND[4]
    bed.delete("other")
    eventually(lambda: bed.has(HARMLESS[4]))


def test_the_nodes_own_address_may_be_had_by_port_and_its_other_ports_stay_its_own(
    wired: Topology, bed: Bed
) -> None:
    bed.api.put(greedy(*NODE.values()))
    bed.agent.start()
    for version, address in NODE.items():
        for client in (wired.pod, wired.node):
            assert [ask(client, address, port) for port in (80, SSH)] == [GREEDY[version], address]
        assert ask(wired.outside, address) == address, "outsiders are left alone"


def test_only_allowed_cidrs_are_programmed_where_they_are_set(wired: Topology, bed: Bed) -> None:
    narrow = {"allowedExternalCIDRs": ["10.19.20.0/24", "fd00:19::/112"]}
    wide = {"allowedExternalCIDRs": ["10.19.0.0/16", "fd00:19::/32"]}
    bed.api.put(greedy(*HARMLESS.values()))
    bed.configure(services=narrow)
    bed.agent.start()

    def expect(diverted: bool) -> None:
        eventually(lambda: [*map(bed.has, HARMLESS.values())] == [diverted, diverted])
        for version, external in EXTERNAL_IP.items():
            assert ask(wired.pod, external) == NODE_TO_BACKEND[version]

    expect(diverted=False)
    refusal = "is refused: it is outside services.allowedExternalCIDRs"
    for address in HARMLESS.values():
        assert bed.agent.log.count(f"default/greedy: {address} {refusal}") == 1
    bed.reload(services=wide)
    expect(diverted=True)
    assert [ask(wired.pod, ip) for ip in HARMLESS.values()] == [*GREEDY.values()]
    bed.reload(services=narrow)
    expect(diverted=False)
