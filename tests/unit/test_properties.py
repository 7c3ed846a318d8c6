"""What holds for every input: the pure core against generated tables, Services and bytes."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ipvs_node_agent.apiserver.bodies import BrokenList, read_list
from ipvs_node_agent.apiserver.reading import UnknownObject, read_node
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family, Network, intersection
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Found, Ruleset, applied, difference
from ipvs_node_agent.nat.saveformat import parse_save, restore_input
from ipvs_node_agent.rules.planner import plan
from tests.support.cluster import POD_CIDRS, node
from tests.support.examples import examples
from tests.support.faketable import BUILT_IN, FakeTable
from tests.support.rawobjects import configs, json_value, nodes, read_services, services

many = examples(200)
some = examples(100)


# Two states of a table, and the change between them.

OURS = ("IPVS_OUTPUT", "IPVS_PREROUTING", "IPVS_PREROUTING-1", "IPVS_PREROUTING-1-2", "OLD")
FOREIGN = ("KUBE-MARK-MASQ", "DOCKER", "IPVS_PREROUTING2", "IPVS")
COMMENTS = (
    "a note",
    "was -j IPVS_OUTPUT",
    "was -j ACCEPT",
    'say \\"x\\" -j OLD',
    "-A PREROUTING -j IPVS_PREROUTING",
)
owns = owner(frozenset({"IPVS_OUTPUT", "IPVS_PREROUTING", "OLD"}))

matches = st.sampled_from(
    ["", "-p tcp ", "-p udp -m udp --dport 53 ", "! -s 10.0.0.0/8 "]
    + [f'-m comment --comment "{comment}" ' for comment in COMMENTS]
)
ends = st.sampled_from(["-j ACCEPT", "-j RETURN", "-j MARK --set-xmark 0x4000/0x4000"])


def jumps_to(chains: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{how} {chain}" for chain in chains for how in ("-j", "-g")])


def rules(targets: Sequence[str], most: int = 4) -> st.SearchStrategy[list[str]]:
    """Rules of any kind that may jump to `targets`."""
    end = ends | jumps_to(targets) if targets else ends
    return st.lists(st.builds(str.__add__, matches, end), max_size=most)


@st.composite
def our_chains(draw: st.DrawFn) -> dict[str, list[str]]:
    """Some chains of ours; their jumps go to later ones and foreign ones, so there is no loop."""
    names = draw(st.lists(st.sampled_from(OURS), unique=True))
    return {
        name: draw(rules([*names[place + 1 :], "KUBE-MARK-MASQ"]))
        for place, name in enumerate(names)
    }


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A restore input that makes a table with chains of ours and of others."""
    ours = draw(our_chains())
    foreign = {name: draw(rules([*ours])) for name in FOREIGN}
    hooks = {name: draw(rules([*ours, *FOREIGN], most=6)) for name in BUILT_IN}
    lines = [f":{name} - [0:0]" for name in (*ours, *foreign)]
    for name, content in {**ours, **foreign, **hooks}.items():
        lines += [f"-A {name} {rule}" for rule in content]
    return "\n".join(["*nat", *lines, "COMMIT", ""])


@st.composite
def wishes(draw: st.DrawFn) -> Ruleset:
    """Chains that may be wanted, and jumps to some of them."""
    chains = draw(our_chains())
    hooks = draw(st.lists(st.sampled_from(BUILT_IN), unique=True)) if chains else []
    jumps = {name: draw(st.sampled_from(sorted(chains))) for name in hooks}
    return Ruleset({name: tuple(content) for name, content in chains.items()}, jumps)


def foreign_lines(table: FakeTable) -> list[str]:
    """The lines of `table` that are none of ours, in their order."""
    hook = re.compile(rf"-A (?:{'|'.join(BUILT_IN)}) -j (\S+)")
    lines = []
    for line in table.save().split("\n"):
        chain = re.match(r"(?::|-A )(\S+)", line)
        jump = hook.fullmatch(line)
        if not (chain and owns(chain[1])) and not (jump and owns(jump[1])):
            lines.append(line)
    return lines


def read(table: FakeTable) -> Found:
    return parse_save(table.save(), owns)


@many
@given(have=tables(), want=wishes())
def test_a_table_becomes_what_is_wanted_by_a_write_of_what_differs(
    have: str, want: Ruleset
) -> None:
    table = FakeTable(have)
    before, others = read(table), foreign_lines(table)
    text = restore_input(difference(before, want))
    table.restore(text)
    after = read(table)
    emptied = dict.fromkeys(before.referenced & before.chains.keys() - want.chains.keys(), ())
    assert after.chains == {**want.chains, **emptied}
    assert after.jumps == {name: ((1, chain),) for name, chain in want.jumps.items()}
    assert foreign_lines(table) == others
    assert after == applied(before, want)
    assert not difference(after, want)
    same = {name for name, rules in want.chains.items() if before.chains.get(name) == rules}
    assert not same & set(re.findall(r"^(?::|-[AXI] )(\S+)", text, re.MULTILINE))


@some
@given(text=st.text())
def test_a_table_is_read_whatever_it_says(text: str) -> None:
    assert isinstance(parse_save(text, owns), Found)
    assert isinstance(parse_save(f":OLD - [0:0]\n-A OLD {text}\n-A OUTPUT {text}", owns), Found)


# Raw objects.

NODE = read_node(node(*POD_CIDRS))


def snapshot(raw: Sequence[Any]) -> Snapshot:
    return Snapshot(read_services(raw), NODE)


