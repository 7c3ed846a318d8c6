"""Drift in legacy tables, of which nobody tells: what the size shows, and what only a look does."""

from __future__ import annotations

import signal
import time

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import OTHER, WEB, WEB6, Bed
from tests.support.tables import saved
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.once("debian12"),
    pytest.mark.parametrize("backend", ["legacy"]),
]

DNAT = "-s 10.240.2.128/25 -d 10.19.20.201/32 -m comment --comment default/web -j DNAT"
IN_FRONT = "-d 192.0.2.1/32 -j ACCEPT"
# Each is one change of the table.
BY_SIZE = {
    "a chain flushed": ["-F IPVS_OUTPUT"],
    "a rule deleted": ["-D IPVS_PREROUTING 1"],
    "a rule inserted": ["-I IPVS_PREROUTING 1 -d 192.0.2.1/32 -j RETURN"],
    "a jump deleted": ["-D OUTPUT -j IPVS_OUTPUT"],
    "a jump doubled": ["-A OUTPUT -j IPVS_OUTPUT"],
    "all of ours gone": [
        "-D PREROUTING -j IPVS_PREROUTING",
        "-D OUTPUT -j IPVS_OUTPUT",
        "-F IPVS_PREROUTING",
        "-F IPVS_OUTPUT",
        "-X IPVS_PREROUTING",
        "-X IPVS_OUTPUT",
    ],
}
BY_ALL_OF_IT = {
    "a jump deleted and inserted elsewhere": [
        "-D PREROUTING -j IPVS_PREROUTING",
        "-A PREROUTING -j IPVS_PREROUTING",
    ],
    "two rules in another order": [
        "-D IPVS_PREROUTING 2",
        f"-I IPVS_PREROUTING 1 {DNAT} --to-destination 10.231.42.164",
    ],
    "a rule of the same size": [f"-R IPVS_PREROUTING 2 {DNAT} --to-destination 10.231.42.99"],
    "the source of a rule": [
        "-R IPVS_PREROUTING 1 -s 10.240.3.0/25 -d 10.19.20.201/32"
        " -m comment --comment default/web -j KUBE-MARK-MASQ"
    ],
}


def start(bed: Bed, period: str) -> list[str]:
    """The rules of IPv4 of an agent that looks at all of the table so often."""
    bed.put(WEB, WEB6, OTHER)
    bed.iptables("-A", "PREROUTING", *IN_FRONT.split())
    bed.configure(driftCheckPeriod=period)
    bed.agent.start()
    bed.expect(WEB, WEB6, OTHER)
    return rules(bed)


def rules(bed: Bed) -> list[str]:
    lines = saved(bed.namespace, IPV4, bed.backend)
    return [line for line in lines if line.startswith("-A ") and IN_FRONT not in line] + [
        line for line in lines if line.startswith("-A PREROUTING")
    ]


def undone(bed: Bed, changes: list[str], wanted: list[str]) -> float:
    """How many seconds it takes until `changes`, which are one, are undone."""
    # The size is looked at again behind each write, and the agent answers after that.
    assert bed.agent.call("status").returncode == 0
    bed.agent.send(signal.SIGSTOP)
    bed.restore(IPV4, "\n".join(["*nat", *changes, "COMMIT", ""]))
    assert rules(bed) != wanted
    bed.agent.send(signal.SIGCONT)
    began = time.monotonic()
    eventually(
        lambda: rules(bed) == wanted, lambda: f"the end of {changes}\n{bed.agent.log}", timeout=10
    )
    return time.monotonic() - began


def test_what_changes_its_size_is_undone_though_nobody_looks_at_all_of_it(bed: Bed) -> None:
    wanted = start(bed, "1h")
    # Half a second, and room for a busy machine.
    assert {w: s for w, c in BY_SIZE.items() if (s := undone(bed, c, wanted)) > 8} == {}


def test_order_and_content_are_seen_by_a_look_at_all_of_it(bed: Bed) -> None:
    wanted = start(bed, "200ms")
    for changes in BY_ALL_OF_IT.values():
        undone(bed, changes, wanted)


def test_what_keeps_its_size_is_nothing_that_the_size_would_show(bed: Bed) -> None:
    wanted = start(bed, "1h")
    for changes in BY_ALL_OF_IT.values():
        bed.restore(IPV4, "\n".join(["*nat", *changes, "COMMIT", ""]))
    # What changes the size has all of it looked at.
    assert undone(bed, BY_SIZE["a rule inserted"], wanted) < 8
    bed.agent.said(" repaired ")
    assert bed.agent.log.count(" repaired ") == 1
