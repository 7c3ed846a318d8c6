"""Destinations as numbers, and the rules of several as text."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.nat.packed import Packed, together
from ipvs_node_agent.rules.destinations import PORTS, Entry, destination, listed, shown_ports

ADDRESS = parse_address("10.19.0.1")


def entry(name: str, continues: bool = False) -> Entry:
    pods, hosts = (together([f"{name} {whose} {PORTS}"]) for whose in ("pods", "host"))
    return Entry(pods, hosts, name, continues)


def number(port: int, protocol: str = "tcp") -> int:
    return destination(ADDRESS, Port(protocol, port))


def test_a_prefix_of_the_number_is_the_address_then_the_protocol_then_a_range_of_ports() -> None:
    whole = destination(ADDRESS, None)
    assert whole == int(ADDRESS) << 18
    of_protocols = [number(1, protocol) >> 16 for protocol in ("sctp", "tcp", "udp")]
    assert of_protocols == [whole >> 16, (whole >> 16) + 1, (whole >> 16) + 2]
    assert number(443) - number(80) == 363


@pytest.mark.parametrize(
    ("ports", "shown"),
    [((80, 80), "80"), ((80, 83), "80:83"), ((1, 65535), "1:65535")],
)
def test_ports_are_shown_as_iptables_shows_them(ports: tuple[int, int], shown: str) -> None:
    assert shown_ports(number(ports[0]), number(ports[1])) == shown


def test_ports_that_follow_each_other_are_one_rule_and_services_stand_together() -> None:
    entries = {
        number(80): entry("a"),
        number(81): entry("a", continues=True),
        number(82): entry("b"),
        # The port before it is the other Service's.
        number(83): entry("a"),
        number(85): entry("a", continues=True),
    }
    assert tuple(tuple(Packed(texts)) for texts in listed(entries)) == (
        ("a pods 80:81", "a pods 83", "a pods 85", "b pods 82"),
        ("a host 80:81", "a host 83", "a host 85", "b host 82"),
    )


@pytest.mark.parametrize(("rules", "length"), [(0, 1), (1, 1), (2, 1), (3, 2), (8, 4)])
def test_two_rules_are_as_long_as_a_plain_service(rules: int, length: int) -> None:
    text = together(["rule"] * rules)
    assert Entry(text, "", "a").length == length
    assert Entry("", text, "a").length == length
