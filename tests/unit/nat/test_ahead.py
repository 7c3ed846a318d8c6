"""Who may stand before our jump: told from the text of a whole table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Found, Ruleset, applied, difference, drift
from ipvs_node_agent.nat.saveformat import parse_save, restore_input

PRE = "IPVS_PREROUTING"
OURS = f"-j {PRE}"
CALICO = '-m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING'
OVN = '-m comment --comment "kube-ovn prerouting rules" -j OVN-PREROUTING'
KUBE = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
WANTED = Ruleset(
    chains={PRE: ()},
    jumps={"PREROUTING": PRE},
    addresses=frozenset(map(parse_address, ("10.19.0.1", "fd00:19::1"))),
)
CHAINS = {
    "cali-PREROUTING": ["-j cali-fip-dnat"],
    "cali-fip-dnat": [],
    "OVN-PREROUTING": ["-m set --match-set ovn40services dst -j MARK --set-xmark 0x4000/0x4000"],
    "KUBE-SERVICES": ["-j ACCEPT"],
    "OTHERS": [],
    "DEEPER": [],
}


def table(*prerouting: str, built_in: str = "PREROUTING", **chains: Sequence[str]) -> Found:
    """A table whose PREROUTING has these rules, and others' chains beside CHAINS."""
    known = {**CHAINS, **{name.replace("_", "-"): rules for name, rules in chains.items()}}
    lines = ["*nat", f":{built_in} ACCEPT [0:0]", f":{PRE} - [0:0]"]
    lines += [f":{name} - [0:0]" for name in known]
    lines += [f"-A {built_in} {rule}" for rule in prerouting]
    lines += [f"-A {name} {rule}" for name, rules in known.items() for rule in rules]
    return parse_save("\n".join([*lines, "COMMIT", ""]), owner(frozenset({PRE})))


def moves(found: Found, wanted: Ruleset = WANTED) -> list[str]:
    """What is done to the jumps."""
    text = restore_input(difference(found, wanted))
    return [line for line in text.split("\n") if line.startswith(("-I", "-D"))]


