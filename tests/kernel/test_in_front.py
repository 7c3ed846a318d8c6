"""Beside others who insist on the first place: nobody fights, and no packet of ours is taken."""

from __future__ import annotations

from functools import partial

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, Family
from tests.kernel.conftest import WEB, WEB6, Bed
from tests.support.felix import Felix
from tests.support.tables import restore, saved
from tests.support.topology import EXTERNAL_IP, Topology, reaching
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

HOUR = 3600.0
# A floating IP that no Service has, and its pod.
NOT_OURS = {4: ("192.0.2.7", "10.233.90.9"), 6: ("2001:db8::7", "fd00:233::9")}
OUR_CHAIN = {"PREROUTING": "IPVS_PREROUTING", "OUTPUT": "IPVS_OUTPUT"}
HOST_PORTS = """*nat
:CNI-HOSTPORT-DNAT - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 80 -j DNAT --to-destination {pod}
-I PREROUTING 1 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-I OUTPUT 1 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
COMMIT
"""
OVN = """*nat
:OVN-PREROUTING - [0:0]
-A OVN-PREROUTING -p tcp -m tcp --dport 179 -j MARK --set-xmark 0x4000/0x4000
-I PREROUTING 1 -m comment --comment "kube-ovn prerouting rules" -j OVN-PREROUTING
COMMIT
"""
# Somebody unknown who comes back to the front, and what is in his chain.
UNKNOWN = """*nat
:THEIRS - [0:0]
-A THEIRS {rule}
{moves}-I PREROUTING 1 -j THEIRS
COMMIT
"""
HARMLESS, ENDING = "-j MARK --set-xmark 0x1/0x1", "-p tcp -j ACCEPT"


def order(bed: Bed, family: Family, built_in: str) -> list[str]:
    """Whom the rules of a built-in chain lead to, in their order."""
    lines = saved(bed.namespace, family, bed.backend)
    return [line.split(" -j ")[1] for line in lines if line.startswith(f"-A {built_in} ")]


def is_before(bed: Bed, family: Family, *names: str) -> bool:
    """Whether PREROUTING leads to these first."""
    return begins(bed, family, "PREROUTING", [*names])


def begins(bed: Bed, family: Family, built_in: str, names: list[str]) -> bool:
    """Whether a built-in chain leads to these first."""
    return order(bed, family, built_in)[: len(names)] == names


def repairs(bed: Bed) -> int:
    return bed.agent.log.count("repaired")


@pytest.fixture
def felixes(wired_bed: Bed) -> dict[Family, Felix]:
    """One for each family, beside kube-proxy's rules, with both families' Service."""
    pods = {4: "10.233.90.5:80", 6: "[fd85:ee78:d8a6:8607::5]:80"}
    for family in FAMILIES:
        restore(
            wired_bed.namespace,
            family,
            wired_bed.backend,
            HOST_PORTS.format(pod=pods[family.version]),
        )
    wired_bed.put(WEB, WEB6)
    return {family: Felix(wired_bed.namespace, family, wired_bed.backend) for family in FAMILIES}


@pytest.mark.parametrize("first", ["felix", "the agent"])
def test_an_hour_beside_felix_has_neither_a_rewrite_nor_a_repair(
    around: Topology, wired_bed: Bed, felixes: dict[Family, Felix], first: str
) -> None:
    bed = wired_bed
    if first == "the agent":
        bed.agent.start()
    for felix in felixes.values():
        felix.start()
    if first == "felix":
        bed.agent.start()
    for family, felix in felixes.items():
        for built_in, ours in OUR_CHAIN.items():
            wanted = [f"cali-{built_in}", ours]
            eventually(partial(begins, bed, family, built_in, wanted), built_in)
        bed.settled()
        before = repairs(bed)
        while felix.now < HOUR:
            felix.wait()
        assert (felix.rewrites, repairs(bed)) == (0, before)
        assert felix.looks > 40
        for built_in, ours in OUR_CHAIN.items():
            there = order(bed, family, built_in)
            assert there[:2] == [f"cali-{built_in}", ours]
            assert {"KUBE-SERVICES", "CNI-HOSTPORT-DNAT"} <= {*there[2:]}
        assert reaching(around, family.version) == "pod host"
    if first == "felix":
        assert repairs(bed) == 0
    shown = bed.agent.call("check").stdout
    assert (
        "ok    jumps, IPv4: first in PREROUTING and OUTPUT; cali-OUTPUT, cali-PREROUTING" in shown
    )
    assert bed.agent.call("diff").returncode == 0


