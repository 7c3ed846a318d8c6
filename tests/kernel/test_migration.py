"""From the programs that came before, as docs/migration.md says: no connection fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
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
    topology,
)
from tests.support.traffic import Stream, more, streaming
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

WEB = service("web", list(CLUSTER_IP.values()), EXTERNAL_IP.values())
ADDRESSES = {"cidr": POD_CIDR, "external": EXTERNAL_IP, "cluster": CLUSTER_IP}
OTHERS = {"nft": "legacy", "legacy": "nft"}


@pytest.fixture(params=["same", "other"])
def theirs(request: pytest.FixtureRequest, backend: str) -> str:
    """The backend that the other program's iptables has, which need not be the node's."""
    return backend if request.param == "same" else OTHERS[backend]


@pytest.fixture
def around(backend: str, theirs: str) -> Iterator[Topology]:
    """A node with kube-proxy's and others' rules in both backends that are in use."""
    with topology() as made:
        for family in FAMILIES:
            for each in {backend, theirs}:
                add_foreign_rules(made.node, family, each)
        yield made


@pytest.fixture
def moving(around: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    with node_bed(around.node, backend, tmp_path, node(*POD_CIDR.values()), WEB) as made:
        yield made


@pytest.fixture
def streams(around: Topology) -> Iterator[tuple[Stream, Stream]]:
    """New connections of a pod and of the host all the time, at most ten thousand."""
    external = list(EXTERNAL_IP.values())
    with streaming(around.pod, *external) as pod, streaming(around.node, *external) as host:
        yield pod, host


GOOD = {EXTERNAL_IP[version]: {NODE_TO_BACKEND[version]} for version in (4, 6)}


def all_good(streams: tuple[Stream, Stream]) -> None:
    """Every connection since the last look came about, and was masqueraded."""
    more(*streams)
    assert [stream.seen() for stream in streams] == [GOOD, GOOD]


def everything(namespace: Namespace) -> str:
    """All tables of both families and backends, without counters and dates."""
    text = "".join(
        namespace.run(f"{family.command}-{backend}-save")
        for family in FAMILIES
        for backend in OTHERS
    )
    text = re.sub(r" \[\d+:\d+\]$", "", text, flags=re.MULTILINE)
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def theirs_in(namespace: Namespace, tables: str = "nat filter raw") -> list[str]:
    """Lines of network-node-manager's in these tables."""
    found, wanted = [], False
    for line in everything(namespace).splitlines():
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
    around: Topology, moving: Bed, theirs: str, request: pytest.FixtureRequest
) -> None:
    for family in FAMILIES:
        network_node_manager(around.node, family, theirs, ADDRESSES)
    streams = request.getfixturevalue("streams")
    all_good(streams)
    # Side by side, with ours first.
    moving.agent.start()
    all_good(streams)
    # Theirs first, for as long as it takes the agent to put that right.
    put_theirs_first(around.node, theirs)
    all_good(streams)
    # And without them.
    clean(around.node, MIGRATION.script("remove-nat-chains"))
    assert not theirs_in(around.node, "nat")
    all_good(streams)
    moving.agent.stop()
    all_good(streams)


def test_one_behind_the_other_either_way_they_lead_to_the_same_place(
    around: Topology, moving: Bed, theirs: str, family: Family
) -> None:
    for each in FAMILIES:
        network_node_manager(around.node, each, theirs, ADDRESSES)
    moving.agent.start()
    moving.agent.stop()
    # Nobody changes the order now.
    for _ in range(2):
        for client in (around.pod, around.node):
            assert ask(client, EXTERNAL_IP[family.version]) == NODE_TO_BACKEND[family.version]
        put_theirs_first(around.node, theirs)


@pytest.mark.parametrize("theirs", ["nft", "legacy"])
@pytest.mark.parametrize("backend", ["nft"])
@pytest.mark.usefixtures("backend")
def test_their_nat_chains_go_and_all_else_stays(around: Topology, moving: Bed, theirs: str) -> None:
    moving.agent.start()
    before = everything(around.node)
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
    assert MIGRATION.words("without `-t nat`")
    for _ in range(2):
        clean(around.node, script.replace(" -t nat", ""))
        assert not theirs_in(around.node)
    kept = [line for line in everything(around.node).splitlines() if not is_empty_table(line)]
    assert kept == [line for line in before.splitlines() if not is_empty_table(line)]


def is_empty_table(line: str) -> bool:
    """What their tables leave: the frame of tables that nobody else has used."""
    return bool(re.fullmatch(r"\*(filter|raw)|COMMIT|:[A-Z]+ ACCEPT", line))


@pytest.mark.parametrize("theirs", ["nft"])
@pytest.mark.parametrize("backend", ["nft"])
@pytest.mark.usefixtures("backend")
def test_removing_makes_no_table(around: Topology, theirs: str) -> None:
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
    before = {family: foreign(saved(around.node, family, theirs)) for family in FAMILIES}
    clean(around.node, line.partition(" => ")[2])
    assert not theirs_in(around.node, "nat")
    after = foreign(saved(around.node, IPV4, theirs))
    assert after == [line for line in before[IPV4] if not any(c in line for c in MANAGERS_CHAINS)]


def test_from_ipvs_node_controller_no_connection_fails(
    around: Topology, moving: Bed, backend: str, theirs: str, request: pytest.FixtureRequest
) -> None:
    for family in FAMILIES:
        ipvs_node_controller(around.node, family, theirs, ADDRESSES)
    streams = request.getfixturevalue("streams")
    all_good(streams)
    # It has been stopped, and its rules are there.
    moving.agent.start()
    all_good(streams)
    eventually(lambda: moving.agent.call("diff").returncode == 0)
    if theirs != backend:
        # The same names in the other backend are taken for the agent's own, and go.
        for family in FAMILIES:
            eventually(lambda f=family: not ours(saved(around.node, f, theirs)))  # type: ignore[misc]
        all_good(streams)
    entry = (EXTERNAL_IP[4], "web", CLUSTER_IP[4])
    entry6 = (EXTERNAL_IP[6], "web", CLUSTER_IP[6])
    moving.expect([entry], [entry6], pod_cidrs=list(POD_CIDR.values()))


@pytest.mark.parametrize("theirs", ["nft"])
@pytest.mark.parametrize("backend", ["nft"])
@pytest.mark.usefixtures("backend", "theirs")
def test_where_ipvs_node_controller_goes_on_what_it_adds_is_undone(
    around: Topology, moving: Bed
) -> None:
    moving.agent.start()
    ipvs_node_controller(around.node, IPV4, "nft", {**ADDRESSES, "cluster": {4: "10.231.9.9"}})
    eventually(lambda: moving.agent.call("diff").returncode == 0)
    assert "IPv4: repaired " in moving.agent.log
    assert ask(around.pod, EXTERNAL_IP[4]) == NODE_TO_BACKEND[4]
