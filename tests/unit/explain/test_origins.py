"""Whose packets are followed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.explain.origins import HOST, POD, origins
from ipvs_node_agent.explain.services import naming
from ipvs_node_agent.host.routes import Way
from ipvs_node_agent.model.addresses import IPV4, parse_address, parse_network
from ipvs_node_agent.model.objects import Candidate
from ipvs_node_agent.rules.coverage import Coverage
from tests.support.situations import WEB4, WEB6, Situation, web

NODE_ADDRESS = parse_address("192.168.7.11")
CIDR = (parse_network("10.240.2.128/25"),)


@pytest.mark.parametrize("text", [WEB4, WEB6])
def test_a_pod_that_there_is_and_the_host_are_followed(text: str) -> None:
    facts, address = Situation("", None, "", "").facts, parse_address(text)
    pod, host = origins(facts, address, naming(facts, address))
    assert (pod.kind, pod.built_in, host.kind, host.built_in) == (POD, "PREROUTING", HOST, "OUTPUT")
    assert (pod.packet.interface, pod.packet.local, pod.packet.to_host) == ("to-pod", False, True)
    # The external IP is the host's, so the kernel takes it as the source as well.
    assert (host.packet.source, host.packet.local, host.packet.out) == (text, True, "lo")


@pytest.mark.parametrize(
    ("pods", "interfaces", "cidrs", "source", "interface"),
    [
        ((), (), CIDR, "10.240.2.130", None),
        ((), ("cali+",), (), "192.0.2.2", "cali0"),
        ((), ("cni0",), CIDR, "10.240.2.130", "cni0"),
        (("10.240.2.200", "veth7"), (), CIDR, "10.240.2.200", "veth7"),
        ((), (), (), None, None),
    ],
)
def test_without_a_pod_it_is_one_as_it_could_be(
    pods: tuple[str, ...],
    interfaces: tuple[str, ...],
    cidrs: tuple[object, ...],
    source: str | None,
    interface: str | None,
) -> None:
    real = (Candidate(pods[1], parse_address(pods[0]), 32),) if pods else ()
    known = Coverage(interfaces, cidrs)  # type: ignore[arg-type]
    facts = replace(Situation("", None, "", "").facts, pods=real, coverage=known)
    found = [each for each in origins(facts, parse_address(WEB4), ()) if each.kind == POD]
    assert [each.packet.source for each in found] == ([source] if source else [])
    assert [each.packet.interface for each in found] == ([interface] if source else [])


def test_the_pod_is_one_that_the_source_ranges_let_in() -> None:
    ranges = web(loadBalancerSourceRanges=["10.240.2.192/26", "192.168.7.0/24"])
    facts = Situation("", None, "", "", raw=(ranges,)).facts
    address = parse_address(WEB4)
    pod, _ = origins(facts, address, naming(facts, address))
    assert pod.packet.source == "10.240.2.194"


def test_a_host_to_whom_the_address_does_not_belong_goes_out() -> None:
    address = parse_address(WEB4)
    way = Way(False, NODE_ADDRESS, "eth0")
    facts = replace(Situation("", None, "", "").facts, ways={address: way})
    _, host = origins(facts, address, ())
    assert (host.packet.source, host.packet.to_host, host.packet.out) == (
        "192.168.7.11",
        False,
        "eth0",
    )


def test_marks_from_before_nat_are_not_known() -> None:
    facts = replace(Situation("", None, "", "").facts, marks={IPV4: 0xF0000})
    assert {each.packet.doubtful for each in origins(facts, parse_address(WEB4), ())} == {0xF0000}
