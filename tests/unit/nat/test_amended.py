"""What is known of a table after a look at a few chains is what the whole table would tell."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.amended import amended
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Found
from ipvs_node_agent.nat.saveformat import parse_save
from tests.support.faketable import FakeTable

OURS = owner(frozenset({"IPVS_PREROUTING", "IPVS_OUTPUT"}))
TABLE = """\
*nat
:cali-OUTPUT - [0:0]
:cali-POST - [0:0]
:KUBE-SERVICES - [0:0]
:IPVS_PREROUTING - [0:0]
:IPVS_OUTPUT - [0:0]
:IPVS_OUTPUT-1 - [0:0]
-A cali-OUTPUT -d 10.19.0.9/32 -j DNAT --to-destination 10.19.0.8
-A IPVS_OUTPUT -d 10.19.0.1/32 -j IPVS_OUTPUT-1
-A IPVS_OUTPUT-1 -j RETURN
-A OUTPUT -j cali-OUTPUT
-A OUTPUT -j IPVS_OUTPUT
-A OUTPUT -j KUBE-SERVICES
-A PREROUTING -j IPVS_PREROUTING
-A PREROUTING -j KUBE-SERVICES
COMMIT
"""


class Two:
    """A table before and after somebody changes it."""

    def __init__(self, lines: str, first: str = "") -> None:
        self.table = FakeTable(TABLE)
        if first:
            self.change(first)
        self.before, there = self.found, self.table.copy()
        self.change(lines)
        now = self.table.copy()
        self.there = {
            name: tuple(now[name]) if name in now else None
            for name in there.keys() | now.keys()
            if there.get(name) != now.get(name)
        }

    @property
    def found(self) -> Found:
        return parse_save(self.table.save(), OURS)

    def change(self, lines: str) -> None:
        self.table.restore(f"*nat\n{lines}\nCOMMIT\n")


@pytest.mark.parametrize(
    "lines",
    [
        "-F IPVS_OUTPUT",
        "-F IPVS_OUTPUT\n-F IPVS_OUTPUT-1\n-X IPVS_OUTPUT-1",
        "-D IPVS_OUTPUT -d 10.19.0.1/32 -j IPVS_OUTPUT-1",
        "-I IPVS_OUTPUT-1 1 -p tcp -j RETURN",
        "-D OUTPUT -j IPVS_OUTPUT",
        "-A OUTPUT -j IPVS_OUTPUT",
        "-I OUTPUT 1 -j IPVS_OUTPUT",
        "-D OUTPUT -j IPVS_OUTPUT\n-A OUTPUT -j IPVS_OUTPUT",
        "-I OUTPUT 1 -p tcp -j RETURN",
        "-F OUTPUT",
        "-D OUTPUT -j cali-OUTPUT",
        # A chain of others' that is known is judged alike wherever it is.
        "-I OUTPUT 1 -p tcp -j cali-OUTPUT",
        "-I PREROUTING 1 -j cali-OUTPUT",
        "-I INPUT 1 -j IPVS_OUTPUT",
        "-F PREROUTING\n-X IPVS_PREROUTING",
    ],
)
def test_it_is_the_same_as_after_a_look_at_everything(lines: str) -> None:
    two = Two(lines)
    assert two.there
    assert amended(two.before, two.there, OURS) == two.found


REFERRED = "-A POSTROUTING -p tcp -j IPVS_OUTPUT"


@pytest.mark.parametrize(
    ("first", "lines"),
    [
        pytest.param("", "-I OUTPUT 1 -j cali-POST", id="one in front who is not known"),
        pytest.param("", REFERRED, id="a rule that refers to ours"),
        # That somebody else's does not any more is not known.
        pytest.param(REFERRED, "-F POSTROUTING", id="one that does so no more"),
        pytest.param("", ":IPVS_OUTPUT-2 - [0:0]", id="a new chain"),
        pytest.param("", "-F cali-OUTPUT", id="a chain of others'"),
    ],
)
def test_nothing_is_known_where_it_takes_everything_to_tell(first: str, lines: str) -> None:
    two = Two(lines, first)
    assert two.there
    assert amended(two.before, two.there, OURS) is None


def test_a_built_in_chain_that_is_gone_takes_a_look_at_everything() -> None:
    assert amended(Found(), {"OUTPUT": None}, OURS) is None


def test_what_is_gone_is_referred_to_no_more() -> None:
    two = Two("-F PREROUTING\n-X IPVS_PREROUTING")
    before = Found(two.before.chains, referenced=frozenset({"IPVS_PREROUTING", "IPVS_OUTPUT"}))
    now = amended(before, {"IPVS_PREROUTING": None}, OURS)
    assert now is not None
    assert now.referenced == {"IPVS_OUTPUT"}


def test_rules_that_are_as_expected_take_no_memory() -> None:
    expected = {"IPVS_OUTPUT": ("-j RETURN",)}
    there = {"IPVS_OUTPUT": tuple("-j RETURN" for _ in range(1))}
    now = amended(Two("-F IPVS_OUTPUT").before, there, OURS, expected)
    assert now is not None
    assert now.chains["IPVS_OUTPUT"] is expected["IPVS_OUTPUT"]
