"""How walks are told; test_verdict.py has what follows from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.explain.lines import NEUTRAL, OK, WARN, Line
from ipvs_node_agent.explain.services import naming
from ipvs_node_agent.explain.walks import led_to, tell
from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.nft.listing import BaseChain
from tests.support.situations import CLUSTER4, WEB4, Situation, web

ADDRESS = parse_address(WEB4)
HEALTHY = Situation("", None, "", "")


def lines(situation: Situation = HEALTHY) -> list[Line]:
    facts = situation.facts
    return tell(facts, ADDRESS, naming(facts, ADDRESS), Port("tcp", 80)).lines


def test_each_rule_is_told_with_its_chain_place_and_packets() -> None:
    said = lines()
    assert [
        text for level, subject, text in said if (level, subject) == (NEUTRAL, "from a pod")
    ] == [
        "10.240.2.130 by to-pod, to tcp port 80, iptables-nft:",
        "  PREROUTING 1 (5 packets): -j IPVS_PREROUTING",
        f"  IPVS_PREROUTING 1 (2 packets): -s 10.240.2.128/25 -d {WEB4}/32 -m comment"
        ' --comment "default/web" -j KUBE-MARK-MASQ',
        "  KUBE-MARK-MASQ 1 (3 packets): -j MARK --set-xmark 0x4000/0x4000",
        f"  IPVS_PREROUTING 2 (2 packets): -s 10.240.2.128/25 -d {WEB4}/32 -m comment"
        f' --comment "default/web" -j DNAT --to-destination {CLUSTER4}',
    ]
    assert (OK, "from a pod", f"is sent to the ClusterIP {CLUSTER4}") in said
    assert (OK, "from the host", "is marked with 0x4000 and masqueraded") in said


@pytest.mark.parametrize(
    ("family", "priority", "rules", "table", "named"),
    [
        ("inet", -150, 1, "firewall", True),
        ("ip", -100, 1, "firewall", True),
        ("ip6", -150, 1, "firewall", False),
        ("ip", -99, 1, "firewall", False),
        ("ip", -150, 0, "firewall", False),
        ("ip", -100, 1, "nat", False),
        ("inet", -100, 1, "nat", True),
    ],
)
def test_which_chains_of_nfts_own_are_named(
    family: str, priority: int, rules: int, table: str, named: bool
) -> None:
    chain = BaseChain(family, table, "pre", "nat", "prerouting", priority, rules)
    facts = replace(HEALTHY.facts, base_chains=(chain,))
    told = tell(facts, ADDRESS, naming(facts, ADDRESS), Port("tcp", 80))
    assert bool(told.causes) is named


def test_an_unmarked_pod_is_no_fault_and_worth_a_look() -> None:
    mark = f'[2:120] -A IPVS_PREROUTING -s 10.240.2.128/25 -d {WEB4}/32 -m comment --comment "default/web" -j KUBE-MARK-MASQ\n'  # noqa: E501
    said = lines(replace(HEALTHY, edits=((mark, ""),)))
    warned = [text for level, subject, text in said if (level, subject) == (WARN, "from a pod")]
    assert warned == ["is not masqueraded (mark 0x0): the endpoint sees the pod's address"]


def test_that_a_masquerade_cannot_be_told_is_said_and_decides_nothing() -> None:
    sure = "-m mark ! --mark 0x4000/0x4000 -j RETURN"
    unsure = f"-m set --match-set A dst -j RETURN\n[0:0] -A KUBE-POSTROUTING {sure}"
    said = lines(replace(HEALTHY, edits=((sure, unsure),)))
    assert (WARN, "from the host", "whether it is masqueraded cannot be told") in said


def test_where_rules_lead_is_known_without_the_api_server() -> None:
    facts = HEALTHY.facts
    assert led_to(facts, ADDRESS, Port("tcp", 80)) == parse_address(CLUSTER4)
    assert led_to(facts, parse_address("10.19.20.202"), None) is None
    ported = (f"--to-destination {CLUSTER4}", f"--to-destination {CLUSTER4}:80")
    assert led_to(replace(HEALTHY, edits=(ported,)).facts, ADDRESS, Port("tcp", 80)) is None
    shared = replace(HEALTHY, raw=(web(), web("other", cluster="10.231.1.1", ports=[{"port": 81}])))
    assert led_to(shared.facts, ADDRESS, Port("tcp", 81)) == parse_address("10.231.1.1")
