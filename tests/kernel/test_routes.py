"""The way to an address, as the kernel has it."""

from __future__ import annotations

import pytest

from ipvs_node_agent.host.routes import Way, way_to
from ipvs_node_agent.model.addresses import Family, parse_address
from tests.support.topology import BACKEND, EXTERNAL_IP, NODE, NODE_TO_BACKEND, Topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

SECOND = {4: "192.168.7.50", 6: "fd00:192:168:7::50"}
NOWHERE = {4: "203.0.113.1", 6: "2001:db8:ffff::1"}


def test_the_way_to_an_address(around: Topology, family: Family) -> None:
    version = family.version
    around.node.add_address("eth0", f"{SECOND[version]}/24" if version == 4 else f"{SECOND[6]}/64")
    own, second, external, there = (
        parse_address(each[version]) for each in (NODE, SECOND, EXTERNAL_IP, BACKEND)
    )
    with around.node.enter():
        # IPv4's second address of a subnet has the first one as its source.
        ways = {own: own, external: external, second: own if version == 4 else second}
        for address, source in ways.items():
            way = Way(True, source, "lo")
            # The kernel makes the route of a new IPv6 address behind the command that adds it.
            eventually(lambda: way_to(address) == way, lambda: str(way_to(address)))  # noqa: B023
        assert way_to(there) == Way(False, parse_address(NODE_TO_BACKEND[version]), "to-backend")
        assert way_to(parse_address(NOWHERE[version])) is None