@pytest.mark.parametrize(
    ("rules", "done"),
    [
        ([OURS, KUBE], []),
        ([KUBE], [f"-I PREROUTING 1 {OURS}"]),
        ([KUBE, OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 1 {OURS}"]),
        ([CALICO, KUBE], [f"-I PREROUTING 2 {OURS}"]),
        ([CALICO, OURS, KUBE], []),
        ([OURS, CALICO, KUBE], [f"-D PREROUTING {OURS}", f"-I PREROUTING 2 {OURS}"]),
        ([OURS, KUBE, CALICO], []),
        ([CALICO, OVN, OURS, KUBE], []),
        ([CALICO, OURS, OVN, KUBE], [f"-D PREROUTING {OURS}", f"-I PREROUTING 3 {OURS}"]),
        ([CALICO, "-j OTHERS", OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 2 {OURS}"]),
        ([CALICO, KUBE, OVN, OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 2 {OURS}"]),
        ([CALICO, OURS, OURS], [f"-D PREROUTING {OURS}"] * 2 + [f"-I PREROUTING 2 {OURS}"]),
        (["-p tcp -j ACCEPT", OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 1 {OURS}"]),
        ([CALICO, CALICO, OURS, KUBE], []),
        (["-i eth0 -j cali-PREROUTING", OURS], []),
        # Who comes back from a goto has passed by the rest of the chain.
        (["-g cali-PREROUTING", OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 1 {OURS}"]),
        (
            ["-d 192.0.2.7/32 -g cali-PREROUTING", OURS],
            [f"-D PREROUTING {OURS}", f"-I PREROUTING 1 {OURS}"],
        ),
        (
            ["-m comment --comment -g -j cali-PREROUTING", OURS],
            [f"-D PREROUTING {OURS}", f"-I PREROUTING 1 {OURS}"],
        ),
        (['-m comment --comment "x -g y" -j cali-PREROUTING', OURS], []),
        ([CALICO] * 32 + [OURS], []),
        ([CALICO] * 33 + [OURS], [f"-D PREROUTING {OURS}", f"-I PREROUTING 33 {OURS}"]),
    ],
)
def test_ours_stands_behind_those_who_insist_and_before_all_others(
    rules: list[str], done: list[str]
) -> None:
    found = table(*rules)
    assert moves(found) == done
    assert moves(applied(found, WANTED)) == []


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ("-d 192.0.2.7/32 -j DNAT --to-destination 10.233.90.5", True),
        ("-d 10.19.0.1/32 -j DNAT --to-destination 10.233.90.5", False),
        ("-d 10.19.0.0/16 -p tcp -m tcp --dport 25 -j REDIRECT", False),
        ("-d fd00:19::/64 -j DNAT --to-destination fd00::5", False),
        ("! -d 192.0.2.7/32 -j ACCEPT", False),
        ("-s 10.0.0.0/8 -j ACCEPT", False),
        ("-m set --match-set their-ips dst -j ACCEPT", False),
        ("-j NEWFANGLED", False),
        ("-d nonsense -j ACCEPT", False),
        ("-s 10.0.0.0/8 -d 192.0.2.7/32 -j ACCEPT", True),
        ("! -s 10.0.0.0/8 -d 192.0.2.7/32 -j ACCEPT", True),
        # The mask is of the last 24 bits, and so of 10.19.0.1 too.
        ("-d 0.19.0.1/0.255.255.255 -j ACCEPT", False),
        ("-d ::1/::ffff -j ACCEPT", False),
        # Names may look like options, and have quotes in them.
        ("-m set --match-set -d src,dst -j ACCEPT", False),
        ("-m recent --name -d 192.0.2.7 -j ACCEPT", False),
        ('-i a"b -m comment --comment "x" -j ACCEPT', False),
        ("-m comment --comment -j -j ACCEPT", False),
        ("-p tcp -g ACCEPTING", False),
        ('-m comment --comment "-d 192.0.2.7/32 " -j ACCEPT', False),
        (
            '-d 192.0.2.7/32 -m comment --comment "x -j ACCEPT" -j DNAT --to-destination 10.0.0.1',
            True,
        ),
        ("-j MARK --set-xmark 0x1/0x1", True),
        ('-j LOG --log-prefix "x -j ACCEPT"', True),
        ("-d 10.19.0.1/32 -j RETURN", True),
        ("-m recent --set --name x", True),
        ("-j DEEPER", True),
        ("-g DEEPER", True),
        ("-j cali-PREROUTING", True),
        ("-j KUBE-SERVICES", False),
    ],
)
def test_who_may_end_the_walk_of_one_of_our_packets_is_not_given_way_to(
    rule: str, stays: bool
) -> None:
    assert (moves(table(CALICO, OURS, KUBE, cali_fip_dnat=[rule])) == []) == stays


@pytest.mark.parametrize(
    ("rule", "stays"), [("-j MARK --set-xmark 0x1/0x1", True), ("-j ACCEPT", False)]
)
def test_all_that_can_be_reached_counts(rule: str, stays: bool) -> None:
    found = table(CALICO, OURS, cali_fip_dnat=["-p tcp -g DEEPER"], DEEPER=[rule])
    assert (moves(found) == []) == stays
    assert found.ahead["PREROUTING"][0].chains == {"cali-PREROUTING", "cali-fip-dnat", "DEEPER"}


def test_who_has_too_many_rules_to_be_read_is_not_given_way_to() -> None:
    many = [f"-s 10.0.{n // 250}.{n % 250}/32 -j MARK --set-xmark 0x1/0x1" for n in range(4097)]
    assert moves(table(CALICO, OURS, cali_fip_dnat=many[:-2])) == []
    assert moves(table(CALICO, OURS, cali_fip_dnat=many)) != []


def test_somebody_unknown_is_given_way_to_where_that_is_wanted() -> None:
    wanted = Ruleset(WANTED.chains, WANTED.jumps, behind=frozenset({("PREROUTING", "OTHERS")}))
    assert moves(table("-j OTHERS", OURS, KUBE), wanted) == []
    assert moves(table("-j OTHERS", OURS, OTHERS=["-j ACCEPT"]), WANTED) != []
    taking = Ruleset(WANTED.chains, WANTED.jumps, addresses=WANTED.addresses, behind=wanted.behind)
    assert moves(table("-j OTHERS", OURS, OTHERS=["-j ACCEPT"]), taking) != []


def test_behind_the_translation_there_is_nothing_to_take() -> None:
    wanted = Ruleset({PRE: ()}, {"POSTROUTING": PRE}, addresses=WANTED.addresses)
    calico = {"cali_POSTROUTING": ["-j MASQUERADE"]}
    assert moves(table("-j cali-POSTROUTING", OURS, built_in="POSTROUTING", **calico), wanted) == []


def test_who_is_passed_by_is_told() -> None:
    change = difference(table(CALICO, "-j OTHERS", OVN, KUBE, OURS), WANTED)
    assert change.passed == (("PREROUTING", "OTHERS"), ("PREROUTING", "OVN-PREROUTING"))


def test_who_stands_behind_ours_is_not_passed_by() -> None:
    change = difference(table("-j OTHERS", OURS, "-j DEEPER", KUBE), WANTED)
    assert change.passed == (("PREROUTING", "OTHERS"),)


def test_many_jumps_to_many_chains_are_not_followed_without_end() -> None:
    rules: Any = {f"cali-{n}": [f"-j cali-{n + 1}"] * 4 for n in range(4000)}
    rules["cali-4000"] = [f"-d 192.0.2.7/32 -p tcp --dport {n} -j ACCEPT" for n in range(4000)]
    jumps = [f"-j cali-{n % 4000}" for n in range(20_000)]
    started = time.process_time()
    found = table(*jumps, OURS, built_in="PREROUTING", **rules)
    assert len(found.ahead["PREROUTING"]) == 32
    # A second; each jump followed to each of the rules would be four hundred million steps.
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("left", "found", "reasons"),
    [
        (table(OURS, KUBE), table(CALICO, OURS, KUBE), ()),
        (table(CALICO, OURS), table(OURS), ()),
        (table(OURS, KUBE), table("-j OTHERS", OURS, KUBE), ("JumpNotFirst",)),
        (table(OURS, KUBE), table(KUBE, OURS), ("JumpNotFirst",)),
        (table(CALICO, OURS), table(CALICO, OURS, cali_fip_dnat=["-j ACCEPT"]), ("JumpNotFirst",)),
        (table(CALICO, OURS), table(CALICO, KUBE), ("JumpMissing",)),
        (table(CALICO, OURS), table(CALICO, OURS, OURS), ("JumpDoubled",)),
    ],
)
def test_who_is_given_way_to_is_no_drift(
    left: Found, found: Found, reasons: tuple[str, ...]
) -> None:
    assert drift(left, found, WANTED) == reasons
