"""Which UDP flows a change of rules is about, and which of those connection tracking knows."""

from __future__ import annotations

import pytest

from ipvs_node_agent.addresses import IPV4, parse_address, parse_network
from ipvs_node_agent.conntrack import Conntrack, Flows, changed_flows, known_flows
from ipvs_node_agent.launcher import Launcher
from ipvs_node_agent.ruleset import Change

POD_CIDR = parse_network("10.240.2.128/25")
EXTERNAL = parse_address("10.19.0.1")
TO = "-j DNAT --to-destination 10.231.0.{}"
COMMENT = '-m comment --comment "default/dns"'
POD = f"-s 10.240.2.128/25 -d 10.19.0.1/32 {COMMENT} {TO}"
POD_53 = f"-s 10.240.2.128/25 -d 10.19.0.1/32 -p udp -m udp --dport 53 {COMMENT} {TO}"
HOST = f"-d 10.19.0.1/32 {COMMENT} -m addrtype --src-type LOCAL {TO}"
MARK = f"-d 10.19.0.1/32 {COMMENT} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"


def flows(source: bool, port: int | None = None) -> Flows:
    return Flows("default/dns", POD_CIDR if source else None, EXTERNAL, port)


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
        (Change({"A": ("-d 10.19.0.0/16 -j B", "-j RETURN")}), []),
    ],
)
def test_a_change_is_about_the_flows_of_the_rules_it_adds_and_removes(
    change: Change, expected: list[Flows]
) -> None:
    assert changed_flows(change) == expected


def entry(source: str, port: int = 53, destination: str = "10.19.0.1") -> str:
    return (
        f"udp      17 29 src={source} dst={destination} sport=40000 dport={port} [UNREPLIED]"
        f" src=10.231.0.9 dst={source} sport={port} dport=40000 mark=0 use=1"
    )


@pytest.mark.parametrize(
    ("line", "wanted", "known"),
    [
        (entry("10.240.2.130"), flows(True), True),
        (entry("10.240.2.130", port=5353), flows(True), True),
        (entry("10.240.2.130", port=5353), flows(True, 53), False),
        # Neither a pod of this node, nor this host: its flow never met our rules.
        (entry("10.240.3.130"), flows(True), False),
        (entry("192.0.2.7"), flows(False), False),
        (entry("10.240.2.130"), flows(False), False),
        (entry("192.0.2.1"), flows(False), True),
        (entry("10.19.0.1"), flows(False), True),
        (entry("10.240.2.130", destination="10.19.0.2"), flows(True), False),
        ("udp      17 29 src=x dst=10.19.0.1 sport=1 dport=53 src=y", flows(True), False),
        ("conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.", flows(True), False),
    ],
)
def test_of_those_only_the_ones_from_pods_and_the_host_are_known(
    line: str, wanted: Flows, known: bool
) -> None:
    found = known_flows(f"{line}\n", [wanted], [parse_address("192.0.2.1")])
    assert bool(list(found)) == known


def test_without_the_conntrack_command_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ipvs_node_agent.iptables._path", lambda _: None)
    tracking = Conntrack(Launcher({}))
    for _ in range(3):
        tracking.forget(IPV4, [flows(True)], [])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "UDP flows may go on as before a change of rules: conntrack: not found"
        " (apt install conntrack)"
    ]
