"""What is written of a rule is read back, and what is no rule of ours is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import FAMILIES, Family
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruletext import Rule, counted, match, read, rule, service, target, targets
from ipvs_node_agent.rules.planner import plan
from tests.support.cluster import POD_CIDRS, node
from tests.support.examples import examples
from tests.support.rawobjects import configs, read_services, services

WEB = '-d 10.19.0.1/32 -m comment --comment "default/web" -j DNAT --to-destination 10.231.0.1'


def written(said: Rule) -> str:
    asked = said._asdict()
    to, sent_to = asked.pop("target"), asked.pop("to")
    return rule(match(**asked), to, sent_to)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WEB, Rule("", "10.19.0.1/32", "", "", "", "default/web", False, "DNAT", "10.231.0.1")),
        (
            '-s 10.240.2.128/25 -d 10.19.0.1/32 -p udp -m udp --dport 53 -m comment --comment "a/b"'
            " -j KUBE-MARK-MASQ",
            Rule(
                "10.240.2.128/25",
                "10.19.0.1/32",
                "",
                "udp",
                "53",
                "a/b",
                False,
                "KUBE-MARK-MASQ",
                "",
            ),
        ),
        (
            '-d fd00::1/128 -m comment --comment "a/b" -m addrtype --src-type LOCAL -j DNAT'
            " --to-destination fd00::2",
            Rule("", "fd00::1/128", "", "", "", "a/b", True, "DNAT", "fd00::2"),
        ),
        (
            '-s 10.0.0.0/8 -d 10.19.0.1/32 -i cali+ -p tcp -m comment --comment "a/b" -j B',
            Rule("10.0.0.0/8", "10.19.0.1/32", "cali+", "tcp", "", "a/b", False, "B", ""),
        ),
        (
            "-d 10.19.0.0/16 -j IPVS_OUTPUT-x/16",
            Rule("", "10.19.0.0/16", "", "", "", "", False, "IPVS_OUTPUT-x/16", ""),
        ),
        (
            "-d 10.19.0.1/32 -p tcp -m tcp --dport 8000:8063 -j B",
            Rule("", "10.19.0.1/32", "", "tcp", "8000:8063", "", False, "B", ""),
        ),
    ],
)
def test_a_rule_says_what_it_was_written_from(text: str, said: Rule) -> None:
    assert read(text) == said
    assert written(said) == text


@pytest.mark.parametrize(
    "text",
    ["", "-j RETURN", "-p tcp -j A", f"-i eth0 {WEB}", f"{WEB}:80 x", "! " + WEB, WEB + "\n-j A"],
)
def test_what_has_another_form_is_no_rule_of_ours(text: str) -> None:
    assert read(text) is None


@examples(100)
@given(
    raw=st.lists(services, min_size=1, max_size=4), config=configs, family=st.sampled_from(FAMILIES)
)
def test_what_is_rendered_is_read_back(raw: list[Any], config: Config, family: Family) -> None:
    found = read_services(raw)
    chains = plan(config, Snapshot(found, read_node(node(*POD_CIDRS))), family).ruleset.chains
    for text in (text for rules in chains.values() for text in rules):
        said = read(text)
        assert said is not None
        assert written(said) == text
        assert (said.service, said.target) == (service(text), target(text))
        assert said.service in found or said.target in chains


@pytest.mark.parametrize(
    ("text", "key", "leads_to"),
    [
        (WEB, "default/web", "DNAT"),
        (f"-A IPVS_OUTPUT {WEB}", "default/web", "DNAT"),
        ("-d 10.19.0.0/16 -j IPVS_OUTPUT-0a130000-16", "", "IPVS_OUTPUT-0a130000-16"),
        ("-j MARK --set-xmark 0x4000/0x4000", "", "MARK"),
        ("-g A", "", ""),
        ("", "", ""),
    ],
)
def test_a_rule_says_whose_it_is_and_where_it_leads(text: str, key: str, leads_to: str) -> None:
    assert (service(text), target(text)) == (key, leads_to)


def test_whoevers_rule_it_is_its_comment_is_no_target() -> None:
    assert targets('-m comment --comment "a -j B \\" -j C" -g D') == {"D"}
    assert targets("-m comment --comment -j -j A") == {"-j", "A"}


def test_a_line_with_counters_is_taken_apart() -> None:
    assert counted(f"[3:180] -A IPVS_OUTPUT {WEB}") == (3, 180, "IPVS_OUTPUT", WEB)
    assert counted(f"-A IPVS_OUTPUT {WEB}") is None
    assert counted(":IPVS_OUTPUT - [3:180]") is None