def test_with_append_ours_is_first(wired_bed: Bed, felixes: dict[Family, Felix]) -> None:
    for felix in felixes.values():
        felix.insert = False
        felix.start()
    wired_bed.agent.start()
    for family, felix in felixes.items():
        while felix.now < HOUR:
            felix.wait()
        assert (felix.rewrites, repairs(wired_bed)) == (0, 0)
        for built_in, ours in OUR_CHAIN.items():
            there = order(wired_bed, family, built_in)
            assert (there[0], there[-1]) == (ours, f"cali-{built_in}")


def test_a_floating_ip_of_ours_turns_the_judgement_until_it_goes(
    around: Topology, wired_bed: Bed, felixes: dict[Family, Felix], family: Family
) -> None:
    felix = felixes[family]
    felix.start()
    wired_bed.agent.start()
    assert is_before(wired_bed, family, "cali-PREROUTING", "IPVS_PREROUTING")
    felix.translate(*NOT_OURS[family.version])
    felix.wait()
    assert is_before(wired_bed, family, "cali-PREROUTING", "IPVS_PREROUTING")
    ours = EXTERNAL_IP[family.version]
    felix.translate(ours, NOT_OURS[family.version][1])
    eventually(lambda: is_before(wired_bed, family, "IPVS_PREROUTING"), "ours goes first")
    assert reaching(around, family.version) == "pod host"
    before = felix.rewrites
    felix.wait()
    assert felix.rewrites == before + 1
    eventually(lambda: is_before(wired_bed, family, "IPVS_PREROUTING"), "ours is first again")
    felix.take_back(ours)
    eventually(
        lambda: is_before(wired_bed, family, "cali-PREROUTING", "IPVS_PREROUTING"),
        "ours stands behind theirs again",
    )
    before, done = felix.rewrites, repairs(wired_bed)
    end = felix.now + HOUR
    while felix.now < end:
        felix.wait()
    assert (felix.rewrites, repairs(wired_bed)) == (before, done)


def test_kube_ovn_stays_in_front(
    wired_bed: Bed, felixes: dict[Family, Felix], family: Family
) -> None:
    felixes[family].start()
    wired_bed.restore(family, OVN)
    wired_bed.agent.start()
    names = "OVN-PREROUTING", "cali-PREROUTING", "IPVS_PREROUTING"
    assert is_before(wired_bed, family, *names)
    assert repairs(wired_bed) == 0


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_to_somebody_unknown_who_insists_the_place_is_left_while_he_is_harmless(
    wired_bed: Bed, family: Family
) -> None:
    bed = wired_bed
    bed.put(WEB, WEB6)
    bed.agent.start()
    moves = ""
    for _ in range(3):
        eventually(lambda: is_before(bed, family, "IPVS_PREROUTING"), "ours is first")
        bed.restore(family, UNKNOWN.format(rule=HARMLESS, moves=moves))
        moves = "-D PREROUTING -j THEIRS\n"
    bed.agent.said("THEIRS keeps returning to the front of PREROUTING")
    bed.restore(family, UNKNOWN.format(rule=HARMLESS, moves=moves))
    eventually(lambda: is_before(bed, family, "THEIRS", "IPVS_PREROUTING"), "it is left to him")
    # Who looks goes by what the agent has seen, and not by what the first look would be.
    assert bed.agent.call("diff").returncode == 0
    seen = bed.agent.call("check").stdout
    assert "\nok    rules: in sync" in seen
    assert "THEIRS may stay in front" in seen
    bed.restore(family, f"*nat\n:THEIRS - [0:0]\n-A THEIRS {ENDING}\nCOMMIT\n")
    eventually(lambda: is_before(bed, family, "IPVS_PREROUTING"), "who ends walks is not left it")
