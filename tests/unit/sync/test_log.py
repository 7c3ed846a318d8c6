"""What the log says of the cluster and of writes, each thing once."""

from __future__ import annotations

import logging

import pytest

from ipvs_node_agent.config.settings import Config, ServiceOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.model.events import NODES, SERVICES, Recovered, Skipped, Trouble
from ipvs_node_agent.sync import log
from ipvs_node_agent.sync.log import Notices
from tests.support.agentnode import (
    BUSY,
    CLUSTER_4,
    CLUSTER_6,
    EXTERNAL_4,
    EXTERNAL_6,
    Node,
    other,
    running,
    said,
    web,
)
from tests.support.cluster import POD_CIDRS, node, service

# Changes of Services


@pytest.fixture
def started(caplog: pytest.LogCaptureFixture) -> Node:
    """A node that has said all that there is to say at a start."""
    made = running(other())
    assert not said(caplog, "^default/")
    caplog.clear()
    return made


BOTH = f"{EXTERNAL_4} {EXTERNAL_6} to {CLUSTER_4} {CLUSTER_6}"


def test_a_change_is_one_line_with_the_time_it_took(
    started: Node, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert said(caplog, "^default/web: .* ms\\)$") == [
        f"default/web: {words} (50 ms)"
        for words in (
            BOTH,
            f"no external IP, was {BOTH}",
            "127.0.0.1 without rules",
            f"{EXTERNAL_4} to {CLUSTER_4} {CLUSTER_6}",
            f"deleted, was {EXTERNAL_4} 127.0.0.1 to {CLUSTER_4} {CLUSTER_6}",
        )
    ]
    assert not [line for line in said(caplog) if not line.startswith("default/web: ")]


@pytest.mark.parametrize("counts", [False, True])
def test_external_ips_of_the_spec_are_said_where_they_count(
    counts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = running(config=Config(services=ServiceOptions(external_ips=counts)))
    made.put(service("plain", [CLUSTER_4], [], externalIPs=["10.19.30.1"]))
    made.settle()
    wanted = [f"default/plain: 10.19.30.1 to {CLUSTER_4} (0 ms)"]
    assert said(caplog, "^default/") == (wanted if counts else [])


def test_a_change_is_said_also_while_the_other_family_fails(
    started: Node, caplog: pytest.LogCaptureFixture
) -> None:
    started.tables[IPV6].broken = BUSY
    started.pass_time(5)
    started.put(web(EXTERNAL_4))
    started.settle()
    assert said(caplog, f"^default/web: {EXTERNAL_4} to ")


def test_a_burst_is_not_said_line_by_line(started: Node, caplog: pytest.LogCaptureFixture) -> None:
    started.put(*(other(f"10.19.1.{index + 1}", f"web-{index}") for index in range(100)))
    started.settle()
    assert len(said(caplog)) <= 25
    assert said(caplog, "more$") == ["and 80 Services more"]


# Writes


def test_what_is_written_for_another_reason_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = running(web(EXTERNAL_4))
    made.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    made.settle()
    assert [line.partition(" in ")[0] for line in said(caplog, ": wrote ")] == [
        "IPv4: wrote 2 chains, 4 rules, 2 jumps",
        "IPv6: wrote 2 chains, 2 jumps",
        "IPv4: wrote 1 chain, 2 rules",
    ]


def test_on_debug_it_tells_what_was_compared(caplog: pytest.LogCaptureFixture) -> None:
    started = running(web(EXTERNAL_4))
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    started.put_node(node("10.240.9.0/24", POD_CIDRS[1]))
    started.settle()
    compared, *differences = said(caplog, "^IPv4: (compared|[-+]) ")
    assert compared == (
        "IPv4: compared the table, 2 chains with 4 rules, with 2 chains with"
        " 4 rules as wanted: 4 differences"
    )
    assert [line.split()[1:5] for line in differences] == [
        [sign, "IPVS_PREROUTING", "-s", cidr]
        for sign, cidr in (("-", POD_CIDRS[0]), ("+", "10.240.9.0/24"))
        for _ in range(2)
    ]
    caplog.clear()
    started.pass_time(20)
    # Nothing was looked at that nobody touched.
    assert not said(caplog, "^IPv4")
    started.tables[IPV4].meddle("-F IPVS_OUTPUT")
    started.pass_time(3)
    assert said(caplog, "^IPv4: compared the table, 2 chains with 2 rules, with 2 chains with 4 ")


# Problems


def test_a_problem_is_said_once_and_again_when_it_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = running(web("127.0.0.1"))
    started.put(other())
    started.pass_time(10)
    assert len(said(caplog, "127.0.0.1 is refused")) == 1
    started.put(web(EXTERNAL_4))
    started.pass_time(10)
    started.put(web("127.0.0.1"))
    started.pass_time(10)
    assert len(said(caplog, "127.0.0.1 is refused")) == 2


def test_many_problems_are_not_said_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    running(*(other("127.0.0.1", f"web-{index:03}") for index in range(100)))
    assert len(said(caplog, "127.0.0.1")) == 20
    assert said(caplog, "more$") == ["and 80 problems more"]


# The API server


AWAY = RefusedError("API server https://10.0.0.1:6443", "cannot be reached: Connection refused")
FORBIDDEN = RefusedError("API server", "403 Forbidden")
SAID = "{} (trying again; the rules stay as they are)"
AGAIN = "the API server answers again"


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        pytest.param(
            [*[Trouble(SERVICES, AWAY), Trouble(NODES, AWAY)] * 5, Recovered(SERVICES)],
            [SAID.format(AWAY)],
            id="an outage is said once for both",
        ),
        pytest.param(
            [
                *(Trouble(SERVICES, AWAY), Trouble(NODES, AWAY)),
                *(Recovered(SERVICES), Recovered(NODES), Recovered(NODES)),
            ],
            [SAID.format(AWAY), AGAIN],
            id="and so is its end",
        ),
        pytest.param(
            [Trouble(SERVICES, AWAY), Recovered(SERVICES)] * 3,
            [SAID.format(AWAY), AGAIN] * 3,
            id="each outage",
        ),
        pytest.param(
            [Trouble(SERVICES, AWAY), Trouble(SERVICES, FORBIDDEN)],
            [SAID.format(AWAY), SAID.format(FORBIDDEN)],
            id="another reason",
        ),
        pytest.param([Recovered(SERVICES)], [], id="an answer without an outage"),
        pytest.param(
            # Each list has it again.
            [Skipped(SERVICES, "wanted a Service, got 'Pod'")] * 3,
            ["passed over in the services of the API server: wanted a Service, got 'Pod'"],
            id="what was passed over",
        ),
    ],
)
def test_what_the_api_server_does_is_said_once(
    events: list[Trouble | Recovered | Skipped], lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = running(web(EXTERNAL_4))
    caplog.clear()
    for event in events:
        made.agent.take(event)
        made.pass_time(30)
    assert said(caplog) == lines
    assert made.restores == {IPV4: 1, IPV6: 1}


def test_what_is_remembered_for_that_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_REMEMBERED", 3)
    made = Notices()
    for n in (0, 1, 2, 3, 3, 0):
        made.take_skipped(Skipped("services", f"the {n}th"))
    # The fourth has the first three forgotten.
    said = [record.getMessage()[-3:] for record in caplog.records]
    assert said == ["0th", "1th", "2th", "3th", "0th"]
