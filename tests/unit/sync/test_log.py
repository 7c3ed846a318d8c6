"""What the log says of the cluster and of writes, each thing once."""

from __future__ import annotations

import logging
import re

import pytest

from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.addresses import IPV4, IPV6, parse_address, parse_network
from ipvs_node_agent.model.events import NODES, SERVICES, Event, Recovered, Skipped, Trouble
from ipvs_node_agent.model.objects import UncoveredPod
from ipvs_node_agent.sync import log as notices
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    CLUSTER_6,
    EXTERNAL_4,
    EXTERNAL_6,
    Log,
    Node,
    other,
    running,
    web,
    with_metadata,
)
from tests.support.cluster import POD_CIDRS, node, service

# Changes of Services


@pytest.fixture
def started(log: Log) -> Node:
    """A node that has said all that there is to say at a start."""
    made = running(other())
    assert not log.said("^default/")
    log.clear()
    return made


BOTH = f"{EXTERNAL_4} {EXTERNAL_6} to {CLUSTER_4} {CLUSTER_6}"


def test_a_change_is_one_line_with_the_time_it_took(started: Node, log: Log) -> None:
    for change in (
        web(EXTERNAL_4, EXTERNAL_6),
        web(),
        web("127.0.0.1"),
        web(EXTERNAL_4, "127.0.0.1"),
        None,
        web(type="ClusterIP"),
        None,
    ):
        started.put(change) if change else started.delete("web")
        started.clock.now += 0.05
        started.pass_time(10)
    assert log.said("^default/web: .* ms\\)$") == [
        f"default/web: {words} (50 ms)"
        for words in (
            BOTH,
            f"no external IP, was {BOTH}",
            "127.0.0.1 without rules",
            f"{EXTERNAL_4} to {CLUSTER_4} {CLUSTER_6}",
            f"deleted, was {EXTERNAL_4} 127.0.0.1 to {CLUSTER_4} {CLUSTER_6}",
        )
    ]
    assert not [line for line in log.said() if not line.startswith("default/web: ")]


def test_who_is_left_alone_had_no_rules(started: Node, log: Log) -> None:
    started.put(with_metadata(web(EXTERNAL_4), annotations={"ipvs-node-agent/ignore": "true"}))
    started.pass_time(10)
    started.delete("web")
    started.pass_time(10)
    said = [line.rpartition(" (")[0] for line in log.said("^default/web: .* ms\\)$")]
    alone = f"{EXTERNAL_4} without rules"
    assert said == [f"default/web: {alone}", f"default/web: deleted, was {alone}"]


@pytest.mark.parametrize("counts", [False, True])
def test_external_ips_of_the_spec_are_said_where_they_count(counts: bool, log: Log) -> None:
    made = running(config=Config(services=ServiceOptions(external_ips=counts)))
    made.put(service("plain", [CLUSTER_4], [], externalIPs=["10.19.30.1"]))
    made.settle()
    wanted = [f"default/plain: 10.19.30.1 to {CLUSTER_4} (0 ms)"]
    assert log.said("^default/") == (wanted if counts else [])


def test_a_change_is_said_also_while_the_other_family_fails(started: Node, log: Log) -> None:
    started.tables[IPV6].broken = BUSY
    started.pass_time(5)
    started.put(web(EXTERNAL_4))
    started.settle()
    assert log.said(f"^default/web: {EXTERNAL_4} to ")


def test_a_change_is_said_when_the_kernel_has_it_and_not_before(started: Node, log: Log) -> None:
    started.put(other())
    started.settle()
    for table in started.tables.values():
        table.broken = BUSY
    started.put(web(EXTERNAL_4))
    started.delete("other")
    started.pass_time(30)
    assert not log.said("^default/web: ")
    assert not log.said("deleted")
    for table in started.tables.values():
        table.broken = None
    started.pass_time(11)
    (web_said,) = log.said(f"^default/web: {EXTERNAL_4} to ")
    assert int(re.findall(r"\((\d+) ms\)", web_said)[0]) >= 30_000
    assert len(log.said("^default/other: deleted")) == 1


@pytest.mark.parametrize(
    ("external_ips", "lines", "more"),
    [
        ("10.19.1.{}", 20, ["and 80 more Services"]),
        # Those without rules are said as well.
        ("127.0.0.{}", 40, ["and 80 more problems", "and 80 more Services"]),
    ],
)
def test_a_burst_is_not_said_line_by_line(
    external_ips: str, lines: int, more: list[str], started: Node, log: Log
) -> None:
    started.put(*(other(external_ips.format(n), f"web-{n:03}") for n in range(1, 101)))
    started.settle()
    assert len(log.said("^default/")) == lines
    assert log.said("^(?!default/)") == more


# Writes


def test_what_is_written_for_another_reason_is_said(log: Log) -> None:
    made = running(web(EXTERNAL_4))
    made.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    made.settle()
    assert [line.partition(" in ")[0] for line in log.said(": wrote ")] == [
        "IPv4: wrote 2 chains, 4 rules, 2 jumps",
        "IPv6: wrote 2 chains, 2 jumps",
        "IPv4: wrote 1 chain, 2 rules",
    ]


