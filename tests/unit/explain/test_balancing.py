"""What IPVS and connection tracking are told to have; test_verdict.py has what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.explain.balancing import tell, tell_flows
from ipvs_node_agent.explain.lines import NEUTRAL, OK, WARN
from ipvs_node_agent.iptables.conntrack import Flow
from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Port
from tests.support.situations import CLUSTER4, ENDPOINT, WEB4, Situation, virtual

ADDRESS, CLUSTER = parse_address(WEB4), parse_address(CLUSTER4)
HTTP, DNS = Port("tcp", 80), Port("udp", 53)
FACTS = Situation("", None, "", "").facts
POD = parse_address("10.240.2.130")


def test_both_virtual_servers_are_told_and_how_many_take_connections() -> None:
    servers = (virtual(CLUSTER, "tcp", 80, 1, 0, 3), virtual(ADDRESS, "tcp", 80, 0))
    told = tell(replace(FACTS, ipvs=servers), ADDRESS, None, CLUSTER, [HTTP])
    assert [tuple(line) for line in told.lines] == [
        (OK, "IPVS", f"tcp {CLUSTER4}:80: 2 of 3 real servers take connections (rr)"),
        (
            NEUTRAL,
            "IPVS",
            f"tcp {WEB4}:80, the external IP's own: 0 of 1 real servers,"
            " which pods would use without the agent",
        ),
    ]
    assert not told.causes


def test_each_port_counts_by_itself() -> None:
    servers = (virtual(CLUSTER, "tcp", 80, 1),)
    told = tell(replace(FACTS, ipvs=servers), ADDRESS, None, CLUSTER, [HTTP, DNS])
    assert [cause.sentence for cause in told.causes] == [
        f"IPVS: has no virtual server udp {CLUSTER4}:53"
    ]


@pytest.mark.parametrize(
    ("protocol", "port", "answered_by", "level"),
    [
        ("udp", 53, WEB4, "fail"),
        # An endpoint that is gone, or an older flow.
        ("udp", 53, "10.9.9.9", NEUTRAL),
        ("udp", 53, CLUSTER4, OK),
        ("udp", 53, ENDPOINT[4], OK),
        ("udp", 54, WEB4, OK),
        ("tcp", 80, WEB4, NEUTRAL),
    ],
)
def test_which_flows_go_past_the_rules(
    protocol: str, port: int, answered_by: str, level: str
) -> None:
    flow = Flow(protocol, POD, ADDRESS, port, parse_address(answered_by))
    servers = (virtual(CLUSTER, "udp", 53, 1),)
    facts = replace(FACTS, flows={ADDRESS: (flow,)}, ipvs=servers)
    told = tell_flows(facts, ADDRESS, CLUSTER, [HTTP, DNS])
    assert [line.level for line in told.lines] == [level]
    assert bool(told.causes) is (level == "fail")


def test_where_connection_tracking_cannot_be_read_that_is_said() -> None:
    told = tell_flows(replace(FACTS, flows={}), ADDRESS, CLUSTER, [HTTP])
    assert [line.level for line in told.lines] == [WARN]