@many
@given(raw=json_value | services | nodes)
def test_whatever_json_comes_is_read_or_refused(raw: Any) -> None:
    problems = [each for service in read_services([raw]).values() for each in service.problems]
    with contextlib.suppress(UnknownObject):
        problems += read_node(raw).problems
    assert all(str(problem).isprintable() for problem in problems)


IP, PREFIX = r"[0-9a-f.:]+", r"[0-9a-f.:]+/\d+"
KEY = r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*"
PORTS = r"(?:-p (tcp|udp|sctp) -m \1 --dport \d+(?::\d+)? )?"
END = rf"-j (?:KUBE-MARK-MASQ|DNAT --to-destination {IP})"
LINE = re.compile(
    r"\*nat|COMMIT|:IPVS_(?:PREROUTING|OUTPUT) - \[0:0\]"
    r"|-I PREROUTING 1 -j IPVS_PREROUTING|-I OUTPUT 1 -j IPVS_OUTPUT"
    rf'|-A IPVS_PREROUTING -s {PREFIX} -d {PREFIX} {PORTS}-m comment --comment "{KEY}" {END}'
    rf'|-A IPVS_OUTPUT -d {PREFIX} {PORTS.replace("1", "2")}-m comment --comment "{KEY}"'
    rf" -m addrtype --src-type LOCAL {END}"
)


@many
@given(
    raw=st.lists(services, min_size=1, max_size=4), config=configs, family=st.sampled_from(FAMILIES)
)
def test_nothing_but_well_formed_rules_is_rendered(
    raw: list[Any], config: Config, family: Family
) -> None:
    planned = plan(config, snapshot(raw), family)
    rendered = restore_input(difference(Found(), planned.ruleset))
    for line in rendered.removesuffix("\n").split("\n"):
        assert LINE.fullmatch(line), line
    table = FakeTable("*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n")
    table.restore(rendered)
    found = parse_save(table.save(), owner(frozenset(planned.ruleset.chains)))
    assert not difference(found, planned.ruleset)


@many
@given(
    raw=st.lists(services, min_size=2, max_size=5),
    config=configs,
    family=st.sampled_from(FAMILIES),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_services_does_not_matter(
    raw: list[Any], config: Config, family: Family, shuffle: Any
) -> None:
    found = list(read_services(raw).items())
    wanted = plan(config, Snapshot(dict(found), NODE), family)
    assert plan(config, Snapshot(dict(found), NODE), family) == wanted
    shuffle.shuffle(found)
    assert plan(config, Snapshot(dict(found), NODE), family) == wanted


# Lists from the wire.


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` in pieces, cut at `places`, some of them empty."""
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(ends, ends[1:])]


def collect(chunks: Sequence[bytes]) -> tuple[list[Any], Any]:
    items: list[Any] = []
    return items, read_list(chunks, items.append)


places = st.lists(st.integers(0, 10_000), max_size=20)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@many
@given(
    items=st.lists(any_json, max_size=5),
    others=st.dictionaries(st.text(max_size=3) | st.just("metadata"), any_json, max_size=3),
    first=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    places=places,
)
def test_a_list_is_what_the_json_module_reads(
    items: list[Any],
    others: dict[str, Any],
    first: bool,
    indent: int | None,
    ascii_only: bool,
    places: list[int],
) -> None:
    assume("items" not in others)
    document = {"items": items, **others} if first else {**others, "items": items}
    encoded = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    chunks = cut(encoded.encode(), places)
    assert collect(chunks) == (items, others.get("metadata", {}))


@many
@given(
    data=st.binary(max_size=40)
    | st.text('{}[]:,"\\ \n0123eE.+-metadatisnulrf', max_size=40).map(str.encode)
    | st.text('{}[]:,"0 1', max_size=20).map(lambda end: b'{"items":[' + end.encode()),
    places=places,
)
def test_whatever_bytes_come_a_list_is_read_or_broken(data: bytes, places: list[int]) -> None:
    with contextlib.suppress(BrokenList):
        collect(cut(data, places))


@many
@given(items=st.lists(any_json, max_size=4), length=st.integers(0, 10_000), places=places)
def test_a_list_that_is_cut_off_is_broken(items: list[Any], length: int, places: list[int]) -> None:
    data = json.dumps({"items": items}).encode()
    with pytest.raises(BrokenList):
        collect(cut(data[: length % len(data)], places))


# Addresses.


def prefixes(family: Family) -> st.SearchStrategy[Network]:
    """Prefixes of a small part of the address space, so that they often overlap."""
    base, kind = (
        ("10.0.0.", ipaddress.IPv4Network) if family is IPV4 else ("fd00::", ipaddress.IPv6Network)
    )

    def prefix(offset: int, bits: int) -> Network:
        return kind(f"{base}{offset}/{family.bits - bits}", strict=False)

    return st.builds(prefix, st.integers(0, 9), st.integers(0, 4))


pairs = st.sampled_from(FAMILIES).flatmap(
    lambda family: st.tuples(*[st.lists(prefixes(family), max_size=6)] * 2)
)


@many
@given(pair=pairs)
def test_an_intersection_holds_what_is_in_both(pair: tuple[list[Network], list[Network]]) -> None:
    def members(networks: Sequence[Network]) -> set[Any]:
        return {address for network in networks for address in network}

    left, right = pair
    common = intersection(left, right)
    assert members(common) == members(left) & members(right)
    assert sum(network.num_addresses for network in common) == len(members(common))
    assert list(common) == sorted(common, key=lambda network: int(network.network_address))
    assert common == intersection(right, left)
