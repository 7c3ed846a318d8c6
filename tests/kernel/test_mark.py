"""Masquerading on a node whose chain that marks is absent, comes, and goes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, Family
from tests.kernel.conftest import Bed, node_bed
from tests.support.cluster import node, service
from tests.support.meanwhile import meanwhile
from tests.support.netns import Namespace
from tests.support.tables import EMPTY_MARK_MASQ, add_mark_masq
from tests.support.topology import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_TO_BACKEND,
    POD_CIDR,
    Topology,
    ask,
    topology,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest")]


@pytest.fixture
def around() -> Iterator[Topology]:
    with topology() as made:
        yield made


@pytest.fixture
def bare(around: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node without KUBE-MARK-MASQ, and the agent on it."""
    web = service("web", [*CLUSTER_IP.values()], [*EXTERNAL_IP.values()])
    with node_bed(around.node, backend, tmp_path, node(*POD_CIDR.values()), web) as made:
        yield made


def seen(client: Namespace, family: Family) -> str:
    """Whom the backend sees when `client` goes through the external IP."""
    return ask(client, EXTERNAL_IP[family.version])


def expect_masquerading(around: Topology) -> None:
    for client in (around.node, around.pod):
        for family in FAMILIES:
            assert seen(client, family) == NODE_TO_BACKEND[family.version]


@contextmanager
def stream(client: Namespace) -> Iterator[list[str]]:
    """Goes on connecting, at most a thousand times; whom the backend saw but the node's address."""
    wrong: list[str] = []
    turns = itertools.islice(itertools.cycle(FAMILIES), 1000)

    def connect() -> None:
        for family in itertools.islice(turns, 1):
            who = seen(client, family)
            if who != NODE_TO_BACKEND[family.version]:
                wrong.append(who)

    with meanwhile(connect):
        yield wrong


def own_mark(bed: Bed, family: Family) -> bool:
    return any("IPVS_MARK_MASQ" in line for line in bed.ours(family))


def expect_own_mark(bed: Bed, there: bool) -> None:
    eventually(
        lambda: all(own_mark(bed, family) == there for family in FAMILIES),
        f"IPVS_MARK_MASQ there: {there}",
    )


def expect_handover(bed: Bed, client: Namespace) -> None:
    """kube-proxy's marks come, and ours goes, under connections of `client` of which none fails."""
    with stream(client) as wrong:
        for family in FAMILIES:
            add_mark_masq(bed.namespace, family, bed.backend)
        expect_own_mark(bed, False)
    assert wrong == []


def nat(bed: Bed, *arguments: str) -> None:
    """Somebody's commands, in both families."""
    for family in FAMILIES:
        bed.namespace.run(f"{family.command}-{bed.backend}", "-t", "nat", *arguments)


def test_while_kube_proxy_has_not_filled_it_our_own_stays(bare: Bed, around: Topology) -> None:
    bare.agent.start()
    for family in FAMILIES:
        bare.restore(family, EMPTY_MARK_MASQ)
    # Once it has looked at the table.
    nat(bare, "-D", "OUTPUT", "-j", "IPVS_OUTPUT")
    jump = "-A OUTPUT -j IPVS_OUTPUT"
    eventually(lambda: all(jump in bare.ours(family) for family in FAMILIES), "the jumps")
    assert all(own_mark(bare, family) for family in FAMILIES)
    assert bare.agent.call("diff").returncode == 0
    expect_handover(bare, around.node)
    nat(bare, "-F", "KUBE-MARK-MASQ")
    expect_own_mark(bare, True)
    expect_masquerading(around)


def test_absent_then_there_then_flushed_away(bare: Bed, around: Topology) -> None:
    bare.agent.start()
    assert all(own_mark(bare, family) for family in FAMILIES)
    expect_masquerading(around)
    expect_handover(bare, around.pod)
    expect_masquerading(around)
    nat(bare, "-F")
    nat(bare, "-X")
    expect_own_mark(bare, True)
    expect_masquerading(around)
    assert "cannot" not in bare.agent.log
