"""The text of a table: what iptables-save prints, and what iptables-restore is given.

Of other owners' rules only their position relative to our jumps is read, whether they refer to a
chain of ours, and what those may do that stand before our jumps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Callable

from ipvs_node_agent.nat.ahead import Ahead, Others
from ipvs_node_agent.nat.hooks import hooks
from ipvs_node_agent.nat.packed import Packed, together
from ipvs_node_agent.nat.ruleset import Change, Found
from ipvs_node_agent.nat.ruletext import OPENED, QUOTED, Rules, targets

_CHAIN_LINE = re.compile(r":(\S+) ")


def parse_save(
    text: str, owns: Callable[[str], bool], expected: Mapping[str, Rules] = MappingProxyType({})
) -> Found:
    """What `text`, printed by iptables-save for one table, holds of ours.

    Chains that are as `expected` are the very same objects, and take no memory of their own.
    """
    chains: dict[str, Rules] = {}
    built_in: dict[str, list[str]] = {}
    foreign: set[str] = set()
    referenced: set[str] = set()
    filled: set[str] = set()
    # The rules of one chain are printed in a row, and are kept in less memory than they are read.
    for chain, run in groupby(lines(text), _chain_of):
        if chain in chains:
            read = Packed([together([*chains[chain], *_rules(run, chain)])])
            chains[chain] = expected[chain] if expected.get(chain) == read else read
        elif chain in built_in:
            built_in[chain] += _rules(run, chain)
        elif chain:
            filled.add(chain)
            for rule in _rules(run, chain):
                referenced |= targets(rule) & chains.keys()
        else:
            for declared in filter(None, map(_CHAIN_LINE.match, run)):
                name = declared[1]
                if owns(name):
                    chains[name] = Packed(())
                # A chain of a user's own has no policy, and iptables-save prints a dash for it.
                elif declared.string.startswith(f":{name} - "):
                    foreign.add(name)
                else:
                    built_in[name] = []
    hooked = {name: hooks(rules, chains.keys(), foreign) for name, rules in built_in.items()}
    return Found(
        chains=chains,
        jumps={name: says.jumps for name, says in hooked.items() if says.jumps},
        ahead=_ahead(text, {name: says.leading for name, says in hooked.items()}, foreign),
        foreign=frozenset(foreign),
        referenced=frozenset(referenced).union(*(says.referenced for says in hooked.values())),
        filled=frozenset(foreign & filled),
    )


def _chain_of(line: str) -> str:
    """The chain of a line with a rule; empty for any other line."""
    return line[3:].partition(" ")[0] if line.startswith("-A ") else ""


def _rules(lines: Iterable[str], chain: str) -> Iterator[str]:
    """The rules in lines that append to `chain`."""
    return (line[len(f"-A {chain} ") :] for line in lines)


def parse_rules(text: str) -> dict[str, Rules]:
    """The chains in `text`, printed by `iptables -S`, and their rules as iptables-save has them."""
    chains: dict[str, list[str]] = {}
    for line in lines(text):
        command, _, rest = line.partition(" ")
        name, _, rule = rest.partition(" ")
        if command in ("-N", "-P"):
            chains[name] = []
        elif command == "-A" and name in chains:
            chains[name].append(rule)
    return {name: tuple(rules) for name, rules in chains.items()}


def _ahead(
    text: str, first: Mapping[str, Sequence[tuple[str, str]]], foreign: set[str]
) -> dict[str, tuple[Ahead, ...]]:
    """The jumps that built-in chains begin with, judged by the foreign chains in `text`."""
    begin = {name: found for name, found in first.items() if found}
    if not begin:
        return {}
    chains: dict[str, list[str]] = {name: [] for name in foreign}
    for line in lines(text):
        chain, _, rule = line[3:].partition(" ")
        if line.startswith("-A ") and chain in chains:
            chains[chain].append(rule)
    others = Others(chains)
    return {
        name: tuple(others.judged(rule, target) for rule, target in found)
        for name, found in begin.items()
    }


def lines(text: str) -> Iterator[str]:
    """The lines of a saved table; a line break inside quotes, as in a comment, ends none."""
    pending, start = "", 0
    # Not split at once, as forty thousand lines would all be in memory twice.
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = pending + text[start:end]
        start = end + 1
        if (
            '"' in line
            and (line.count('"') % 2 or "\\" in line)
            and OPENED.search(QUOTED.sub("", line))
        ):
            pending = line + "\n"
        else:
            pending = ""
            yield line


def restore_input(change: Change) -> str:
    """`change` as one input for `iptables-restore --noflush`, which applies it as one.

    Every chain is declared, and so emptied, before a rule jumps to it, but for those of which some
    rules stay; a dropped one is emptied and unhooked before it goes.
    """
    lines = [f"*{change.table}"]
    leaves = change.leaves()
    for name in leaves:
        lines.append(f":{name} - [0:0]")
        lines += _appended(name, change.written[name])
    others = sorted(change.written.keys() - {*leaves} - change.edits.keys())
    lines += [f":{name} - [0:0]" for name in sorted({*others, *change.dropped})]
    lines += [f"-D {built_in} -j {name}" for built_in, name in change.unhooked]
    for name in others:
        lines += _appended(name, change.written[name])
    for name, edit in change.edits.items():
        lines += edit.commands(name)
    for name, rules in change.appended.items():
        lines += _appended(name, rules)
    lines += [f"-I {built_in} {place} -j {name}" for built_in, place, name in change.hooked]
    lines += [f"-X {name}" for name in change.dropped]
    return "\n".join([*lines, "COMMIT", ""])


def _appended(chain: str, rules: Rules) -> Iterator[str]:
    return (f"-A {chain} {rule}" for rule in rules)
