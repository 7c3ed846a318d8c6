"""Rules put right one by one, by each iptables-nft: their order, and who counts on."""

from __future__ import annotations

import random

import pytest

from ipvs_node_agent.model.addresses import IPV6, Family
from ipvs_node_agent.nat.ruleset import Found, Ruleset, difference
from ipvs_node_agent.nat.saveformat import restore_input
from tests.kernel.conftest import EVERYWHERE
from tests.support.netns import Namespace
from tests.support.tables import restore

pytestmark = [pytest.mark.kernel, EVERYWHERE]

CHAIN, OTHER = "IPVS_OUTPUT", "IPVS_OUTPUT-1"
EDITS = 40


def rules_of(family: Family, numbers: list[tuple[int, int]]) -> tuple[str, ...]:
    """The rules of Services by the numbers of their addresses."""
    at, to = ("192.0.2.{}", "203.0.113.{}") if family.version == 4 else ("2001:db8::{:x}",) * 2
    return tuple(
        f'-d {at.format(address)}/{family.bits} -m comment --comment "default/s{address}"'
        f" -m addrtype --src-type LOCAL -j {target}"
        for address, cluster in numbers
        for target in (OTHER, f"DNAT --to-destination {to.format(cluster)}")
    )


def shown(namespace: Namespace, family: Family) -> list[tuple[int, str]]:
    """The packets that each rule of the chain has counted, and the rule."""
    saved = namespace.run(f"{family.command}-nft-save", "-c", "-t", "nat")
    lines = [line.split(f" -A {CHAIN} ") for line in saved.splitlines() if f" -A {CHAIN} " in line]
    return [(int(counts[1:].partition(":")[0]), rule) for counts, rule in lines]


def test_an_edited_chain_is_as_wanted_and_what_stays_counts_on(
    namespace: Namespace, family: Family
) -> None:
    chance, edited = random.Random(family.version), 0
    numbers = [(number, number) for number in range(1, 11)]
    restore(namespace, family, "nft", f"*nat\n:{CHAIN} - [0:0]\n:{OTHER} - [0:0]\nCOMMIT\n")
    for _ in range(EDITS):
        lines = [
            f"[{n}:60] -A {CHAIN} {rule}" for n, rule in enumerate(rules_of(family, numbers), 1)
        ]
        given = "\n".join(["*nat", f":{CHAIN} - [0:0]", *lines, "COMMIT", ""])
        namespace.run(f"{family.command}-nft-restore", "--noflush", "--counters", stdin=given)
        numbers = changed(numbers, chance)
        wanted, before = rules_of(family, numbers), shown(namespace, family)
        there = tuple(rule for _, rule in before)
        found = Found({CHAIN: there, OTHER: ()})
        change = difference(found, Ruleset({CHAIN: wanted, OTHER: ()})).edited()
        restore(namespace, family, "nft", restore_input(change))
        after = shown(namespace, family)
        assert tuple(rule for _, rule in after) == wanted
        # Older ip6tables take no counters, which then tell nothing.
        assert [count for count, _ in before] == [*range(1, len(before) + 1)] or family is IPV6
        for edit in change.edits.values():
            edited += 1
            start, rest = edit.place - 1, len(there) - (edit.place - 1) - len(edit.gone)
            assert after[:start] == before[:start]
            assert after[len(after) - rest :] == before[len(before) - rest :]
            come = after[start : len(after) - rest]
            assert all(count == 0 or rule in edit.gone for count, rule in come)
    assert edited > EDITS / 2


def changed(numbers: list[tuple[int, int]], chance: random.Random) -> list[tuple[int, int]]:
    """A Service comes, goes, or has another ClusterIP."""
    known = dict(numbers)
    what, address = chance.choice(("comes", "goes", "moves")), chance.choice([*known])
    if what == "comes":
        known[chance.choice([n for n in range(1, 60) if n not in known])] = chance.randrange(1, 200)
    elif what == "goes" and len(known) > 4:
        del known[address]
    else:
        known[address] = chance.randrange(1, 200)
    return sorted(known.items())
