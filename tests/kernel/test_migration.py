"""From the programs that came before, as docs/migration.md says: no connection fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from tests.kernel.conftest import WEB, WEB6, Bed, node_bed
from tests.support.documents import MIGRATION
from tests.support.netns import Namespace
from tests.support.predecessors import (
    MANAGERS_CHAINS,
    ipvs_node_controller,
    network_node_manager,
)
from tests.support.tables import add_foreign_rules, foreign, ours, restore, saved
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD_CIDR,
    Topology,
    ask,
)
from tests.support.traffic import streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

ADDRESSES = {"cidr": POD_CIDR, "external": EXTERNAL_IP, "cluster": CLUSTER_IP}
OTHERS = {"nft": "legacy", "legacy": "nft"}
NFT = pytest.mark.parametrize(("backend", "theirs"), [("nft", "nft")])


@pytest.fixture(params=["same", "other"])
def theirs(request: pytest.FixtureRequest, backend: str) -> str:
    """The backend that the other program's iptables has, which need not be the node's."""
    return backend if request.param == "same" else OTHERS[backend]


@pytest.fixture
def moving(around: Topology, backend: str, theirs: str, tmp_path: Path) -> Iterator[Bed]:
    """A node with kube-proxy's and others' rules in both backends that are in use."""
    for family in FAMILIES:
        for each in {backend, theirs}:
            add_foreign_rules(around.node, family, each)
    with node_bed(around.node, backend, tmp_path) as made:
        made.put(WEB, WEB6)
        yield made


def everything(namespace: Namespace) -> list[str]:
    """The lines of all tables of both families and backends, without counters and dates."""
    commands = [f"{family.command}-{backend}-save" for family in FAMILIES for backend in OTHERS]
    lines = [line for command in commands for line in namespace.run(command).splitlines()]
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#")]


def theirs_in(namespace: Namespace, tables: str = "nat filter raw") -> list[str]:
    """Lines of network-node-manager's in these tables."""
    found, wanted = [], False
    for line in everything(namespace):
        if line.startswith("*"):
            wanted = line[1:] in tables.split()
        found += [line] if wanted and "NMANAGER_" in line else []
    return found


def clean(namespace: Namespace, script: str) -> None:
    """Runs what the document says."""
    assert namespace.run("sh", "-euc", script) == ""


def put_theirs_first(namespace: Namespace, backend: str) -> None:
    """As it does itself where it finds its jump missing."""
    for family in FAMILIES:
        jumps = [(built_in, f"NMANAGER_{built_in}") for built_in in ("PREROUTING", "OUTPUT")]
        lines = [f"-D {one} -j {chain}\n-I {one} 1 -j {chain}\n" for one, chain in jumps]
        restore(namespace, family, backend, f"*nat\n{''.join(lines)}COMMIT\n")


def test_from_network_node_manager_no_connection_fails(
    around: Topology, moving: Bed, theirs: str
) -> None:
    for family in FAMILIES:
        network_node_manager(around.node, family, theirs, ADDRESSES)
    with streams(around) as flowing:
        flowing.expect(NODE_TO_BACKEND)
        # Side by side, with ours first.
        moving.agent.start()
        flowing.expect(NODE_TO_BACKEND)
        # Theirs first, for as long as it takes the agent to put that right.
        put_theirs_first(around.node, theirs)
        flowing.expect(NODE_TO_BACKEND)
        # And without them.
        clean(around.node, MIGRATION.script("remove-nat-chains"))
        assert not theirs_in(around.node, "nat")
        flowing.expect(NODE_TO_BACKEND)
        moving.agent.stop()
        flowing.expect(NODE_TO_BACKEND)


def test_one_behind_the_other_either_way_they_lead_to_the_same_place(
    around: Topology, moving: Bed, theirs: str
) -> None:
    for each in FAMILIES:
        network_node_manager(around.node, each, theirs, ADDRESSES)
    moving.agent.start()
    moving.agent.stop()
    # Nobody changes the order now.
    for _ in range(2):
        for client in (around.pod, around.node):
            for version, external in EXTERNAL_IP.items():
                assert ask(client, external) == NODE_TO_BACKEND[version]
        put_theirs_first(around.node, theirs)