def test_on_debug_it_tells_what_was_compared(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    caplog.set_level(logging.DEBUG)
    log.clear()
    started.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    started.settle()
    compared, *differences = log.said("^IPv4: (compared|[-+]) ")
    assert compared == (
        "IPv4: compared the table, 2 chains with 4 rules, with 2 chains with"
        " 4 rules as wanted: 4 differences"
    )
    assert [line.split()[1:5] for line in differences] == [
        [sign, "IPVS_PREROUTING", "-s", cidr]
        for sign, cidr in (("-", POD_CIDRS[0]), ("+", "10.240.9.0/24"))
        for _ in range(2)
    ]
    log.clear()
    started.pass_time(20)
    # Nothing was looked at that nobody touched.
    assert not log.said("^IPv4")
    started.tables[IPV4].meddle("-F IPVS_OUTPUT")
    started.pass_time(5)
    assert log.said("^IPv4: compared the table, 2 chains with 2 rules, with 2 chains with 4 ")


# Problems


def test_a_problem_is_said_once_and_again_when_it_comes_back(log: Log) -> None:
    started = running(web("127.0.0.1"))
    for raw, times in ((other(), 1), (web(EXTERNAL_4), 1), (web("127.0.0.1"), 2)):
        started.put(raw)
        started.pass_time(10)
        assert len(log.said("127.0.0.1 is refused")) == times


# The API server


AWAY = RefusedError("API server https://10.0.0.1:6443", "cannot be reached: Connection refused")
FORBIDDEN = RefusedError("API server", "403 Forbidden")
SAID = "{} (trying again; the rules stay as they are)"
AGAIN = "the API server answers again"


# Who is away fails in many ways.
BROKEN = RefusedError("API server", "the connection broke: the answer broke off")
OUTAGE = [
    Trouble(SERVICES, AWAY, away=True),
    Trouble(NODES, BROKEN, away=True),
    Trouble(SERVICES, BROKEN, away=True),
    Trouble("connection", RefusedError("API server", "nothing was heard of it"), away=True),
]
END = [Recovered(SERVICES), Recovered("connection"), Recovered(NODES)]
EVENTS = {
    "an outage is said once for both": ([*OUTAGE * 5, Recovered(SERVICES)], [SAID.format(AWAY)]),
    "and so is its end": ([*OUTAGE, *END, *END], [SAID.format(AWAY), AGAIN]),
    "each outage": ([*OUTAGE, *END] * 3, [SAID.format(AWAY), AGAIN] * 3),
    "another reason": (
        [
            Trouble(SERVICES, AWAY, away=True),
            *[Trouble(SERVICES, FORBIDDEN), Trouble(NODES, BROKEN, away=True)] * 3,
        ],
        [SAID.format(AWAY), SAID.format(FORBIDDEN)],
    ),
    "silence that another reason explains": (
        [Trouble(SERVICES, FORBIDDEN), OUTAGE[-1]],
        [SAID.format(FORBIDDEN)],
    ),
    "silence alone": ([OUTAGE[-1]], [SAID.format("API server: nothing was heard of it")]),
    "an answer without an outage": ([Recovered(SERVICES)], []),
    # Each list has it again.
    "what was passed over": (
        [Skipped(SERVICES, "wanted a Service, got 'Pod'")] * 3,
        ["skipped one of the API server's services: wanted a Service, got 'Pod'"],
    ),
}


@pytest.mark.parametrize(("events", "lines"), EVENTS.values(), ids=EVENTS.keys())
def test_what_the_api_server_does_is_said_once(
    events: list[Event], lines: list[str], log: Log
) -> None:
    made = running(web(EXTERNAL_4))
    log.clear()
    for event in events:
        made.agent.take(event)
        made.pass_time(30)
    assert log.said() == lines
    assert made.restores == {IPV4: 1, IPV6: 1}


def test_what_is_remembered_for_that_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_REMEMBERED", 3)
    made = notices.Notices()
    for n in (0, 1, 2, 3, 3, 0):
        made.take_skipped(Skipped("services", f"the {n}th"))
    # The fourth has the first three forgotten.
    assert [line[-3:] for line in log.said()] == ["0th", "1th", "2th", "3th", "0th"]


# Pods


STRAYS = tuple(
    UncoveredPod(f"default/{name}", parse_address("10.9.0.5"), "veth1") for name in ("a", "b")
)


def test_pods_without_rules_are_said_once_and_again_when_there_were_none(
    started: Node, log: Log
) -> None:
    for found in (STRAYS[:1], STRAYS, STRAYS[1:], (), (), STRAYS):
        started.agent.take_uncovered(found)
    said = log.said("this node ha|all pods")
    assert said[0].startswith(
        "1 pod of this node has no rules: default/a at 10.9.0.5 by veth1; set"
    )
    assert said[0].partition("; set ")[2].startswith("podInterfaces: [veth+], ")
    assert said[1] == "all pods of this node have rules now"
    assert said[2].startswith("2 pods of this node have no rules: ")
    assert len(said) == 3


def test_pods_that_a_reload_covers_are_none_without_rules_any_more(started: Node) -> None:
    started.agent.take_uncovered(STRAYS)
    assert started.agent.state().uncovered == STRAYS
    started.reload(pod_interfaces=("veth+",))
    assert started.agent.state().uncovered == ()
    started.reload(pod_cidrs=(parse_network("10.240.2.128/25"),))
    assert started.agent.state().uncovered == STRAYS
    # There is no rule for anybody.
    started.agent.take_proxy_mode("nftables")
    assert (started.agent.state().uncovered, started.agent.state().coverage) == ((), None)
