"""The rule that drops INVALID packets, as text."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import parse_save, restore_input
from ipvs_node_agent.rules.invalid import input_rules

ON = """*filter
:IPVS_INPUT - [0:0]
-A IPVS_INPUT ! -i lo -p tcp -m conntrack --ctstate INVALID -j DROP
-I INPUT 1 -j IPVS_INPUT
COMMIT
"""
OFF = """*filter
:IPVS_INPUT - [0:0]
-D INPUT -j IPVS_INPUT
-X IPVS_INPUT
COMMIT
"""
FOUND = """*filter
:INPUT ACCEPT [0:0]
:IPVS_INPUT - [0:0]
:cali-INPUT - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-FIREWALL - [0:0]
{}-A INPUT -j IPVS_INPUT
-A IPVS_INPUT ! -i lo -p tcp -m conntrack --ctstate INVALID -j DROP
-A cali-INPUT -j DROP
-A KUBE-ROUTER-INPUT -j ACCEPT
COMMIT
"""


def found(*before: str) -> Found:
    """A filter table with our chain, and these rules before our jump."""
    text = FOUND.format("".join(f"-A INPUT {rule}\n" for rule in before))
    return parse_save(text, lambda name: name == "IPVS_INPUT")


def test_it_comes_and_goes_as_a_chain_and_a_jump() -> None:
    assert restore_input(difference(Found(), input_rules(True))) == ON
    assert restore_input(difference(found(), input_rules(False))) == OFF


@pytest.mark.parametrize(
    ("before", "stays"),
    [
        ([], True),
        (['-m comment --comment "cali:x" -j cali-INPUT'], True),
        (['-m comment --comment "kube-router netpol - x" -j KUBE-ROUTER-INPUT'], True),
        (["-j cali-INPUT", "-j KUBE-ROUTER-INPUT"], True),
        (["-j KUBE-FIREWALL"], False),
        (["-p tcp -j ACCEPT"], False),
    ],
)
def test_its_place_gives_way_to_who_insists_whatever_he_does(
    before: list[str], stays: bool
) -> None:
    assert bool(difference(found(*before), input_rules(True))) is not stays
