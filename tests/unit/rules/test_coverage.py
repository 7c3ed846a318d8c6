"""Which packets count as a pod's, and which pods that leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ipvs_node_agent.model.addresses import parse_address, parse_network
from ipvs_node_agent.model.objects import Candidate, OwnPod, UncoveredPod
from ipvs_node_agent.rules.coverage import (
    Coverage,
    described,
    how_many,
    remedy,
    still_uncovered,
    uncovered,
)


def by_cidr(*cidrs: str) -> Coverage:
    return Coverage((), tuple(map(parse_network, cidrs)))


def by_interface(*names: str) -> Coverage:
    # Pod CIDRs count for nothing then.
    return Coverage(names, (parse_network("10.240.2.128/25"),))


def candidate(text: str) -> Candidate:
    """One written as INTERFACE ADDRESS/LENGTH."""
    interface, network = text.split()
    address, _, length = network.partition("/")
    return Candidate(interface, parse_address(address), int(length))


BOTH = by_cidr("10.240.2.128/25", "fd00:10:240:2::/64")


@pytest.mark.parametrize(
    ("known", "found", "covered"),
    [
        (BOTH, "veth1 10.240.2.130/32", True),
        (BOTH, "veth1 10.240.2.5/32", False),
        (BOTH, "cni0 10.240.2.192/26", True),
        (BOTH, "cni0 10.240.2.128/24", False),
        (BOTH, "veth1 fd00:10:240:2::5/128", True),
        (BOTH, "veth1 fd00:10:240:3::5/128", False),
        (by_cidr("10.240.2.128/25"), "veth1 fd00:10:240:2::5/128", False),
        (by_cidr(), "veth1 10.240.2.130/32", False),
        (by_interface("cali+"), "cali12 10.9.0.5/32", True),
        (by_interface("cali+"), "veth1 10.240.2.130/32", False),
        (by_interface("cni0"), "cni0 10.9.0.0/24", True),
        (by_interface("cni0"), "cni01 10.9.0.5/32", False),
    ],
)
def test_a_packet_is_known_by_interface_or_else_by_pod_cidr(
    known: Coverage, found: str, covered: bool
) -> None:
    assert known.covers(candidate(found)) == covered


def pods(*texts: str) -> list[OwnPod]:
    """Pods written as NAME ADDRESS..."""
    split = [text.split() for text in texts]
    return [OwnPod(f"default/{name}", tuple(map(parse_address, ips))) for name, *ips in split]


def missed(*texts: str) -> tuple[UncoveredPod, ...]:
    """Uncovered pods written as NAME ADDRESS INTERFACE."""
    split = (text.split() for text in texts)
    return tuple(UncoveredPod(f"default/{n}", parse_address(ip), by) for n, ip, by in split)


@pytest.mark.parametrize(
    ("there", "found", "expected"),
    [
        pytest.param(["a 10.240.2.130"], ["veth1 10.240.2.130/32"], [], id="covered"),
        pytest.param(["a 10.9.0.5"], [], [], id="nobody knows where"),
        pytest.param(["a 10.9.0.5"], ["veth1 10.9.0.6/32"], [], id="somebody else"),
        pytest.param(["a 10.9.0.5"], ["veth1 10.9.0.5/32"], ["a 10.9.0.5 veth1"], id="IPv4"),
        pytest.param(
            ["a 10.9.0.5 fd00:9::5"],
            ["veth1 fd00:9::5/128", "veth1 10.9.0.5/32"],
            ["a 10.9.0.5 veth1", "a fd00:9::5 veth1"],
            id="both families",
        ),
        pytest.param(
            ["a 10.240.2.130 fd00:9::5"],
            ["veth1 10.240.2.130/32", "veth1 fd00:9::5/128"],
            ["a fd00:9::5 veth1"],
            id="one of two",
        ),
        pytest.param(["a 10.9.0.5"], ["br1 10.9.0.0/24"], ["a 10.9.0.5 br1"], id="a subnet"),
        pytest.param(
            ["a 10.9.0.5"],
            ["br1 10.9.0.0/24", "veth1 10.9.0.5/32"],
            ["a 10.9.0.5 veth1"],
            id="a route of its own in a subnet",
        ),
        pytest.param(
            ["a 10.9.0.5"],
            ["br1 10.9.0.0/16", "br2 10.9.0.0/24", "br3 10.0.0.0/8"],
            ["a 10.9.0.5 br2"],
            id="subnets in each other",
        ),
        pytest.param(["a 10.240.2.130"], ["br1 10.0.0.0/8"], [], id="covered in a subnet"),
        pytest.param(
            ["b 10.9.0.6", "a 10.9.0.10", "a 10.9.0.9"],
            ["br1 10.9.0.0/24"],
            ["a 10.9.0.9 br1", "a 10.9.0.10 br1", "b 10.9.0.6 br1"],
            id="in order",
        ),
    ],
)
def test_a_pod_that_is_not_covered_is_one_that_the_kernel_leads_to(
    there: Sequence[str], found: Sequence[str], expected: Sequence[str]
) -> None:
    assert uncovered(pods(*there), map(candidate, found), BOTH) == missed(*expected)


def test_who_is_covered_meanwhile_is_left_out() -> None:
    found = missed("a 10.9.0.5 veth1", "b 10.9.0.6 br1")
    assert still_uncovered(found, by_interface("veth+")) == found[1:]
    assert still_uncovered(found, by_cidr("10.9.0.0/24")) == ()


MANY = missed(*(f"pod-{n} 10.9.0.{n} veth{n}" for n in range(1, 8)), "pod-7 fd00:9::7 veth7")


@pytest.mark.parametrize(
    ("found", "number", "said"),
    [
        (MANY[:1], 1, "1 pod of this node has no rules: default/pod-1 at 10.9.0.1 by veth1"),
        (
            MANY,
            7,
            "7 pods of this node have no rules: default/pod-1 at 10.9.0.1 by veth1,"
            " default/pod-2 at 10.9.0.2 by veth2, default/pod-3 at 10.9.0.3 by veth3,"
            " default/pod-4 at 10.9.0.4 by veth4, and 4 more",
        ),
        (
            missed("a 10.9.0.5 \x1b[2J"),
            1,
            "1 pod of this node has no rules: default/a at 10.9.0.5 by \\x1b[2J",
        ),
    ],
)
def test_the_first_of_them_are_named(found: Sequence[UncoveredPod], number: int, said: str) -> None:
    assert how_many(found) == number
    assert described(found) == said


@pytest.mark.parametrize(
    ("known", "interface", "said"),
    [
        (BOTH, "veth1a2b", "podInterfaces: [veth+], plus the interfaces of all other pods, or "),
        (BOTH, "cali1", "podInterfaces: [cali+], "),
        (BOTH, "br-pods", "podInterfaces: [br-pods], "),
        (by_interface("cali+"), "cni0", "podInterfaces: [cali+, cni0]"),
        (BOTH, "x\x1b", "podInterfaces: [x\\x1b], "),
    ],
)
def test_what_to_set_keeps_what_is_known(known: Coverage, interface: str, said: str) -> None:
    pod = UncoveredPod("default/a", parse_address("10.9.0.5"), interface)
    assert remedy([pod], known).startswith(said)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (BOTH, "pod CIDR: 10.240.2.128/25, fd00:10:240:2::/64"),
        (by_cidr(), "pod CIDR: there is none"),
        (by_interface("cali+", "cni0"), "interface: cali+, cni0"),
    ],
)
def test_how_pods_are_known_is_said_in_words(known: Coverage, said: str) -> None:
    assert str(known) == said