@pytest.mark.parametrize("theirs", ["nft", "legacy"])
@pytest.mark.parametrize("backend", ["nft"])
def test_their_nat_chains_go_and_all_else_stays(around: Topology, moving: Bed, theirs: str) -> None:
    def kept() -> list[str]:
        """All but the frame of tables that nobody else has used, which theirs leave."""
        frame = re.compile(r"\*(filter|raw)|COMMIT|:[A-Z]+ ACCEPT")
        return [line for line in everything(around.node) if not frame.fullmatch(line)]

    moving.agent.start()
    before = kept()
    for family in FAMILIES:
        network_node_manager(around.node, family, theirs, ADDRESSES)
    # Ours are the first again.
    eventually(lambda: moving.agent.call("diff").returncode == 0)
    script = MIGRATION.script("remove-nat-chains")
    others = theirs_in(around.node, "filter raw")
    assert others
    for _ in range(2):
        clean(around.node, script)
        assert not theirs_in(around.node, "nat")
        assert theirs_in(around.node, "filter raw") == others
    # In all tables, as the document says how.
    assert MIGRATION.words("Without `-t nat`")
    for _ in range(2):
        clean(around.node, script.replace(" -t nat", ""))
        assert not theirs_in(around.node)
    assert kept() == before


@NFT
def test_removing_makes_no_table(around: Topology, moving: Bed, theirs: str) -> None:
    """To look at a legacy table makes it, and the kernel then walks it."""
    network_node_manager(around.node, IPV4, theirs, ADDRESSES)
    clean(around.node, MIGRATION.script("remove-nat-chains"))
    names = around.node.run("sh", "-c", "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names")
    assert "nat" not in names


def test_what_check_says_to_a_left_chain_is_what_the_document_says(
    around: Topology, moving: Bed, theirs: str
) -> None:
    network_node_manager(around.node, IPV4, theirs, ADDRESSES)
    said = moving.agent.call("check").stdout
    (line,) = (line for line in said.splitlines() if "left chains NMANAGER_..." in line)
    before = foreign(saved(around.node, IPV4, theirs))
    clean(around.node, line.partition(" => ")[2])
    assert not theirs_in(around.node, "nat")
    kept = [line for line in before if not any(chain in line for chain in MANAGERS_CHAINS)]
    assert foreign(saved(around.node, IPV4, theirs)) == kept


def test_from_ipvs_node_controller_no_connection_fails(
    around: Topology, moving: Bed, theirs: str
) -> None:
    def left(family: Family) -> list[str]:
        return ours(saved(around.node, family, theirs))

    for family in FAMILIES:
        ipvs_node_controller(around.node, family, theirs, ADDRESSES)
    with streams(around) as flowing:
        flowing.expect(NODE_TO_BACKEND)
        # It has been stopped, and its rules are there.
        moving.agent.start()
        flowing.expect(NODE_TO_BACKEND)
        eventually(lambda: moving.agent.call("diff").returncode == 0)
        if theirs != moving.backend:
            # The same names in the other backend are taken for the agent's own, and go.
            eventually(lambda: not any(map(left, FAMILIES)))
        flowing.expect(NODE_TO_BACKEND)
    moving.expect(WEB, WEB6)


@NFT
def test_where_ipvs_node_controller_goes_on_what_it_adds_is_undone(
    around: Topology, moving: Bed, theirs: str
) -> None:
    moving.agent.start()
    ipvs_node_controller(around.node, IPV4, theirs, {**ADDRESSES, "cluster": {4: "10.231.9.9"}})
    eventually(lambda: moving.agent.call("diff").returncode == 0)
    moving.agent.said("IPv4: repaired ")
    assert ask(around.pod, EXTERNAL_IP[4]) == NODE_TO_BACKEND[4]
