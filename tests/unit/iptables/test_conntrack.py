"""Which UDP flows connection tracking knows, and how those are deleted that rules are about."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ipvs_node_agent.iptables import command, conntrack
from ipvs_node_agent.iptables.conntrack import (
    Conntrack,
    Deletion,
    Flow,
    both_ways,
    deletions,
    flows_to,
)
from ipvs_node_agent.model.addresses import IPV4, Family, parse_address, parse_network
from ipvs_node_agent.nat.flows import Flows
from ipvs_node_agent.processes.launcher import Launcher

POD_CIDR = parse_network("10.240.2.128/25")
EXTERNAL = parse_address("10.19.0.1")


def flows(source: bool, port: int | None = None) -> Flows:
    """Those of pods by their pod CIDR, or of this host."""
    return Flows("default/dns", POD_CIDR if source else None, EXTERNAL, port, not source)


# Those of pods by their interface, which no entry tells.
ANYBODYS = Flows("default/dns", None, EXTERNAL, None)


def entry(source: str, port: int = 53, destination: str = "10.19.0.1") -> str:
    return (
        f"udp      17 29 src={source} dst={destination} sport=40000 dport={port} [UNREPLIED]"
        f" src=10.231.0.9 dst={source} sport={port} dport=40000 mark=0 use=1"
    )


PODS, HOST_IP = "10.240.2.128/25", "192.0.2.1"


@pytest.mark.parametrize(
    ("line", "wanted", "source"),
    [
        (entry("10.240.2.130"), flows(True), PODS),
        (entry("10.240.2.130", port=5353), flows(True), PODS),
        (entry("10.240.2.130"), flows(True, 53), PODS),
        (entry("10.240.2.130", port=5353), flows(True, 53), None),
        # Neither a pod of this node, nor this host: its flow never met our rules.
        (entry("10.240.3.130"), flows(True), None),
        (entry("192.0.2.7"), flows(False), None),
        (entry("10.240.2.130"), flows(False), None),
        (entry(HOST_IP), flows(False), HOST_IP),
        (entry("10.19.0.1"), flows(False), "10.19.0.1"),
        (entry("10.240.2.130"), ANYBODYS, ""),
        (entry("10.240.2.130", port=5353), ANYBODYS._replace(port=53), None),
        (entry("10.240.2.130", destination="10.19.0.2"), flows(True), None),
        ("udp      17 29 src=x dst=10.19.0.1 sport=1 dport=53 src=y", flows(True), None),
        ("conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.", flows(True), None),
    ],
)
def test_only_flows_from_pods_and_the_host_that_are_known_are_deleted(
    line: str, wanted: Flows, source: str | None
) -> None:
    found = deletions(f"{line}\n", [wanted], [parse_address(HOST_IP)])
    expected = set() if source is None else {Deletion(source, EXTERNAL, wanted.port)}
    assert found == expected


def test_all_flows_of_a_rule_are_one_deletion() -> None:
    listing = "\n".join(entry(f"10.240.2.{130 + n % 100}", port=n) for n in range(1, 20_000))
    assert deletions(listing, [flows(True)], []) == {Deletion(PODS, EXTERNAL, None)}


def test_with_rules_for_many_ports_the_flows_to_an_address_are_one_deletion() -> None:
    wanted = [flows(True, port) for port in range(1, 1000)]
    listing = "\n".join(entry("10.240.2.130", port=port) for port in range(1, 1000))
    assert deletions(listing, wanted, []) == {Deletion(PODS, EXTERNAL, None)}
    few = "\n".join(entry("10.240.2.130", port=port) for port in (7, 9))
    assert {each.port for each in deletions(few, wanted, [])} == {7, 9}


# The thread


class Kernel:
    """Stands in for the conntrack command: what it lists, and what it was asked."""

    def __init__(self) -> None:
        self.listing = ""
        self.now = self.slowness = 0.0
        self.asked: list[tuple[str, ...]] = []
        self.tracking = Conntrack(lambda: Launcher({}), lambda: self.now)

    def command(self, launcher: Launcher, family: Family, *arguments: str) -> str:
        self.asked.append(arguments)
        self.now += self.slowness
        return self.listing if arguments[0] == "-L" else ""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(Conntrack, "_command", lambda _, *asked: made.command(*asked))
    return made


def of_sources(count: int) -> tuple[list[Flows], str]:
    """Rules for so many pod CIDRs, and a flow of each."""
    sources = [f"10.{number // 256}.{number % 256}" for number in range(count)]
    wanted = [
        Flows("default/dns", parse_network(f"{source}.0/24"), EXTERNAL, None) for source in sources
    ]
    return wanted, "\n".join(entry(f"{source}.9") for source in sources)


def test_what_is_noted_asks_nothing_and_becomes_one_round(kernel: Kernel) -> None:
    kernel.listing = entry("10.240.2.130")
    for _ in range(50):
        kernel.tracking.forget(IPV4, [flows(True)], [])
    assert kernel.asked == []
    kernel.tracking.turn()
    listing, deletion = kernel.asked
    assert listing == ("-L", "--orig-dst", "10.19.0.1")
    assert deletion == ("-D", "--orig-src", PODS, "--orig-dst", "10.19.0.1")


def test_flows_of_anybody_are_deleted_whoever_sends(kernel: Kernel) -> None:
    kernel.listing = entry("10.240.2.130")
    kernel.tracking.forget(IPV4, [ANYBODYS._replace(port=53)], [])
    kernel.tracking.turn()
    assert kernel.asked[1] == ("-D", "--orig-dst", "10.19.0.1", "--orig-port-dst", "53")


def test_with_many_addresses_everything_is_listed_once(kernel: Kernel) -> None:
    wanted = [flows(True)._replace(address=EXTERNAL + number) for number in range(100)]
    kernel.tracking.forget(IPV4, wanted, [])
    kernel.tracking.turn()
    assert kernel.asked == [("-L",)]


@pytest.mark.parametrize(("slowness", "most"), [(0.0, 64), (5.0, 4)])
def test_a_round_is_bounded_and_says_where_it_gave_up(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, slowness: float, most: int
) -> None:
    wanted, kernel.listing = of_sources(200)
    kernel.slowness = slowness
    for _ in range(2):
        kernel.tracking.forget(IPV4, wanted, [])
        kernel.tracking.turn()
    assert len(kernel.asked) == 2 * (1 + most)
    assert caplog.messages == [
        f"existing UDP flows may not follow a change of rules: gave up after {most} deletions,"
        f" {200 - most} left, such as 10.19.0.1"
    ]


def test_so_many_flows_are_kept_in_mind_and_no_more(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.tracking.forget(IPV4, (flows(True, port) for port in range(70_000)), [])
    kernel.tracking.turn()
    (said,) = caplog.messages
    assert said.endswith("too many changes at once, 4464 left")


def test_without_the_conntrack_command_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ipvs_node_agent.iptables.command.find", lambda _: None)
    tracking = Conntrack(lambda: Launcher({}))
    for _ in range(3):
        tracking.forget(IPV4, [flows(True)], [])
        tracking.turn()
    assert caplog.messages == [
        "existing UDP flows may not follow a change of rules: conntrack: not found"
        " (apt install conntrack)"
    ]


def test_its_thread_ends_when_it_is_told_to(kernel: Kernel) -> None:
    thread = threading.Thread(target=kernel.tracking.run)
    thread.start()
    kernel.tracking.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_what_was_noted_before_the_end_is_deleted_before_it(kernel: Kernel) -> None:
    """The next start writes nothing, and so would not."""
    kernel.listing = entry("10.240.2.130")
    kernel.tracking.forget(IPV4, [flows(True)], [])
    thread = threading.Thread(target=kernel.tracking.run)
    thread.start()
    kernel.tracking.stop()
    assert [asked[0] for asked in kernel.asked] == ["-L", "-D"]
    thread.join(10)
    assert not thread.is_alive()


def test_the_end_does_not_wait_long_for_what_hangs(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(conntrack, "_LAST_PATIENCE", 0.01)
    monkeypatch.setattr(Conntrack, "_command", lambda *_: str(hanging.wait(30)))
    kernel.tracking.forget(IPV4, [flows(True)], [])
    thread = threading.Thread(target=kernel.tracking.run)
    thread.start()
    kernel.tracking.stop()
    assert thread.is_alive()
    hanging.set()
    thread.join(10)
    assert not thread.is_alive()


TCP = (
    "tcp      6 431999 ESTABLISHED src=10.240.2.130 dst=10.19.0.1 sport=40000 dport=80"
    " src=10.231.0.9 dst=192.0.2.1 sport=80 dport=40000 [ASSURED] mark=0 use=1"
)
PING = (
    "icmp     1 29 src=10.240.2.130 dst=10.19.0.1 type=8 code=0 id=7"
    " src=10.19.0.1 dst=10.240.2.130 type=0 code=0 id=7 mark=0 use=1"
)
V6 = (
    "udplite  136 29 src=fd00::2 dst=fd00:19::1 sport=1 dport=53 [UNREPLIED]"
    " src=fd00:231::9 dst=fd00::2 sport=53 dport=1 mark=0 use=1"
)


def flow(protocol: str, source: str, destination: str, port: int, answered_by: str) -> Flow:
    ends = parse_address(source), parse_address(destination)
    return Flow(protocol, *ends, port, parse_address(answered_by))


def test_a_flow_is_told_with_who_answers_it_and_other_lines_are_passed_over() -> None:
    lines = [entry("10.240.2.130"), PING, TCP, V6, entry("300.0.0.1"), "\x1b[2J", "", TCP[:90]]
    assert both_ways("\n".join(lines)) == (
        flow("udp", "10.240.2.130", "10.19.0.1", 53, "10.231.0.9"),
        flow("tcp", "10.240.2.130", "10.19.0.1", 80, "10.231.0.9"),
        flow("udplite", "fd00::2", "fd00:19::1", 53, "fd00:231::9"),
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f'echo "{TCP}"', 1),
        # What does not fit is left out, and not what comes before it.
        (f'for each in 1 2 3; do echo "{TCP}"; done', 2),
        ("true", 0),
        ("exit 1", None),
        (None, None),
    ],
)
def test_flows_are_unknown_where_the_command_is_missing_or_fails(
    script: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        (tmp_path / "conntrack").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "conntrack").chmod(0o755)
    monkeypatch.setattr(command, "_search", lambda: str(tmp_path))
    monkeypatch.setattr(conntrack, "_MOST_LISTED", 2 * len(TCP) + 100)
    found = flows_to(EXTERNAL)
    assert (None if found is None else len(found)) == expected
