"""Who names an address and what becomes of that; test_verdict.py has each reason."""

from __future__ import annotations

import pytest

from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.explain.facts import Agent, Facts
from ipvs_node_agent.explain.services import (
    Naming,
    addressless,
    all_ports,
    held_back,
    holder,
    naming,
    tell,
)
from ipvs_node_agent.model.addresses import FAMILIES, Family, parse_address
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.sync.refused import Refusal, Refused
from tests.support.situations import SITUATIONS, WEB4, Situation, web

ADDRESS = parse_address(WEB4)
HTTP, DNS = Port("tcp", 80), Port("udp", 53)
OLD = {"creationTimestamp": "2025-01-05T08:00:00Z"}
FIRST = web("first", cluster="10.231.1.1", metadata=OLD)
IGNORED = web("ignored", metadata={"annotations": {"ipvs-node-agent/ignore": "true"}})


def named(*raw: object, **fields: object) -> list[Naming]:
    """Who names the address, of these Services."""
    return naming(Situation("", None, "", "", raw=raw, **fields).facts, ADDRESS)  # type: ignore[arg-type]


def test_a_service_that_is_alone_has_the_whole_address() -> None:
    (only,) = named(web(), web("other", "10.19.20.202", "10.231.1.1"))
    assert only.claim is not None
    assert only.claim.ports is None
    assert only.has(Port("tcp", 7))
    assert {rule.source for rule in only.pods} == {"10.240.2.128/25"}
    assert {rule.local for rule in only.hosts} == {True}


def test_of_several_each_has_its_ports_and_those_that_count_come_first() -> None:
    found = named(web(ports=[{"port": 80}, {"port": 53, "protocol": "UDP"}]), FIRST, IGNORED)
    assert [each.service.key for each in found] == [
        "default/first",
        "default/web",
        "default/ignored",
    ]
    assert [holder(found, port) for port in (HTTP, DNS)] == found[:2]
    assert all_ports(found) == [HTTP, DNS]


def test_what_a_service_lost_is_said_though_it_counts() -> None:
    found = named(web(ports=[{"port": 80}, {"port": 81}]), FIRST)
    said = [
        (line.level, line.text)
        for line in tell(Situation("", None, "", "").facts, ADDRESS, found, None).lines
    ]
    assert ("warn", "gets no rules: 10.19.20.201 tcp 80 belongs to default/first") in said
    assert not tell(Situation("", None, "", "").facts, ADDRESS, found, HTTP).causes


def test_nobody_is_found_where_the_api_server_does_not_answer() -> None:
    assert named(web(), fields={"seen": None}) == []


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_whom_the_kernel_refuses_in_a_family_is_known_from_the_agents_own_words(
    family: Family,
) -> None:
    service = read_service(web())
    refused = Refused(family)
    refusal = Refusal(frozenset({service.key}), frozenset(), "xt_sctp")
    refused.add(refusal, {service.key: service}, 0.0)
    facts = Facts(agent=Agent(refused=tuple(refused.problems)))
    assert [each for each in FAMILIES if held_back(facts, each)] == [family]


def test_a_field_that_cannot_be_read_is_why_there_is_no_external_ip() -> None:
    service = read_service(web(ingress=[{"ip": "10.0.0.256"}]))
    assert (
        "has no external IP that can be read: status.loadBalancer.ingress[0]"
        in addressless(service).text
    )


def test_there_are_reasons_for_each_type() -> None:
    kinds = ["ClusterIP", "NodePort", "ExternalName", "Other"]
    whys = [addressless(read_service(web(type=kind))) for kind in kinds]
    assert len({why.text for why in whys}) == len(kinds)
    assert all("its type is" in why.text and why.mend for why in whys)


def test_the_situations_have_each_reason_of_a_refusal() -> None:
    said = " ".join(each.verdict for each in SITUATIONS)
    for word in ("loopback", "unspecified", "link-local", "multicast", "broadcast", "pod CIDR"):
        assert word in said
