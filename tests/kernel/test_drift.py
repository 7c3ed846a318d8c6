"""What others do to our chains and jumps is undone in two seconds, on a real table."""

from __future__ import annotations

import time

import pytest

from ipvs_node_agent.addresses import IPV4, IPV6
from tests.kernel.conftest import Bed
from tests.support.cluster import service
from tests.support.tables import add_mark_masq, saved
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

WEB = ("10.19.20.201", "web", "10.231.42.164")
RULE = "-d 10.19.20.201/32"
MEDDLING = {
    "our chain flushed": "-F IPVS_OUTPUT",
    "a rule deleted": "-D IPVS_OUTPUT 1",
    "a rule changed": "-R IPVS_OUTPUT 1 -d 10.19.20.201/32 -j RETURN",
    "a rule doubled": "-A IPVS_OUTPUT -d 10.19.20.201/32 -j KUBE-MARK-MASQ",
    "a stranger's rule": "-I IPVS_OUTPUT 1 -d 192.0.2.1/32 -j RETURN",
    "a jump deleted": "-D OUTPUT -j IPVS_OUTPUT",
    "a jump doubled": "-A OUTPUT -j IPVS_OUTPUT",
    "a jump no longer first": "-I OUTPUT 1 -d 192.0.2.1/32 -j RETURN",
    "all rules flushed": "-F",
}


@pytest.fixture
def running(bed: Bed) -> Bed:
    bed.api.put(service("web", [WEB[2]], [WEB[0]]))
    bed.agent.start()
    bed.expect([WEB])
    return bed


def state(bed: Bed) -> list[str]:
    """All lines of ours, and the first rule of each built-in chain that jumps to them."""
    lines = [line for line in saved(bed.namespace, IPV4, bed.backend) if line.startswith("-A ")]
    first = [
        next((line for line in lines if f" {name} " in line), "")
        for name in ("PREROUTING", "OUTPUT")
    ]
    return [*first, *bed.ours(IPV4)]


def test_everything_that_one_can_do_with_iptables_is_undone(running: Bed) -> None:
    wanted = state(running)
    for what, arguments in MEDDLING.items():
        running.namespace.run(f"iptables-{running.backend}", "-t", "nat", *arguments.split())
        started = time.monotonic()
        eventually(lambda: state(running) == wanted, f"an end of: {what}")
        # Two seconds to the next look, and room for a machine that is busy otherwise.
        assert time.monotonic() - started < 4, what
        if arguments == "-F":
            add_mark_masq(running.namespace, IPV4, running.backend)
    assert running.ours(IPV6)
    assert "cannot" not in running.agent.log
