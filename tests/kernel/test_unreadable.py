"""A table that iptables cannot read, although its command ends well: nothing is written there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

# A rule as only nft makes it, in the chain that iptables made: no iptables knows its set.
NATIVE = "add rule ip nat PREROUTING ip daddr { 9.9.9.9, 9.9.9.8 } tcp dport 80 dnat to 1.2.3.4:80"
WEB = ("10.19.20.201", "web", "10.231.42.164")


@pytest.fixture
def running(namespace: Namespace, tmp_path: Path) -> Iterator[Bed]:
    """The agent with a Service; the table is nft's."""
    add_mark_masq(namespace, IPV4, "nft")
    with node_bed(namespace, "nft", tmp_path, node(POD_CIDRS[0])) as bed:
        bed.api.put(service("web", [WEB[2]], [WEB[0]]))
        bed.agent.start()
        yield bed


def ruleset(bed: Bed) -> str:
    return bed.namespace.run("nft", "list", "table", "ip", "nat")


def make_unreadable(bed: Bed) -> None:
    bed.namespace.run("nft", *NATIVE.split())
    assert "*nat" not in bed.namespace.run("iptables-nft-save", "-t", "nat")


def test_where_the_table_cannot_be_read_nothing_is_written_and_it_is_said(running: Bed) -> None:
    make_unreadable(running)
    before = ruleset(running)
    running.agent.said("cannot program the kernel, trying again: ")
    running.api.put(service("other", ["10.231.2.62"], ["10.19.22.57"]))
    # A dozen tries, and looks for drift between them.
    for _ in range(3):
        told = running.agent.call("status", "-o", "json")
        assert told.returncode == 1
        assert "made with nft" in json.loads(told.stdout)["sentence"]
    cleaned = running.agent.call("cleanup")
    assert cleaned.returncode == 3
    assert ruleset(running) == before
    handle = running.namespace.run("nft", "-a", "list", "chain", "ip", "nat", "PREROUTING")
    number = next(line.split()[-1] for line in handle.splitlines() if "9.9.9.9" in line)
    running.namespace.run("nft", "delete", "rule", "ip", "nat", "PREROUTING", "handle", number)
    running.expect([WEB, ("10.19.22.57", "other", "10.231.2.62")], pod_cidrs=POD_CIDRS[:1])


def test_cleanup_fails_where_the_table_cannot_be_read(running: Bed) -> None:
    running.agent.stop()
    make_unreadable(running)
    before = ruleset(running)
    cleaned = running.agent.call("cleanup")
    assert cleaned.returncode == 3
    assert "holds what was made with nft" in cleaned.stderr
    assert ruleset(running) == before


def test_sockets_are_closed_when_the_configuration_is_read_again(running: Bed) -> None:
    def sockets() -> int:
        links = Path(f"/proc/{running.agent.pid}/fd").iterdir()
        return sum("socket:" in str(link.readlink()) for link in links if link.is_symlink())

    running.reload()
    eventually(lambda: "ready" in running.agent.log)
    before = sockets()
    for _ in range(20):
        running.reload()
    eventually(lambda: sockets() <= before + 1, f"{sockets()} sockets, {before} before")
