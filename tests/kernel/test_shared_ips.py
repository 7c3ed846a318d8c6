"""External IPs by protocol and port: shared by Services, or since `matchPorts` says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from tests.kernel.conftest import EVERYWHERE, Bed
from tests.support.agentnode import with_ingress, with_metadata
from tests.support.cluster import service
from tests.support.topology import EXTERNAL_IP, Topology, ask, own, serving
from tests.support.traffic import ask_sctp, ask_udp, serving_udp, streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

FIRST = {4: "10.231.2.1", 6: "fd00:231::2:1"}
SECOND = {4: "10.231.2.2", 6: "fd00:231::2:2"}
CREATED = {"first": "2024-01-01T00:00:00Z", "second": "2025-01-01T00:00:00Z"}
# Nobody's port in any Service; the node itself answers on it, at the external IP.
NODES_PORT = 99


@pytest.fixture
def wired(wired: Topology) -> Iterator[Topology]:
    """The backend has two ClusterIPs, and tells which of them was asked."""
    clusters = [*FIRST.values(), *SECOND.values()]
    wired.backend.add_address("lo", *(f"{a}/{128 if ':' in a else 32}" for a in clusters))
    with ExitStack() as stack:
        for port in (80, 90):
            stack.enter_context(serving(wired.backend, *clusters, port=port, says=own))
            stack.enter_context(serving_udp(wired.backend, *clusters, port=port))
        stack.enter_context(serving(wired.backend, *clusters, port=NODES_PORT, says=own))
        stack.enter_context(
            serving(wired.node, *EXTERNAL_IP.values(), port=NODES_PORT, says=lambda _: "the node")
        )
        yield wired


def sharing(name: str, clusters: dict[int, str], *ports: str, **metadata: str) -> dict[str, Any]:
    """A Service with the external IPs and these ports."""
    split = [port.split("/") for port in ports]
    listed = [{"name": f"p{n}{p.lower()}", "protocol": p, "port": int(n)} for n, p in split]
    made = service(name, [*clusters.values()], EXTERNAL_IP.values(), ports=listed)
    return with_metadata(made, creationTimestamp=CREATED[name], **metadata)


def matching_ports(bed: Bed) -> set[bool]:
    """Whether the rules of the first Service match ports, in both families."""
    lines = [line for f in FAMILIES for line in bed.ours(f) if "DNAT" in line and "first" in line]
    by_port = {"--dport" in line for line in lines}
    # A whole address is one rule for pods and one for the host, in each family.
    settled = len(lines) == 4 or (len(lines) > 4 and by_port == {True})
    return by_port if settled else set()


@pytest.mark.once("debian13", "oldest")
def test_services_that_share_an_ip_get_their_own_traffic(wired: Topology, wired_bed: Bed) -> None:
    """TCP, UDP and SCTP; the same port of another protocol is another Service's."""
    wired_bed.api.put(sharing("first", FIRST, "80/TCP", "90/UDP", "91/SCTP"))
    wired_bed.api.put(sharing("second", SECOND, "90/TCP", "80/UDP", "92/SCTP"))
    wired_bed.agent.start()
    for client in (wired.pod, wired.node):
        for version, external in EXTERNAL_IP.items():
            one, two = FIRST[version], SECOND[version]
            tcp = [ask(client, external, port) for port in (80, 90, NODES_PORT)]
            assert tcp == [one, two, "the node"]
            assert [ask_udp(client, external, port) for port in (80, 90)] == [two, one]
            sctp = [ask_sctp(client, external, p, wired.backend, one, two) for p in (91, 92)]
            assert sctp == [one, two]


def test_matching_ports_always_leaves_the_ips_other_ports_alone(
    wired: Topology, wired_bed: Bed
) -> None:
    wired_bed.api.put(sharing("first", FIRST, "80/TCP", "90/UDP", "91/SCTP"))
    wired_bed.agent.start()
    for version, external in EXTERNAL_IP.items():
        assert ask(wired.pod, external, NODES_PORT) == FIRST[version], "every port is the Service's"
    wired_bed.reload(services={"matchPorts": "Always"})
    eventually(lambda: matching_ports(wired_bed) == {True})
    for client in (wired.pod, wired.node):
        for version, external in EXTERNAL_IP.items():
            one = FIRST[version]
            assert ask(client, external, 80) == ask_udp(client, external, 90) == one
            assert ask_sctp(client, external, 91, wired.backend, one) == one
            assert ask(client, external, NODES_PORT) == "the node"


def test_shared_unshared_and_shared_again_without_a_gap(wired: Topology, wired_bed: Bed) -> None:
    wired_bed.api.put(sharing("first", FIRST, "80/TCP"))
    wired_bed.agent.start()
    shared = sharing("second", SECOND, "90/TCP")
    elsewhere = with_ingress(shared, {"ip": "10.19.20.202"}, {"ip": "fd00:19::202"})
    with streams(wired) as flowing:

        def expect(by_port: bool) -> None:
            eventually(lambda: matching_ports(wired_bed) == {by_port})
            flowing.expect(FIRST)

        for gone in (elsewhere, None):
            wired_bed.api.put(shared)
            expect(by_port=True)
            if gone is None:
                wired_bed.delete("second")
            else:
                wired_bed.api.put(gone)
            expect(by_port=False)
        for choice in ("Always", "Shared"):
            wired_bed.reload(services={"matchPorts": choice})
            expect(by_port=choice == "Always")


