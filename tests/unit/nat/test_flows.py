"""Which UDP flows a change of rules is about."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.nat.flows import Flows, changed_flows
from ipvs_node_agent.nat.ruleset import Change, Ruleset

POD_CIDR = parse_network("10.240.2.128/25")
EXTERNAL = parse_address("10.19.0.1")
TO = "-j DNAT --to-destination 10.231.0.{}"
COMMENT = '-m comment --comment "default/dns"'
POD = f"-s 10.240.2.128/25 -d 10.19.0.1/32 {COMMENT} {TO}"
POD_53 = f"-s 10.240.2.128/25 -d 10.19.0.1/32 -p udp -m udp --dport 53 {COMMENT} {TO}"
HOST = f"-d 10.19.0.1/32 {COMMENT} -m addrtype --src-type LOCAL {TO}"
MARK = f"-d 10.19.0.1/32 {COMMENT} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"


PODS_IN = f"-d 10.19.0.1/32 -i cali+ {COMMENT} {TO}"
RANGE = POD_53.replace("--dport 53", "--dport 53:55")


def flows(source: bool, port: int | None = None) -> Flows:
    """Those of pods by their pod CIDR, or of this host."""
    return Flows("default/dns", POD_CIDR if source else None, EXTERNAL, port, not source)


# Those of pods by their interface, which no entry tells.
ANYBODYS = Flows("default/dns", None, EXTERNAL, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change({"A": (MARK, HOST.format(1))}), [flows(False)]),
        (Change({"A": (POD.format(1),)}), [flows(True)]),
        (Change({"A": (POD_53.format(1),)}), [flows(True, 53)]),
        (Change(dropped=("A",), replaced={"A": (POD.format(1),)}), [flows(True)]),
        # The ClusterIP is another one.
        (
            Change({"A": (POD.format(2),)}, replaced={"A": (POD.format(1),)}),
            [flows(True), flows(True)],
        ),
        # Only the chain is another one.
        (Change({"B": (POD.format(1),), "A": ("-j B",)}, replaced={"A": (POD.format(1),)}), []),
        (Change({"A": (POD_53.replace("udp", "tcp").format(1),)}), []),
        (Change({"A": (PODS_IN.format(1),)}), [ANYBODYS]),
        (Change({"A": (RANGE.format(1),)}), [flows(True)]),
        # A jump that was missing: packets have passed by what did not change.
        (Change(hooked=(("OUTPUT", 1, "W"),)), [flows(False), flows(True)]),
        (Change({"A": ("-d 10.19.0.0/16 -j B", "-j RETURN")}), []),
    ],
)
def test_a_change_is_about_the_flows_of_the_rules_it_adds_and_removes(
    change: Change, expected: list[Flows]
) -> None:
    wanted = Ruleset({"W": ("-d 10.19.0.0/16 -j V",), "V": (HOST.format(1), POD.format(1))})
    assert changed_flows(change, wanted, {"default/dns"}.__contains__) == expected
    assert changed_flows(change, wanted, lambda _: False) == []
