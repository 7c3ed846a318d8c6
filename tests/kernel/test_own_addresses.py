"""Addresses that the host has, as its kernel says: there a Service has its ports and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import OTHER, WEB, WEB6, Bed
from tests.support.cluster import service
from tests.support.netns import link
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    Topology,
    ask,
    own,
    serving,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

SSH = 22
# On an interface that the Node does not tell of.
SECOND = {4: "192.168.8.11", 6: "fd00:192:168:8::11"}


@pytest.fixture
def wired(wired: Topology) -> Iterator[Topology]:
    """The host has a second interface, and listens; whoever is led astray is told so."""
    link(wired.node, wired.outside, "eth1", "eth1")
    wired.node.add_address("eth1", *(f"{a}/{64 if ':' in a else 24}" for a in SECOND.values()))
    hosts = [*SECOND.values(), *EXTERNAL_IP.values()]
    with ExitStack() as stack:
        stack.enter_context(serving(wired.node, *hosts, port=SSH, says=own))
        stack.enter_context(serving(wired.backend, *CLUSTER_IP.values(), port=SSH, says=own))
        yield wired


def met(wired: Topology, addresses: dict[int, str], port: int) -> set[str]:
    """Who answers pods and the host there, in both families."""
    clients = (wired.pod, wired.node)
    return {ask(client, address, port) for client in clients for address in addresses.values()}


def test_ssh_on_an_interface_of_its_own_stays_reachable(wired: Topology, wired_bed: Bed) -> None:
    wired_bed.api.put(service("web", [*CLUSTER_IP.values()], SECOND.values()))
    wired_bed.agent.start()
    assert met(wired, SECOND, 80) == {*NODE_TO_BACKEND.values()}
    assert met(wired, SECOND, SSH) == {*SECOND.values()}


def move(wired: Topology, action: str) -> None:
    """Has the VIP, which is the Service's external IP, come here, or go away."""
    for version, vip in EXTERNAL_IP.items():
        prefix = f"{vip}/{32 if version == 4 else 128}"
        extra = ["nodad"] if version == 6 and action == "add" else []
        wired.node.run("ip", "address", action, prefix, "dev", "eth0", *extra)


def test_a_vip_that_comes_is_narrowed_at_once_and_costs_nothing_where_it_flaps(
    wired: Topology, wired_bed: Bed
) -> None:
    """It is also on kube-ipvs0 all the time, which makes it nobody's own."""
    wired_bed.agent.options = ["--log-level", "debug"]
    wired_bed.put(WEB, WEB6)
    wired_bed.agent.start()
    wired_bed.expect(WEB, WEB6)
    assert met(wired, EXTERNAL_IP, SSH) == {*CLUSTER_IP.values()}, (
        "the whole address is the Service's"
    )
    move(wired, "add")
    # Nobody looks for addresses: it is told of them.
    eventually(lambda: narrowed(wired_bed), lambda: wired_bed.agent.log)
    assert met(wired, EXTERNAL_IP, 80) == {*NODE_TO_BACKEND.values()}
    assert met(wired, EXTERNAL_IP, SSH) == {*EXTERNAL_IP.values()}
    wired_bed.put(OTHER)
    eventually(lambda: wired_bed.has(OTHER[0]))
    wired_bed.settled()
    before = wired_bed.agent.log.count("wrote")
    for action in ("del", "add", "del"):
        move(wired, action)
    # What is told later is done later.
    wired.node.add_address("eth0", f"{OTHER[0]}/32")
    eventually(lambda: narrowed(wired_bed, "other"))
    assert narrowed(wired_bed)
    wired_bed.settled()
    assert wired_bed.agent.log.count("wrote") == before + 1, wired_bed.agent.log
    # Who looks now goes by what the agent goes by.
    compared = wired_bed.agent.call("diff")
    assert compared.returncode == 0, compared.stdout


def narrowed(bed: Bed, name: str = "web") -> bool:
    """Whether all rules of the Service match its port."""
    lines = [line for family in FAMILIES for line in bed.ours(family) if f"default/{name}" in line]
    return bool(lines) and all("--dport 80" in line for line in lines)