GREETED = "the node"
ANNOTATED = {"annotations": {"ipvs-node-agent/ignore": "true"}}
LABELLED = {"labels": {"service.kubernetes.io/service-proxy-name": "another"}}


def proxied(raw: dict[str, Any]) -> dict[str, Any]:
    return with_ingress(raw, *({"ip": ip, "ipMode": "Proxy"} for ip in EXTERNAL_IP.values()))


def named_by_its_author(raw: dict[str, Any]) -> dict[str, Any]:
    spec = {**raw["spec"], "type": "ClusterIP", "externalIPs": [*EXTERNAL_IP.values()]}
    return {**with_ingress(raw), "spec": spec}


def of_the_other_policy(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "spec": {**raw["spec"], "externalTrafficPolicy": "Cluster"}}


Change = Callable[[dict[str, Any]], dict[str, Any]]
# Whoever has no rules, and the configuration for it.
WITHOUT_RULES: dict[str, tuple[Change, dict[str, str]]] = {
    "annotation": (partial(with_metadata, **ANNOTATED), {}),
    "label": (partial(with_metadata, **LABELLED), {}),
    "ipMode Proxy": (proxied, {}),
    "externalIPs": (named_by_its_author, {}),
    "policy": (of_the_other_policy, {"externalTrafficPolicy": "Local"}),
    "refused by the kernel": (lambda raw: raw, {}),
}


@pytest.mark.parametrize("why", WITHOUT_RULES)
def test_a_port_of_who_gets_no_rules_is_nobody_elses(
    why: str, wired: Topology, wired_bed: Bed, tmp_path: Path
) -> None:
    """The other comes and goes, and not one connection to the port that has rules fails."""
    change, services = WITHOUT_RULES[why]
    silent = change(sharing("second", SECOND, f"{NODES_PORT}/TCP"))
    if why == "refused by the kernel":
        refusing = 'text=$(cat); case $text in *default/second*) exit 2;; esac; echo "$text"'
        for family in FAMILIES:
            command = f"{family.command}-{wired_bed.backend}-restore"
            script = f'{refusing} | exec $real "$@"'
            wired_bed.stand_in(tmp_path, command, script)
    wired_bed.configure(services=services)
    wired_bed.api.put(sharing("first", FIRST, "80/TCP"))
    wired_bed.agent.start()
    with streams(wired) as flowing:
        for is_there in (True, False):
            if is_there:
                wired_bed.api.put(silent)
            else:
                wired_bed.delete("second")
            eventually(
                lambda b=is_there: matching_ports(wired_bed) == {b},  # type: ignore[misc]
                lambda: wired_bed.agent.log,
            )
            flowing.expect(FIRST)
            for client in (wired.pod, wired.node):
                for version, external in EXTERNAL_IP.items():
                    met = GREETED if is_there else FIRST[version]
                    assert ask(client, external, NODES_PORT) == met


RANGES = ["1:2", "79:81", "65534:65535", "1000:2000"]


@EVERYWHERE
def test_consecutive_ports_are_one_rule_that_reads_back_the_same(bed: Bed) -> None:
    wanted = set()
    for number, span in enumerate(RANGES, 1):
        first, last = map(int, span.split(":"))
        ports = [
            {"name": f"{kind.lower()}{port}", "protocol": kind, "port": port}
            for kind in ("TCP", "UDP", "SCTP")
            for port in range(first, last + 1)
        ]
        bed.put((f"10.19.20.{number}", f"s{number}", f"10.231.2.{number}"), ports=ports)
        wanted |= {(f"10.19.20.{number}", kind, span) for kind in ("tcp", "udp", "sctp")}
    bed.configure(services={"matchPorts": "Always"})
    bed.agent.start()
    rule = re.compile(r"-A IPVS_\S+.* -d (\S+)/32 -p (\w+) .*-m \2 --dport (\S+) .*-j DNAT")
    found = [
        rule.fullmatch(line.partition(" --to")[0]) for line in bed.ours(IPV4) if "DNAT" in line
    ]
    assert len(found) == 2 * len(wanted)
    assert {match.groups() for match in found if match} == wanted
    # Nothing is left to write: the kernel gives back what was wanted.
    done = bed.agent.call("diff")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_oldest_has_a_port_that_two_want_and_the_other_takes_over(
    wired: Topology, wired_bed: Bed
) -> None:
    wired_bed.api.put(sharing("second", SECOND, "80/TCP"))
    wired_bed.api.put(sharing("first", FIRST, "80/TCP"))
    wired_bed.agent.start()
    for external in EXTERNAL_IP.values():
        wired_bed.agent.said(f"default/second: {external} tcp 80 belongs to default/first")
    with streams(wired) as flowing:
        flowing.expect(FIRST)
        wired_bed.delete("first")
        for version, external in EXTERNAL_IP.items():
            eventually(lambda e=external, s=SECOND[version]: ask(wired.pod, e) == s)  # type: ignore[misc]
        # Each answer was one of the two: nobody found the IP without a Service.
        flowing.expect(FIRST, SECOND)
        # Made again it is the younger one, and the port stays where it is.
        again = sharing("first", FIRST, "80/TCP")
        wired_bed.api.put(with_metadata(again, creationTimestamp="2026-01-01T00:00:00Z"))
        wired_bed.agent.said(f"default/first: {EXTERNAL_IP[4]} tcp 80 belongs to default/second")
        flowing.expect(SECOND)
