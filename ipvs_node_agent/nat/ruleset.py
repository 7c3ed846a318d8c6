"""One family's table as values: what is wanted, what was found, and the change between them.

A rule is its text (`ruletext`), so comparing rules is comparing strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from ipvs_node_agent.model.addresses import Address
from ipvs_node_agent.nat.ahead import Ahead
from ipvs_node_agent.nat.chains import NAT, OWN_MARK_CHAIN
from ipvs_node_agent.nat.edits import Edit, edit
from ipvs_node_agent.nat.ruletext import Rules, target

# So many chains in one input are worth an order that iptables likes.
_MANY = 64
# So many are what one input may hold before it is taken apart.
_PART = 2048
# What others may have done to our chains and jumps: a word, and what the log says for it.
DRIFT = {
    "TableFlushed": "all chains and jumps were gone",
    "ChainMissing": "a chain was gone",
    "ChainFlushed": "a chain was empty",
    "ChainChanged": "a chain's rules were different",
    "ChainAdded": "there was an extra chain",
    "JumpMissing": "a jump was gone",
    "JumpDoubled": "a jump was duplicated",
    "JumpNotFirst": "a jump was not the first rule",
}


@dataclass(frozen=True)
class Ruleset:
    """The chains and jumps that are wanted in `table`.

    `jumps` names, for a built-in chain, the chain of ours that its first rule must jump to, but for
    jumps of others that it gives way to (see `nat.ahead`): of those who are known to insist on the
    first place, and of `behind`, by their built-in chain and target, as long as they take nothing
    that goes to `addresses`. It is the right one only where others have rules in all of the chains
    `needs`, and in none of `instead_of`.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, str] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    instead_of: frozenset[str] = frozenset()
    addresses: frozenset[Address] = frozenset()
    behind: frozenset[tuple[str, str]] = frozenset()
    table: str = NAT

    def gives_way_to(self, other: Ahead, built_in: str) -> bool:
        """Whether our jump in `built_in` may stand behind `other`."""
        if not (other.insists or (built_in, other.target) in self.behind):
            return False
        # Behind the translation there is nothing to take: an address is a pod's by then.
        return built_in == "POSTROUTING" or not other.keeps(self.addresses)

    def place(self, found: Found, built_in: str) -> int:
        """Where in `built_in` our jump belongs, from 1."""
        ahead = found.ahead.get(built_in, ())
        return 1 + sum(1 for _ in takewhile(lambda one: self.gives_way_to(one, built_in), ahead))

    def fits(self, filled: frozenset[str]) -> bool:
        """Whether it is the right one where others have rules in the chains `filled`."""
        return self.needs <= filled and not self.instead_of & filled


