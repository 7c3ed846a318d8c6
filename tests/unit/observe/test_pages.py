"""What probes are told: health and readiness, and where to look."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.sync.state import PATIENCE, Published
from tests.support.agentnode import BUSY, EXTERNAL_4, Node, other, web
from tests.support.cluster import node
from tests.support.monitored import Bed, metered


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


def health(bed: Bed, node: Node | None = None) -> tuple[int, str]:
    """What is told now that the agent on `node` is as it is."""
    if node is not None:
        bed.monitoring._clock = node.clock
        bed.watch(node)
    page = bed.monitoring.page("/healthz")
    return page.status, page.body.decode()


def test_an_agent_with_nothing_to_do_is_healthy(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    for _ in range(5):
        made.pass_time(30)
        assert health(bed, made) == (200, "ok\n")


def test_a_change_that_does_not_reach_the_kernel_for_a_minute_is_sickness(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.tables[IPV4].broken = BUSY
    made.put(other())
    made.pass_time(PATIENCE - 5)
    assert health(bed, made)[0] == 200
    # A change that came later does not count from the beginning.
    made.put(other("10.19.22.58", "another"))
    made.pass_time(10)
    assert health(bed, made) == (503, "a change has not reached the kernel for 65 s: As it is\n")
    made.tables[IPV4].broken = None
    made.pass_time(11)
    assert health(bed, made) == (200, "ok\n")


def test_a_repair_that_fails_for_a_minute_is_sickness(bed: Bed) -> None:
    made = metered(bed, web(EXTERNAL_4))
    made.tables[IPV4].broken = BUSY
    made.pass_time(PATIENCE + 5)
    assert health(bed, made)[0] == 503


def test_services_that_wait_for_a_pod_cidr_are_not_in_the_kernel(bed: Bed) -> None:
    made = Node()
    made.list_node(node())
    made.list_services(web(EXTERNAL_4))
    made.pass_time(PATIENCE + 5)
    assert health(bed, made)[0] == 503


def test_waiting_for_the_api_server_is_no_sickness(bed: Bed) -> None:
    made = Node()
    made.pass_time(PATIENCE * 2)
    assert health(bed, made)[0] == 200


def test_a_main_loop_that_hangs_is_sickness(bed: Bed) -> None:
    bed.clock.now += PATIENCE + 1
    assert health(bed) == (503, "the main loop has been hanging for 61 s\n")


def test_readiness_begins_with_the_first_sync(bed: Bed) -> None:
    bed.monitoring.published = Published(0.0, sentence="Waiting: for something")
    page = bed.monitoring.page("/readyz")
    assert (page.status, page.body) == (503, b"not ready: Waiting: for something\n")
    bed.monitoring.published = Published(0.0, ready=True)
    assert bed.monitoring.page("/readyz").status == 200


def test_other_paths_lead_to_these(bed: Bed) -> None:
    assert bed.monitoring.page("/").status == 200
    page = bed.monitoring.page("/metrics/x")
    assert page.status == 404
    assert b"/metrics, /healthz and /readyz" in page.body
