"""External IPs that would hijack traffic: packets go where they went, and nobody is held up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE,
    NODE_TO_BACKEND,
    POD,
    POD_CIDR,
    Topology,
    ask,
    own,
    serving,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

SSH = 22
GREEDY = {4: "10.231.66.6", 6: "fd00:231::66:6"}
# What the greedy Service may have.
HARMLESS = {4: "10.19.66.6", 6: "fd00:19::66:6"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
REFUSED = [
    *NODE.values(),
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
        wired.node.add_address("lo", f"{HARMLESS[version]}/{bits}")
    with ExitStack() as stack:
        stack.enter_context(serving(wired.backend, *GREEDY.values(), says=own))
        nodes = [*NODE.values(), *LOOPBACK.values()]
        for port in (80, SSH):
            stack.enter_context(serving(wired.node, *nodes, port=port, says=own))
        stack.enter_context(serving(wired.pod, *POD.values(), says=own))
        yield wired


@pytest.fixture
def bed(wired: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node with one honest Service; the agent is down."""
    honest = service("honest", list(CLUSTER_IP.values()), EXTERNAL_IP.values())
    with node_bed(wired.node, backend, tmp_path, node(*POD_CIDR.values()), honest) as made:
        yield made


def greedy(*external: str, **labels: str) -> dict[str, Any]:
    made = service("greedy", list(GREEDY.values()), external)
    made["metadata"]["labels"] = labels
    return made


def answers(wired: Topology) -> list[str]:
    """What the clients get where the greedy Service would like to be asked."""
    asked = [
        (client, address)
        for version in (4, 6)
        for client, address in (
            (wired.pod, NODE[version]),
            (wired.node, NODE[version]),
            (wired.node, LOOPBACK[version]),
            (wired.node, POD[version]),
            (wired.outside, NODE[version]),
            (wired.pod, CLUSTER_IP[version]),
            (wired.pod, EXTERNAL_IP[version]),
            (wired.node, EXTERNAL_IP[version]),
        )
    ]
    return [ask(client, address) for client, address in asked]


def test_refused_ips_divert_nothing_hold_up_nobody_and_are_said_once(
    wired: Topology, bed: Bed
) -> None:
    bed.agent.start()
    before = answers(wired)
    assert set(before).isdisjoint(GREEDY.values())
    bed.api.put(greedy(*REFUSED, *HARMLESS.values()))
    for version in (4, 6):
        for client in (wired.pod, wired.node):
            eventually(
                lambda: ask(client, HARMLESS[version]) == GREEDY[version],  # noqa: B023
                "the Service having its harmless IP",
            )
    assert answers(wired) == before
    # However often it changes, and whatever else does, each refusal is said once.
    for attempt in ("a", "b", "c"):
        bed.api.put(greedy(*REFUSED, *HARMLESS.values(), attempt=attempt))
        bed.api.put(service("later", ["10.231.1.1"], [f"10.19.30.{ord(attempt)}"]))
        eventually(
            lambda: any(f"10.19.30.{ord(attempt)}/32" in r for r in bed.ours(FAMILIES[0]))  # noqa: B023
        )
    for address in REFUSED:
        assert bed.agent.log.count(f"default/greedy: {address} is refused: it is ") == 1, address
    assert answers(wired) == before


@pytest.mark.once("oldest")
def test_a_cluster_ip_that_appears_later_takes_the_external_ip_away_while_it_is_there(
    wired: Topology, bed: Bed
) -> None:
    """The Service behind it can be reached at its ClusterIP, and others keep their rules."""
    bed.api.put(greedy(*GREEDY.values()))
    bed.api.put(service("taken", ["10.231.5.5"], [HARMLESS[4]]))
    bed.agent.start()
    bed.agent.said(f"default/greedy: {GREEDY[4]} is refused: it is the ClusterIP of default/greedy")
    eventually(lambda: any(HARMLESS[4] in line for line in bed.ours(FAMILIES[0])))
    bed.api.put(service("other", [HARMLESS[4]], []))
    eventually(lambda: not any(HARMLESS[4] in line for line in bed.ours(FAMILIES[0])))
    assert ask(wired.pod, EXTERNAL_IP[4]) == NODE_TO_BACKEND[4]
    bed.api.delete("Service", "default", "other")
    eventually(lambda: any(HARMLESS[4] in line for line in bed.ours(FAMILIES[0])))


@pytest.mark.once("oldest")
def test_the_nodes_own_address_may_be_had_by_port_and_its_other_ports_stay_its_own(
    wired: Topology, bed: Bed
) -> None:
    bed.agent.configure({**bed.settings, "services": {"matchPorts": "Always"}})
    bed.api.put(greedy(*NODE.values()))
    bed.agent.start()
    for version in (4, 6):
        for client in (wired.pod, wired.node):
            assert ask(client, NODE[version]) == GREEDY[version]
            assert ask(client, NODE[version], SSH) == NODE[version]
        assert ask(wired.outside, NODE[version]) == NODE[version], "outsiders are left alone"


@pytest.mark.once("oldest")
def test_only_allowed_cidrs_are_programmed_where_they_are_set(wired: Topology, bed: Bed) -> None:
    bed.api.put(greedy(*HARMLESS.values()))
    narrow = {"allowedExternalCIDRs": ["10.19.20.0/24", "fd00:19::/112"]}
    bed.agent.configure({**bed.settings, "services": narrow})
    bed.agent.start()

    def diverted(version: int) -> bool:
        return any(HARMLESS[version] in r for f in FAMILIES for r in bed.ours(f))

    refusal = "is refused: it is outside services.allowedExternalCIDRs"
    for version in (4, 6):
        assert ask(wired.pod, EXTERNAL_IP[version]) == NODE_TO_BACKEND[version]
        assert not diverted(version)
        assert bed.agent.log.count(f"default/greedy: {HARMLESS[version]} {refusal}") == 1
    bed.reload(services={"allowedExternalCIDRs": ["10.19.0.0/16", "fd00:19::/32"]})
    for version in (4, 6):
        eventually(lambda: ask(wired.pod, HARMLESS[version]) == GREEDY[version])  # noqa: B023
    bed.reload(services=narrow)
    for version in (4, 6):
        eventually(lambda: not diverted(version))  # noqa: B023
        assert ask(wired.pod, EXTERNAL_IP[version]) == NODE_TO_BACKEND[version]
