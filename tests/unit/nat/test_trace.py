"""A packet's walk through whole tables, as text; the kernel says the same in test_tracer.py."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.trace import (
    UNKNOWN,
    Walk,
    chains_of,
    leads_to,
    marked_by,
    masquerades,
    read,
    trace,
)

PACKET = Packet("10.0.0.7", "10.19.0.1", to_host=True)
MARK = "MARK --set-xmark 0x4000/0x4000"
SET = "-m set --match-set A dst"


def walk(rules: str, packet: Packet = PACKET) -> Walk:
    """The walk through a table of which each line is CHAIN RULE, from PREROUTING."""
    chains: dict[str, list[str]] = {"PREROUTING": []}
    for line in rules.strip().splitlines():
        name, _, rule = line.strip().partition(" ")
        chains.setdefault(name, []).append(rule)
    return trace(chains, "PREROUTING", packet)


# The table, where the walk ends, and by which rule.
ENDS = {
    "nothing": ("", "policy ACCEPT", None),
    "a rule": ("PREROUTING -j DNAT --to-destination 1.1.1.1", "DNAT 1.1.1.1", ("PREROUTING", 1)),
    "the first of two": (
        "PREROUTING -j DNAT --to-destination 1.1.1.1\nPREROUTING -j DROP",
        "DNAT 1.1.1.1",
        ("PREROUTING", 1),
    ),
    "behind one that does not match": (
        "PREROUTING -p udp -j DROP\nPREROUTING -j ACCEPT",
        "ACCEPT ",
        ("PREROUTING", 2),
    ),
    "in a chain": ("PREROUTING -j A\nA -j LOG\nA -j REDIRECT --to-ports 1", "REDIRECT 1", ("A", 2)),
    "behind a return": (
        "PREROUTING -j A\nPREROUTING -j DROP\nA -j RETURN\nA -j ACCEPT",
        "DROP ",
        None,
    ),
    "back from a chain": ("PREROUTING -j A\nPREROUTING -j DROP\nA -p udp -j ACCEPT", "DROP ", None),
    "past the rest by a goto": (
        "PREROUTING -j A\nPREROUTING -j DROP\nA -g B\nA -j ACCEPT\nB -j LOG",
        "DROP ",
        ("PREROUTING", 2),
    ),
    "by a goto of the built-in chain": (
        "PREROUTING -g A\nPREROUTING -j DROP\nA -j LOG",
        "policy ACCEPT",
        None,
    ),
    "by its own mark": (
        f"PREROUTING -j {MARK}\nPREROUTING -m mark --mark 0x4000/0x4000 -j DROP",
        "DROP ",
        None,
    ),
    "past a mark taken off": (
        f"PREROUTING -j {MARK}\nPREROUTING -j MARK --set-xmark 0x4000/0x4000"
        "\nPREROUTING -j MARK --set-xmark 0x0/0x4000"
        "\nPREROUTING -m mark --mark 0x4000/0x4000 -j DROP",
        "policy ACCEPT",
        None,
    ),
    # What is not known, and does not matter.
    "a set that leads to a mark": (
        f"PREROUTING {SET} -j A\nPREROUTING -j DNAT --to-destination 1.1.1.1\nA -j {MARK}",
        "DNAT 1.1.1.1",
        ("PREROUTING", 2),
    ),
    "a set behind the end": (
        f"PREROUTING -j DROP\nPREROUTING {SET} -j ACCEPT",
        "DROP ",
        ("PREROUTING", 1),
    ),
    "a set, and the same in any case": (
        f"PREROUTING {SET} -j ACCEPT\nPREROUTING -p tcp -j ACCEPT\nPREROUTING -j DROP",
        "ACCEPT ",
        ("PREROUTING", 2),
    ),
    "a set for those of another protocol": (
        f"PREROUTING -p udp {SET} -j DROP\nPREROUTING -j ACCEPT",
        "ACCEPT ",
        None,
    ),
    "a return of some, where all end alike": (
        f"PREROUTING -j A\nPREROUTING -j ACCEPT\nA {SET} -j RETURN\nA -j ACCEPT",
        "ACCEPT ",
        None,
    ),
    # What is not known, and decides.
    "a set that ends it": (f"PREROUTING {SET} -j DROP", "unknown", ("PREROUTING", 1)),
    "a set that leads to an end": (
        f"PREROUTING -j B\nPREROUTING -j DROP\nB {SET} -j A\nA -j ACCEPT",
        "unknown",
        ("B", 1),
    ),
    "a set that leads past an end": (
        f"PREROUTING -j A\nA {SET} -j RETURN\nA -j DROP",
        "unknown",
        ("A", 1),
    ),
    "a goto of some": (
        f"PREROUTING -j A\nA {SET} -g B\nA -j DROP\nB -j LOG",
        "unknown",
        ("A", 1),
    ),
    "a mark that some have": (
        f"PREROUTING {SET} -j {MARK}\nPREROUTING -m mark --mark 0x4000/0x4000 -j DROP",
        "unknown",
        ("PREROUTING", 2),
    ),
    "a mark out of connection tracking": (
        "PREROUTING -j CONNMARK --restore-mark\nPREROUTING -m mark --mark 0x1/0x1 -j DROP",
        "unknown",
        ("PREROUTING", 2),
    ),
    "a target that is not known": (
        "PREROUTING -j NETMAP --to 1.0.0.0/8",
        "unknown",
        ("PREROUTING", 1),
    ),
    "a circle": ("PREROUTING -j A\nA -j B\nB -j A", "unknown", None),
    "a circle for some": (
        f"PREROUTING {SET} -j A\nPREROUTING -j DROP\nA -j B\nB -j A",
        "unknown",
        ("PREROUTING", 1),
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_where_a_walk_ends(name: str) -> None:
    rules, wanted, at = ENDS[name]
    end = walk(rules).end
    assert (end.kind if end.kind == UNKNOWN else f"{end.kind} {end.to}") == wanted
    assert at is None or (end.step is not None and (end.step.chain, end.step.place) == at)
    assert bool(end.why) == (end.kind == UNKNOWN)


def test_what_a_packet_met_is_told() -> None:
    rules = "PREROUTING -p udp -j DROP\nPREROUTING -j A\nA -j LOG\nPREROUTING -j ACCEPT"
    met = walk(rules)
    assert [(step.chain, step.place) for step in met.steps] == [
        ("PREROUTING", 2),
        ("A", 1),
        ("PREROUTING", 3),
    ]
    assert met.walked == 4
    assert met.matched[0] == ("PREROUTING", "-j A")


@pytest.mark.parametrize(
    ("rules", "marked"),
    [
        ("", False),
        (f"PREROUTING -j {MARK}", True),
        (f"PREROUTING {SET} -j {MARK}", None),
        (f"PREROUTING {SET} -j {MARK}\nPREROUTING -j {MARK}", True),
        ("PREROUTING -j MARK --and-something", None),
    ],
)
def test_whether_it_is_marked(rules: str, marked: bool | None) -> None:
    assert walk(rules).marked(0x4000) is marked


def test_a_table_is_read_with_its_counts_and_without() -> None:
    text = (
        "*nat\n:PREROUTING ACCEPT [7:420]\n:A - [0:0]\n{}-A PREROUTING -j A\n"
        '{}-A A -m comment --comment "two\n-A A lines" -j RETURN\n-A B\nCOMMIT\n'
    )
    counted, plain = read(text.format("[3:180] ", "[2:120] ")), read(text.format("", ""))
    assert counted.chains == plain.chains
    assert counted.chains["A"] == ['-m comment --comment "two\n-A A lines" -j RETURN']
    assert counted.packets == {"PREROUTING": [3], "A": [2], "B": [0]}
    assert counted.policies == {"PREROUTING": "ACCEPT"}
    assert chains_of(text.format("", "").splitlines()) == dict(plain.chains, A=counted.chains["A"])


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("", False),
        ("-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE", True),
        ("-A POSTROUTING -m mark --mark 0x8000/0x8000 -j MASQUERADE", False),
        ("-A POSTROUTING ! -o docker0 -j MASQUERADE", None),
        (
            "-A POSTROUTING ! -o docker0 -j SNAT --to-source 1.1.1.1\n-A POSTROUTING -j MASQUERADE",
            True,
        ),
    ],
)
def test_whether_a_marked_packet_is_masqueraded(rule: str, wanted: bool | None) -> None:
    table = read(f"*nat\n:POSTROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n")
    assert masquerades(table, PACKET._replace(mark=0x4000)) is wanted


@pytest.mark.parametrize(
    ("rules", "bits"),
    [
        ("", 0),
        (f"-A A -j {MARK}\n-A A -j MARK --set-xmark 0x0/0xf0000", 0xF4000),
        ("-A A -j CONNMARK --save-mark", 0),
        ("-A A -j CONNMARK --restore-mark", 0xFFFFFFFF),
    ],
)
def test_the_bits_that_a_table_may_change(rules: str, bits: int) -> None:
    assert marked_by(read(rules)) == bits


def test_the_chains_that_can_be_got_to() -> None:
    chains = {"A": ["-j B", "-j ACCEPT"], "B": ["-g C", "-j A"], "C": [], "D": ["-j A"]}
    assert sorted(leads_to(chains, "A")) == ["A", "B", "C"]
