"""What a built-in chain says of ours; `test_saveformat` has it in whole tables."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.ahead import MOST_JUMPS
from ipvs_node_agent.nat.hooks import Hooks, hooks

OURS = {"IPVS_OUTPUT": 0, "IPVS_MARK_MASQ": 0}.keys()
FOREIGN = {"cali-OUTPUT", "THEIRS", "KUBE-SERVICES"}
CALI = ("-j cali-OUTPUT", "cali-OUTPUT")


@pytest.mark.parametrize(
    ("rules", "jumps", "leading", "referenced"),
    [
        ([], (), (), ()),
        (["-j IPVS_OUTPUT", "-j KUBE-SERVICES"], ((1, "IPVS_OUTPUT"),), (), ()),
        (["-j KUBE-SERVICES", "-j IPVS_OUTPUT"], ((2, "IPVS_OUTPUT"),), (), ()),
        (["-j cali-OUTPUT", "-j IPVS_OUTPUT"], ((2, "IPVS_OUTPUT"),), (CALI,), ()),
        # Ours does not end what others stand in front with.
        (["-j IPVS_OUTPUT", "-j cali-OUTPUT"], ((1, "IPVS_OUTPUT"),), (CALI,), ()),
        (["-p tcp -j RETURN", "-j cali-OUTPUT"], (), (), ()),
        (["-p udp -j IPVS_OUTPUT", "-g IPVS_MARK_MASQ"], (), (), OURS),
        (["-j THEIRS"] * 40, (), (("-j THEIRS", "THEIRS"),) * MOST_JUMPS, ()),
    ],
)
def test_it_says_where_ours_are_and_who_stands_first(
    rules: list[str],
    jumps: tuple[tuple[int, str], ...],
    leading: tuple[tuple[str, str], ...],
    referenced: frozenset[str],
) -> None:
    assert hooks(rules, OURS, FOREIGN) == Hooks(jumps, leading, frozenset(referenced))
