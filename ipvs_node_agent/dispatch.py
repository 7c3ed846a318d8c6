"""Many destinations in short chains: a tree of chains that a packet descends by address prefix.

1. From the chain of the configuration a packet follows the one jump whose prefix holds its
   destination (`-d 10.19.16.0/22 -j IPVS_PREROUTING-0a131000/22`), and so on, at most four jumps
   a chain, two bits of the address each; bits that all destinations share take no chain.
2. A chain that is left with few rules holds them. The packet that matches one ends there; any
   other comes back, past the rest of the jumps, and goes on as if it had never been here.
3. An address that Services share, with more ports than a chain may hold, is told apart further
   by protocol and by port range, in the same way.

The shape follows from the destinations alone: whether a prefix is split depends on what lies inside
it and on nothing else, so a change elsewhere moves and renames nothing. Between two calls of
`settle` chains may be a little too long or too short, so that one change writes one chain in each
tree, and splitting waits for a quiet moment.

Destinations are numbers: the address, two bits of protocol, sixteen of port (zero for any).
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ipvs_node_agent.addresses import Address, Family, show_address
from ipvs_node_agent.chainnames import stem
from ipvs_node_agent.model import Port
from ipvs_node_agent.ruleset import Rules

_PROTOCOLS = ("sctp", "tcp", "udp")
_PROTOCOL_BITS, _PORT_BITS = 2, 16
_LOCAL_BITS = _PROTOCOL_BITS + _PORT_BITS
# Bits that one chain tells apart. Rules walked for each bit: 2 with one or two, 2.7 with three.
_STRIDE = 2
# Chains below the one of the configuration that a packet may descend. nftables follows 16 jumps
# (NFT_JUMP_STACK_SIZE) and refuses a table with more; one leads to us, one to the mark chain, and
# two are spare.
_DEEPEST = 12


class Entry(NamedTuple):
    """What one destination has in the chains of pods and of the host, and for which Service."""

    pods: Rules
    hosts: Rules
    service: str

    @property
    def weight(self) -> int:
        """How many plain Services it is as long as; one has a mark and a DNAT."""
        return max(1, (max(len(self.pods), len(self.hosts)) + 1) // 2)


class Prefix(NamedTuple):
    """The destinations whose first `length` bits are those of `start`."""

    start: int
    length: int


Entries = dict[int, Entry]


class _Node:
    """A chain in each tree: a leaf has entries, another node has children."""

    __slots__ = ("children", "entries", "loose", "prefix", "tag", "weight")

    def __init__(
        self, prefix: Prefix, entries: Entries | None, children: list[_Node] | None = None
    ) -> None:
        self.prefix, self.entries, self.children = prefix, entries, children
        self.tag = ""
        # Whether it, or something below, may have another shape than the settled one.
        self.loose = False
        if entries is not None:
            self.weight = sum(entry.weight for entry in entries.values())
        else:
            self.weight = sum(child.weight for child in children or ())

    def leaves(self) -> Iterator[_Node]:
        """The leaves below, or the node itself, in the order of their prefixes."""
        if self.children is None:
            yield self
        for child in self.children or ():
            yield from child.leaves()


def destination(address: Address, port: Port | None) -> int:
    """The number of a destination; `port` is None for every port."""
    number = int(address) << _LOCAL_BITS
    if port is None:
        return number
    return number | _PROTOCOLS.index(port.protocol) << _PORT_BITS | port.number


class Tree:
    """The chains of one family, below the chain for pods and below the one for the host.

    `limit` is how many plain Services a chain may hold. Not safe to use from several threads.
    """

    def __init__(self, family: Family, names: tuple[str, str], limit: int) -> None:
        self._family, self._names, self._limit = family, names, limit
        self._stems = tuple(stem(name) for name in names)
        self._bits = family.bits
        self._width = family.bits + _LOCAL_BITS
        self._chains: dict[str, Rules] = {}
        self._tags: dict[str, Prefix] = {}
        self._root = _Node(Prefix(0, 0), None, [])

    @property
    def loose(self) -> bool:
        """Whether `settle` might have something to do."""
        return self._root.loose

    def fill(self, entries: Entries) -> None:
        """Holds `entries`, and nothing else, from now on."""
        self._chains.clear()
        self._tags.clear()
        self._root = _Node(self._common(entries), None, self._branches(entries, 0))
        for child in self._root.children or ():
            self._draw_all(child)

    def place(self, address: Address, entries: Mapping[int, Entry]) -> None:
        """Lets `address` have `entries`, all of which are destinations at it, and no others."""
        whole = Prefix(int(address) << _LOCAL_BITS, self._bits)
        path = [self._root]
        while True:
            node = path[-1]
            if node.children is None:
                self._refill(node, whole, entries)
                break
            covering = (c for c in node.children if c.prefix.length < self._bits)
            child = next((c for c in covering if self._holds(c.prefix, whole.start)), None)
            if child is None:
                self._replace(node, len(path), whole, dict(entries))
                break
            path.append(child)
        for node in reversed(path):
            node.loose = True
            if node.children is not None:
                node.weight = sum(child.weight for child in node.children)

    def settle(self) -> None:
        """Splits and joins chains so that the tree has the shape that its destinations ask for."""
        root = self._root
        if not root.loose:
            return
        spread = self._spread(root)
        slots = root.prefix.length + _STRIDE
        wide = any(child.prefix.length < slots for child in root.children or ())
        if wide or len(spread) < 2 or self._common(spread) != root.prefix:
            # Everything is elsewhere than before, and the first chain tells other bits apart.
            self.fill(self._gathered([root]))
        else:
            self._mend(root, 0)

    def chains(self, flat: bool) -> dict[str, Rules]:
        """All chains. With `flat`, the two of the configuration hold every rule themselves."""
        if not flat:
            tops = {name: self._jumps(self._root, which) for which, name in enumerate(self._names)}
            return {**self._chains, **tops}
        entries = self._gathered([self._root])
        return {name: _listed(entries, which) for which, name in enumerate(self._names)}

    # Changes of single addresses

    def _refill(self, leaf: _Node, whole: Prefix, entries: Mapping[int, Entry]) -> None:
        """Replaces what `leaf` has at the address `whole`."""
        others = {k: e for k, e in (leaf.entries or {}).items() if not self._holds(whole, k)}
        leaf.entries = {**others, **entries}
        leaf.weight = sum(entry.weight for entry in leaf.entries.values())
        self._draw(leaf)

    def _replace(self, node: _Node, depth: int, whole: Prefix, entries: Entries) -> None:
        """Replaces the children of `node`, at `depth`, that are for the address `whole` alone."""
        children = node.children or []
        old = [
            c
            for c in children
            if self._holds(whole, c.prefix.start) and c.prefix.length >= whole.length
        ]
        others = [c for c in children if c not in old]
        for child in old:
            self._forget(child)
        new = [self._build(self._gap(node, others, whole), entries, depth)] if entries else []
        for child in new:
            child.loose = True
            self._draw_all(child)
        node.children = sorted(others + new, key=lambda c: c.prefix)
        if node is not self._root:
            self._draw(node)

    def _gap(self, node: _Node, others: Iterable[_Node], whole: Prefix) -> Prefix:
        """The widest prefix around an address that has nothing of `others`, children of `node`."""
        length = node.prefix.length + _STRIDE if node is not self._root else _STRIDE
        for child in others:
            shared = self._width - (child.prefix.start ^ whole.start).bit_length()
            length = max(length, shared - shared % _STRIDE + _STRIDE)
        return self._cut(whole.start, min(length, self._bits))

    # The settled shape

    def _build(self, slot: Prefix, entries: Entries, depth: int) -> _Node:
        """The node at `depth` for all `entries`, which lie inside `slot`."""
        leaf = _Node(slot, entries)
        if leaf.weight <= self._limit or len(entries) == 1:
            return leaf
        return _Node(self._common(entries), None, self._branches(entries, depth))

    def _branches(self, entries: Entries, depth: int) -> list[_Node]:
        """The children of a node at `depth`, which has all `entries` below it.

        The first bits that these do not share tell the children apart. The deepest node has all
        leaves below it for its children, however many they are.
        """
        if len(entries) == 1:
            (only,) = entries
            return [self._build(self._cut(only, self._bits), entries, depth + 1)]
        length = self._common(entries).length + _STRIDE
        parts: dict[Prefix, Entries] = {}
        for key in sorted(entries):
            parts.setdefault(self._cut(key, length), {})[key] = entries[key]
        children = [self._build(slot, part, depth + 1) for slot, part in parts.items()]
        if depth + 1 < _DEEPEST:
            return children
        return [leaf for child in children for leaf in child.leaves()]

    def _mend(self, node: _Node, depth: int) -> None:
        """Gives everything below `node`, which is settled itself, its settled shape."""
        if not node.loose:
            return
        node.loose = False
        if node.children is None:
            return
        if depth + 1 == _DEEPEST:
            self._regrow(node, depth)
            return
        length = node.prefix.length + _STRIDE
        groups: dict[Prefix, list[_Node]] = {}
        for child in node.children:
            groups.setdefault(self._cut(child.prefix.start, length), []).append(child)
        children: list[_Node] = []
        for slot, group in groups.items():
            if len(group) == 1 and (not group[0].loose or self._is_settled(group[0], slot)):
                self._mend(group[0], depth + 1)
                children += group
                continue
            entries = self._gathered(group)
            for child in group:
                self._forget(child)
            if entries:
                children.append(self._build(slot, entries, depth + 1))
                self._draw_all(children[-1])
        if children != node.children:
            node.children = children
            if node is not self._root:
                self._draw(node)

    def _regrow(self, node: _Node, depth: int) -> None:
        entries = self._gathered([node])
        for child in node.children or ():
            self._forget(child)
        node.children = self._branches(entries, depth)
        for child in node.children:
            self._draw_all(child)
        if node is not self._root:
            self._draw(node)

    def _is_settled(self, node: _Node, slot: Prefix) -> bool:
        if node.entries is not None:
            few = node.weight <= self._limit or len(node.entries) == 1
            return bool(node.entries) and few and node.prefix == slot
        return node.weight > self._limit and node.prefix == self._common(self._spread(node))

    def _spread(self, node: _Node) -> list[int]:
        """Numbers that share as many bits as all destinations below `node` do."""
        found: list[int] = []
        for child in node.children or ():
            if child.entries is not None:
                found += child.entries
            elif child.weight:
                first, last = child.prefix.start, self._last(child.prefix)
                found += (first, last)
        return found

    def _gathered(self, nodes: Iterable[_Node]) -> Entries:
        found: Entries = {}
        for node in nodes:
            for leaf in node.leaves():
                found.update(leaf.entries or {})
        return found

    # Prefixes

    def _cut(self, start: int, length: int) -> Prefix:
        low = self._width - length
        return Prefix(start >> low << low, length)

    def _holds(self, prefix: Prefix, number: int) -> bool:
        return not (number ^ prefix.start) >> (self._width - prefix.length)

    def _last(self, prefix: Prefix) -> int:
        return prefix.start | (1 << self._width - prefix.length) - 1

    def _common(self, numbers: Iterable[int]) -> Prefix:
        """The longest prefix of whole strides that all of `numbers` share."""
        known = list(numbers)
        if not known:
            return Prefix(0, 0)
        low, high = min(known), max(known)
        shared = self._width - (low ^ high).bit_length()
        return self._cut(low, min(shared - shared % _STRIDE, self._width - _STRIDE))

    # Text

    def _draw_all(self, node: _Node) -> None:
        for child in node.children or ():
            self._draw_all(child)
        self._draw(node)

    def _draw(self, node: _Node) -> None:
        if not node.tag:
            node.tag = self._new_tag(node.prefix)
        for which, base in enumerate(self._stems):
            rules = (
                self._jumps(node, which) if node.entries is None else _listed(node.entries, which)
            )
            self._chains[f"{base}-{node.tag}"] = rules

    def _forget(self, node: _Node) -> None:
        for child in node.children or ():
            self._forget(child)
        del self._tags[node.tag]
        for base in self._stems:
            del self._chains[f"{base}-{node.tag}"]

    def _jumps(self, node: _Node, which: int) -> Rules:
        base = self._stems[which]
        return tuple(
            f"{self._match(child.prefix)} -j {base}-{child.tag}" for child in node.children or ()
        )

    def _match(self, prefix: Prefix) -> str:
        """What iptables-save prints for the destinations in `prefix`."""
        address = prefix.start >> _LOCAL_BITS
        if prefix.length <= self._bits:
            return f"-d {self._show(address)}/{prefix.length}"
        protocol = _PROTOCOLS[prefix.start >> _PORT_BITS & (1 << _PROTOCOL_BITS) - 1]
        match = f"-d {self._show(address)}/{self._bits} -p {protocol}"
        if prefix.length <= self._bits + _PROTOCOL_BITS:
            return match
        mask = (1 << _PORT_BITS) - 1
        first, last = prefix.start & mask, self._last(prefix) & mask
        ports = f"{first}" if first == last else f"{first}:{last}"
        return f"{match} -m {protocol} --dport {ports}"

    def _show(self, number: int) -> str:
        if self._family.version == 4:
            return show_address(ipaddress.IPv4Address(number))
        return show_address(ipaddress.IPv6Address(number))

    def _new_tag(self, prefix: Prefix) -> str:
        """A name for `prefix` that no other one has.

        Digests that are equal can be found by trying, so the second of them is salted: two prefixes
        in one chain would be somebody else's traffic.
        """
        for salt in itertools.count():
            tag = self._tag(prefix, salt)
            if self._tags.setdefault(tag, prefix) == prefix:
                return tag
        raise AssertionError("endless")

    def _tag(self, prefix: Prefix, salt: int) -> str:
        address = prefix.start >> _LOCAL_BITS
        if prefix.length <= self._bits:
            length = f"/{prefix.length}"
            if self._family.version == 4:
                return f"{address:08x}{length}"
        else:
            protocol = _PROTOCOLS[prefix.start >> _PORT_BITS & (1 << _PROTOCOL_BITS) - 1]
            length = f"/{protocol[0]}{prefix.length - self._bits - _PROTOCOL_BITS}"
        digest = hashlib.blake2b(repr((*prefix, salt)).encode(), digest_size=5).digest()
        return base64.b32encode(digest).decode().lower() + length


def _listed(entries: Entries, which: int) -> Rules:
    """The rules of `entries` by address, and where Services share it by Service."""
    order = sorted((key >> _LOCAL_BITS, entry.service, key) for key, entry in entries.items())
    return tuple(rule for _, _, key in order for rule in entries[key][which])