@dataclass(frozen=True)
class Found:
    """What a table holds of ours.

    `jumps` lists, for a built-in chain, each plain jump to a chain of ours and its place, from 1,
    and `ahead` the jumps to others' chains that stand first in it, ours not counted.
    `foreign` are the names of all other chains, and `filled` of those that have a rule;
    `referenced` are chains of ours that somebody else's rule refers to, which the kernel therefore
    does not let go.
    """

    chains: Mapping[str, Rules] = field(default_factory=dict)
    jumps: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    referenced: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    ahead: Mapping[str, tuple[Ahead, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """The steps from what was found to what is wanted; falsy where there are none.

    `unhooked` has an entry for each copy of a jump that goes, and `hooked` one with its place for
    each that comes; `passed` are those in front whom it passes by, as a built-in chain and target.
    `new` are those of the written chains that were not there; `replaced` is what the written and
    dropped chains held. `repairs` says what others had done to the table (see `DRIFT`) that it
    undoes, and `by` who they are. `appended` are rules that come behind those of a chain, which is
    not written anew. `edits` are for those of the written chains of which some rules stay. All of
    it is in `table`.
    """

    written: Mapping[str, Rules] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unhooked: tuple[tuple[str, str], ...] = ()
    hooked: tuple[tuple[str, int, str], ...] = ()
    new: frozenset[str] = frozenset()
    replaced: Mapping[str, Rules] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    appended: Mapping[str, Rules] = field(default_factory=dict)
    passed: tuple[tuple[str, str], ...] = ()
    edits: Mapping[str, Edit] = field(default_factory=dict)
    table: str = NAT

    def __bool__(self) -> bool:
        return bool(self.written or self.dropped or self.unhooked or self.hooked or self.appended)

    @property
    def rules(self) -> int:
        """How many rules it writes."""
        return sum(
            len(self.edits[name].written if name in self.edits else rules)
            for name, rules in self.written.items()
        )

    def edited(self) -> Change:
        """The same change, in which rules stay that are right; see `edits`."""
        if len(self.written) >= _MANY:
            return self
        edits = {
            name: found
            for name, there in self.replaced.items()
            if name in self.written and (found := edit(there, self.written[name])) is not None
        }
        return replace(self, edits=edits)

    def parts(self) -> Iterator[Change]:
        """The change as several ones, to be applied in their order; mostly there is but one.

        Thousands of chains at once would take iptables-nft a time that grows with their square. All
        parts but the last only make chains that nothing jumps to yet, so the last is the change.
        """
        leaves = [name for name in self.leaves() if name in self.new]
        early = leaves[: len(leaves) // _PART * _PART]
        for start in range(0, len(early), _PART):
            names = early[start : start + _PART]
            written = {name: self.written[name] for name in names}
            yield Change(written, new=frozenset(names), table=self.table)
        done = frozenset(early)
        rest = {name: rules for name, rules in self.written.items() if name not in done}
        yield replace(self, written=rest, new=self.new - done)

    def leaves(self) -> list[str]:
        """Written chains that jump to none of the others, names descending, where there are many.

        For each rule iptables-nft walks the sorted list of the chains it has met so far; with the
        last names first it is at the right place at once, which saves a third of a long restore.
        The chain of ours that marks comes before all of them, as they jump to it.
        """
        if len(self.written) < _MANY:
            return []
        others = self.written.keys() - {OWN_MARK_CHAIN}
        leaves = sorted(
            (
                name
                for name in others
                if not any(target(rule) in others for rule in self.written[name])
            ),
            reverse=True,
        )
        return [OWN_MARK_CHAIN, *leaves] if OWN_MARK_CHAIN in self.written else leaves


def difference(found: Found, wanted: Ruleset) -> Change:
    """What has to be done so that `found` becomes `wanted`; nothing that is right is touched."""
    written = {}
    for name, rules in wanted.chains.items():
        there = found.chains.get(name)
        # Mostly the very same object; comparing thousands of chains takes longer than a write.
        if there is not rules and there != rules:
            written[name] = rules
    dead = [name for name in sorted(found.chains) if name not in wanted.chains]
    dropped = tuple(name for name in dead if name not in found.referenced)
    # Somebody else's rule keeps the chain alive: emptied, it does no more than return.
    written.update({name: () for name in dead if name in found.referenced and found.chains[name]})
    unhooked: list[tuple[str, str]] = []
    hooked: list[tuple[str, int, str]] = []
    passed: list[tuple[str, str]] = []
    for built_in in sorted({*found.jumps, *wanted.jumps}):
        jumps, target = found.jumps.get(built_in, ()), wanted.jumps.get(built_in)
        place = wanted.place(found, built_in)
        if jumps == ((place, target),) or not (jumps or target):
            continue
        unhooked += [(built_in, chain) for _, chain in jumps]
        if target:
            hooked.append((built_in, place, target))
            # Ours counts in the places, and is not among those ahead.
            before = jumps[0][0] - 1 if jumps else None
            others = found.ahead.get(built_in, ())[place - 1 : before]
            passed += [(built_in, other.target) for other in others]
    new = frozenset(written.keys() - found.chains.keys())
    replaced = {name: found.chains[name] for name in (*written, *dropped) if name not in new}
    return Change(
        written,
        dropped,
        tuple(unhooked),
        tuple(hooked),
        new,
        replaced,
        passed=tuple(passed),
        table=wanted.table,
    )


def differing(change: Change) -> Iterator[str]:
    """Each rule, chain and jump that `change` removes or adds, for people."""
    for name, rules in change.written.items():
        before = change.replaced.get(name, ())
        if name in change.new:
            yield f"+ chain {name}"
        wanted, there = frozenset(rules), frozenset(before)
        yield from (f"- {name} {rule}" for rule in before if rule not in wanted)
        yield from (f"+ {name} {rule}" for rule in rules if rule not in there)
    yield from (f"- chain {name}" for name in change.dropped)
    yield from (f"- {built_in} -j {name}" for built_in, name in change.unhooked)
    yield from (
        f"+ {built_in} -j {name} as rule {place}" for built_in, place, name in change.hooked
    )


def applied(found: Found, wanted: Ruleset) -> Found:
    """What the table holds once the difference between `found` and `wanted` is applied."""
    kept = dict.fromkeys(found.referenced & (found.chains.keys() - wanted.chains.keys()), ())
    jumps = {
        built_in: ((wanted.place(found, built_in), chain),)
        for built_in, chain in wanted.jumps.items()
    }
    return replace(found, chains={**kept, **wanted.chains}, jumps=jumps)


def drift(left: Found, found: Found, wanted: Ruleset) -> tuple[str, ...]:
    """What became of a table that was `left` so and is `found` so; nothing where it is the same.

    That somebody came whom `wanted` gives way to is nothing either.
    """
    if (left.chains or left.jumps) and not (found.chains or found.jumps):
        return ("TableFlushed",)
    seen = set()
    for name in left.chains.keys() | found.chains.keys():
        before, now = left.chains.get(name), found.chains.get(name)
        if now is None:
            seen.add("ChainMissing")
        elif before is None:
            seen.add("ChainAdded")
        elif before is not now and before != now:
            seen.add("ChainChanged" if now else "ChainFlushed")
    for built_in in left.jumps.keys() | found.jumps.keys():
        there, known = found.jumps.get(built_in, ()), left.jumps.get(built_in, ())
        if (there, found.ahead) == (known, left.ahead):
            continue
        if {target for _, target in known} - {target for _, target in there}:
            seen.add("JumpMissing")
        elif len(there) > 1:
            seen.add("JumpDoubled")
        elif there and there[0][0] != wanted.place(found, built_in):
            seen.add("JumpNotFirst")
    return tuple(reason for reason in DRIFT if reason in seen)
