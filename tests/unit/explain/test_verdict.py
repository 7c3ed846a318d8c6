"""What is said in each situation, and what docs/explain.md says about it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.config.settings import DEFAULTS
from ipvs_node_agent.explain.facts import Facts, NatTable
from ipvs_node_agent.explain.lines import FAIL, UNKNOWN, Cause, Told
from ipvs_node_agent.explain.target import target
from ipvs_node_agent.explain.verdict import (
    addresses,
    as_json,
    concluded,
    explain,
    overall,
    tcp_ports,
)
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.nat.trace import read
from ipvs_node_agent.rules.planner import plan
from tests.support.situations import (
    CLUSTER4,
    PAGE,
    SITUATIONS,
    WEB4,
    Situation,
    table,
    web,
    written,
)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_each_situation_has_its_verdict_and_next_step(situation: Situation) -> None:
    found = situation.explained()
    assert overall(found) is situation.works, found
    verdict = next(one.verdict for one in found if one.verdict.works is situation.works)
    assert situation.verdict in verdict.sentence, found
    assert situation.mend in verdict.mend
    levels = {line.level for one in found for line in one.lines}
    # What fails stands in a line of its own, with its ground.
    assert (FAIL in levels) or situation.works is not False
    assert (UNKNOWN in levels) or situation.works is not None


def test_the_page_has_the_situations_as_they_are() -> None:
    assert PAGE.read_text("utf-8") == written(), "python3 -m tests.support.situations writes it"


def test_no_two_situations_are_the_same() -> None:
    names = [each.name for each in SITUATIONS]
    assert len(names) == len(set(names)) >= 60


BY_NAME = {each.name: each for each in SITUATIONS}
NO, UNSURE = Cause(False, "no", "mend it"), Cause(None, "unsure", "look")


@pytest.mark.parametrize(
    ("causes", "works", "sentence"),
    [
        ([], True, "should work as far as"),
        ([UNSURE], None, "cannot be told: unsure"),
        ([UNSURE, NO], False, "should not work: no"),
        ([NO, NO._replace(sentence="other")], False, "should not work: no"),
    ],
)
def test_what_is_certain_comes_first(
    causes: list[Cause], works: bool | None, sentence: str
) -> None:
    verdict = concluded(causes)
    assert verdict.works is works
    assert verdict.sentence.startswith(sentence)


def test_machines_are_told_the_same() -> None:
    situation = SITUATIONS[0]
    found = situation.explained()
    raw = json.loads(as_json(found, situation.asked, "worker-1"))
    assert raw["apiVersion"] == "ipvs-node-agent/v1"
    assert (raw["kind"], raw["node"], raw["works"]) == ("Explanation", "worker-1", False)
    (only,) = raw["explanations"]
    assert (only["verdict"], only["nextStep"]) == found[0].verdict[1:]
    assert [(line["level"], line["subject"], line["text"]) for line in only["lines"]] == [
        *map(tuple, found[0].lines)
    ]


def test_nothing_from_outside_reaches_a_terminal_or_a_machine_as_it_is() -> None:
    told = Told()
    told.fails("a\x1b[2J", "b\nc", "d\x07")
    found = SITUATIONS[0].explained()
    hostile = [found[0]._replace(lines=tuple(told.lines), subject="x\u202e")]
    assert not set("\x1b\x07\u202e") & set(as_json(hostile, "\x1b", "\x07"))


ODD = ["!", "-g", '"', "-m", "set", "10.0.0.1/33", "0x", "-j", "A", "\\", "\x1b[2J", "--comment"]


@pytest.mark.parametrize("seed", range(10))
def test_no_table_is_so_odd_that_nothing_can_be_said(seed: int) -> None:
    """Whoever may write rules may write any."""
    chance, healthy = random.Random(seed), BY_NAME["nothing is wrong"]
    ruleset = plan(DEFAULTS, healthy.facts.seen, IPV4).ruleset if healthy.facts.seen else None
    lines = table(ruleset or Ruleset()).splitlines()
    words = [*" ".join(lines).split(), *ODD]
    for _ in range(20):
        damaged = [line.split(" ") for line in lines]
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(damaged))
            line = damaged[at]
            place = chance.randrange(len(line))
            line[place : place + chance.randrange(2)] = [chance.choice(words)]
            damaged.insert(chance.randrange(len(damaged)), chance.choice(damaged))
        text = "\n".join(" ".join(line) for line in damaged)
        tables = (NatTable(IPV4, "nft", read(text)),)
        for seen in (healthy.facts.seen, None):
            facts = replace(healthy.facts, tables=tables, seen=seen)
            for asked in (healthy.asked, f"{healthy.asked}:80", "default/web"):
                assert as_json(explain(facts, target(asked)), asked, "worker-1")


def _many(count: int, name: str = "web", cluster: str = CLUSTER4) -> dict[str, Any]:
    first = 80 if name == "web" else 2000
    ports = [{"name": f"p{n}", "port": n} for n in range(first, first + count)]
    return web(name, cluster=cluster, ports=ports)


def test_every_port_is_looked_at_or_said_not_to_be() -> None:
    def without_the_last(count: int) -> Facts:
        facts = Situation("", None, "", "", raw=(_many(count),)).facts
        assert facts.ipvs is not None
        return replace(facts, ipvs=tuple(s for s in facts.ipvs if s.port != 79 + count))

    (found,) = explain(without_the_last(20), target(WEB4))
    assert (found.verdict.works, "tcp 10.231.42.164:99" in found.verdict.sentence) == (False, True)
    (found,) = explain(without_the_last(300), target(WEB4))
    assert found.verdict.works is None
    assert "44 more ports are not looked at" in found.verdict.sentence


def test_of_a_service_that_shares_its_address_its_own_ports_count() -> None:
    raw = (_many(20), _many(2, "late", "10.231.42.9"))
    facts = Situation("", None, "", "", raw=raw).facts
    asked = target("default/late")
    (address,) = addresses(facts, asked)
    assert tcp_ports(facts, asked, address) == [2000, 2001]
    assert len(tcp_ports(facts, target("default/web"), address)) == 16
    broken = replace(facts, ipvs=tuple(s for s in facts.ipvs or () if s.port != 2001))
    (found,) = explain(broken, asked)
    assert found.verdict.works is False
