"""Rules put right one by one, by each iptables-nft: their order, and who counts on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV6, Family
from ipvs_node_agent.nat.ruleset import Found, Ruleset, difference
from ipvs_node_agent.nat.saveformat import restore_input
from tests.kernel.conftest import EVERYWHERE, Bed
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
        for _ in range(chance.choice((1, 1, 2))):
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
            fresh = tuple(rule for count, rule in come if count == 0)
            assert fresh == edit.written or family is IPV6
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


OVERTAKEN = """\
cat >"$here/input"
if rm "$here/armed" 2>/dev/null; then
    cp "$here/input" "$here/first"
    iptables-nft -w 5 -t nat -I IPVS_OUTPUT 1 -d 192.0.2.9/32 -j RETURN
fi
exec "$real" "$@" <"$here/input"
"""
MANY = [(f"10.19.22.{n}", f"s{n}", f"10.231.3.{n}") for n in range(1, 7)]
MOVED = [*MANY[:2], (*MANY[2][:2], "10.231.3.77"), *MANY[3:]]


@pytest.mark.parametrize("backend", ["nft"], indirect=True)
def test_rules_that_somebody_moves_just_before_a_write_are_right_again(
    bed: Bed, tmp_path: Path
) -> None:
    """It is told, so what came to a wrong place is seen and written anew."""
    bed.stand_in(tmp_path, "iptables-nft-restore", OVERTAKEN)
    bed.agent.options = ["--log-level", "debug"]
    bed.put(*MANY)
    bed.agent.start()
    bed.expect(*MANY)
    bed.settled()
    (tmp_path / "armed").touch()
    bed.put(MOVED[2])
    bed.agent.said("repaired")
    bed.expect(*MOVED)
    assert not (tmp_path / "armed").exists()
    # Else nothing of this was about rules that are put right one by one.
    assert "-R IPVS_OUTPUT" in (tmp_path / "first").read_text()
