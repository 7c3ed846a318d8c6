"""Masquerading on a node whose chain that marks is absent, comes, and goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import FAMILIES
from tests.kernel.conftest import WEB, WEB6, Bed, node_bed
from tests.support.tables import EMPTY_MARK_MASQ, add_mark_masq
from tests.support.topology import EXTERNAL_IP, NODE_TO_BACKEND, Topology
from tests.support.traffic import streaming, streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest")]


@pytest.fixture
def bare(around: Topology, backend: str, tmp_path: Path) -> Iterator[Bed]:
    """A node without KUBE-MARK-MASQ, and the agent on it."""
    with node_bed(around.node, backend, tmp_path) as made:
        made.put(WEB, WEB6)
        made.agent.start()
        yield made


def expect_masquerading(around: Topology) -> None:
    with streams(around) as flowing:
        flowing.expect(NODE_TO_BACKEND)


def expect_own_mark(bed: Bed, there: bool) -> None:
    def own_marks() -> list[bool]:
        return ["IPVS_MARK_MASQ" in "".join(bed.ours(family)) for family in FAMILIES]

    eventually(lambda: own_marks() == [there, there], f"IPVS_MARK_MASQ there: {there}")


def expect_handover(bed: Bed, around: Topology, client: str) -> None:
    """kube-proxy's marks come, and ours goes, under connections of `client` of which none fails."""
    with streaming(getattr(around, client), *EXTERNAL_IP.values()) as flowing:
        flowing.expect(NODE_TO_BACKEND)
        for family in FAMILIES:
            add_mark_masq(bed.namespace, family, bed.backend)
        expect_own_mark(bed, False)
        flowing.expect(NODE_TO_BACKEND)


def test_while_kube_proxy_has_not_filled_it_our_own_stays(bare: Bed, around: Topology) -> None:
    jump = "-A OUTPUT -j IPVS_OUTPUT"
    for family in FAMILIES:
        bare.restore(family, EMPTY_MARK_MASQ)
        # Once it has looked at the table.
        bare.iptables("-D", "OUTPUT", "-j", "IPVS_OUTPUT", family=family)
    eventually(lambda: all(jump in bare.ours(family) for family in FAMILIES), "the jumps")
    expect_own_mark(bare, True)
    assert bare.agent.call("diff").returncode == 0
    expect_handover(bare, around, "node")
    for family in FAMILIES:
        bare.iptables("-F", "KUBE-MARK-MASQ", family=family)
    expect_own_mark(bare, True)
    expect_masquerading(around)


def test_absent_then_there_then_flushed_away(bare: Bed, around: Topology) -> None:
    expect_own_mark(bare, True)
    expect_masquerading(around)
    expect_handover(bare, around, "pod")
    expect_masquerading(around)
    for family in FAMILIES:
        # In one step: between two, the agent would bring its own back.
        restore = f"{family.command}-{bare.backend}-restore"
        bare.namespace.run(restore, "-w", "10", stdin="*nat\nCOMMIT\n")
    expect_own_mark(bare, True)
    expect_masquerading(around)
    assert "cannot" not in bare.agent.log
