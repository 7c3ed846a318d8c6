"""Many destinations in short chains: a tree of chains that a packet descends by address prefix.

1. From the chain of the configuration a packet follows the one jump whose prefix holds its
   destination (`-d 10.19.16.0/22 -j IPVS_PREROUTING-0a131000/22`), and so on, at most four jumps
   a chain, two bits of the address each; bits that all destinations share take no chain.
2. A chain that is left with few rules holds them. The packet that matches one ends there; any
   other comes back, past the rest of the jumps, and goes on as if it had never been here.
3. An address that Services share, with more ports than a chain may hold, is told apart further
   by protocol and by port range, in the same way. Consecutive ports of one Service are one rule in
   each chain that has several of them.

The shape follows from the destinations alone: whether a prefix is split depends on what lies inside
it and on nothing else, so a change elsewhere moves and renames nothing. Between two calls of
`settle` a chain may be too long or too short, and one of jumps may hold the rules of a destination
that none of them leads to yet: so one change writes one chain in each tree for each address, and
splitting waits for a quiet moment.

Destinations are the numbers of `rules.destinations`.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Address, Family, show_address
from ipvs_node_agent.nat.chains import stem
from ipvs_node_agent.nat.packed import Packed, together
from ipvs_node_agent.nat.ruletext import Rules, match, rule
from ipvs_node_agent.rules.destinations import (
    LOCAL_BITS,
    PORT_BITS,
    PROTOCOL_BITS,
    PROTOCOLS,
    Entries,
    Entry,
    listed,
    shown_ports,
)

# Bits that one chain tells apart. Rules walked for each bit: 2 with one or two, 2.7 with three.
_STRIDE = 2
# Chains below the one of the configuration that a packet may descend. nftables follows 16 jumps
# (NFT_JUMP_STACK_SIZE) and refuses a table with more; one leads to us, one to the mark chain, and
# two are spare.
_DEEPEST = 12


class Prefix(NamedTuple):
    """The destinations whose first `length` bits are those of `start`."""

    start: int
    length: int


class _Node:
    """A chain in each tree. A leaf has only entries; another node has some that await `settle`."""

    __slots__ = ("children", "entries", "is_leaf", "loose", "prefix", "tag", "weight")

    def __init__(
        self, prefix: Prefix, entries: Entries, children: list[_Node] | None = None
    ) -> None:
        self.prefix, self.entries = prefix, entries
        self.is_leaf, self.children = children is None, children or []
        self.tag = ""
        # Whether it, or something below, may have another shape than the settled one.
        self.loose = False
        self.weight = 0
        self.weigh()

    def weigh(self) -> None:
        """Adds up what is in it and in its children."""
        own = sum(entry.length for entry in self.entries.values() if not entry.continues)
        self.weight = own + sum(child.weight for child in self.children)

    @property
    def length(self) -> int:
        """How many plain Services its rules would be as long as, if it were a leaf."""
        first = self._first()
        return self.weight + (first[1].length if first and first[1].continues else 0)

    def _first(self) -> tuple[int, Entry] | None:
        below = (child._first() for child in self.children)
        found = [*list(self.entries.items()), *itertools.islice(filter(None, below), 1)]
        return min(found, default=None)

    def nodes(self) -> Iterator[_Node]:
        """The node itself and all below it, in the order of their prefixes."""
        yield self
        for child in self.children:
            yield from child.nodes()


class Tree:
    """The chains of one family, below the chain for pods and below the one for the host.

    `limit` is how many plain Services a chain may hold. Not safe to use from several threads.
    """

    def __init__(self, family: Family, names: tuple[str, str], limit: int) -> None:
        self._family, self._names, self._limit = family, names, limit
        self._stems = tuple(stem(name) for name in names)
        self._bits = family.bits
        self._width = family.bits + LOCAL_BITS
        self._chains: dict[str, Rules] = {}
        self._tags: dict[str, Prefix] = {}
        self._root = _Node(Prefix(0, 0), {}, [])

    @property
    def loose(self) -> bool:
        """Whether `settle` might have something to do."""
        return self._root.loose

    @property
    def weight(self) -> int:
        """How many plain Services all that it holds is as long as."""
        return self._root.weight

    def fill(self, entries: Entries) -> None:
        """Holds `entries`, and nothing else, from now on."""
        self._chains.clear()
        self._tags.clear()
        self._root = _Node(self._common(entries), {}, self._branches(entries, 0))
        for child in self._root.children:
            self._draw_all(child)

    def place(self, address: Address, entries: Mapping[int, Entry]) -> None:
        """Lets `address` have `entries`, all of which are destinations at it, and no others."""
        whole = Prefix(int(address) << LOCAL_BITS, self._bits)
        path = [self._root]
        while inner := self._towards(path[-1], whole):
            path.append(inner)
        node = path[-1]
        own = [c for c in node.children if self._holds(whole, c.prefix.start)]
        others = {k: e for k, e in node.entries.items() if not self._holds(whole, k)}
        if own:
            # Chains for this address alone, which many share: only those that differ are written.
            node.entries = others
            self._replace(node, len(path), own, whole, dict(entries))
        else:
            node.entries = {**others, **entries}
        self._draw(node)
        for each in reversed(path):
            each.loose = True
            each.weigh()

    def settle(self) -> None:
        """Splits and joins chains so that the tree has the shape that its destinations ask for."""
        root = self._root
        if not root.loose:
            return
        spread = self._spread(root)
        if len(spread) < 2 or self._common(spread) != root.prefix or not self._is_split(root):
            # Everything is elsewhere than before, and the first chain tells other bits apart.
            self.fill(self._gathered([root]))
        else:
            self._mend(root, 0)

    def chains(self, flat: bool) -> dict[str, Rules]:
        """All chains. With `flat`, the two of the configuration hold every rule themselves."""
        if not flat:
            return {**self._chains, **dict(zip(self._names, self._rules(self._root)))}
        return dict(zip(self._names, map(Packed, listed(self._gathered([self._root])))))

    # Changes of single addresses

    def _towards(self, node: _Node, whole: Prefix) -> _Node | None:
        """The child of `node` that leads to the address `whole`, and to others as well."""
        for child in node.children:
            if child.prefix.length < self._bits and self._holds(child.prefix, whole.start):
                return child
        return None

    def _replace(
        self, node: _Node, depth: int, own: list[_Node], whole: Prefix, entries: Entries
    ) -> None:
        """Puts `entries` in the place of `own`, children of `node` for the address `whole`."""
        for child in own:
            self._forget(child)
        others = [child for child in node.children if child not in own]
        new = []
        if entries:
            # The slot that the address has where nothing else is near: mostly that of `own`. One
            # that leads to an entry of the node's own as well would leave its rules in two places.
            length = node.prefix.length + _STRIDE
            for start in (*(child.prefix.start for child in others), *node.entries):
                shared = self._width - (start ^ whole.start).bit_length()
                length = max(length, shared - shared % _STRIDE + _STRIDE)
            slot = self._cut(whole.start, min(length, self._bits))
            new = [self._build(slot, entries, depth)]
            new[0].loose = True
            self._draw_all(new[0])
        node.children = sorted(others + new, key=lambda child: child.prefix)

    # The settled shape

    def _build(self, slot: Prefix, entries: Entries, depth: int) -> _Node:
        """The node at `depth` for all `entries`, which lie inside `slot`."""
        leaf = _Node(slot, entries)
        if leaf.length <= self._limit or len(entries) == 1:
            return leaf
        return _Node(self._common(entries), {}, self._branches(entries, depth))

    def _branches(self, entries: Entries, depth: int) -> list[_Node]:
        """The children of a node at `depth`, which has all `entries` below it.

        The first bits that these do not share tell the children apart. The deepest node has all
        leaves below it for its children, however many they are.
        """
        if len(entries) == 1:
            (only,) = entries
            return [self._build(self._cut(only, self._bits), entries, depth + 1)]
        length = self._common(entries).length + _STRIDE
        low = self._width - length
        parts: dict[int, Entries] = {}
        for key in sorted(entries):
            parts.setdefault(key >> low, {})[key] = entries[key]
        children = [
            self._build(Prefix(first << low, length), part, depth + 1)
            for first, part in parts.items()
        ]
        if depth + 1 < _DEEPEST:
            return children
        return [node for child in children for node in child.nodes() if node.is_leaf]

    def _mend(self, node: _Node, depth: int) -> None:
        """Gives everything below `node`, which is settled itself, its settled shape."""
        if not node.loose:
            return
        node.loose = False
        if node.is_leaf:
            return
        before, waiting = node.children, node.entries
        if depth + 1 == _DEEPEST:
            entries = self._gathered([node])
            for child in before:
                self._forget(child)
            node.children = self._branches(entries, depth)
            for child in node.children:
                self._draw_all(child)
        else:
            node.children = list(self._mended(node, depth + 1))
        node.entries = {}
        if waiting or node.children != before:
            self._draw(node)

    def _mended(self, node: _Node, depth: int) -> Iterator[_Node]:
        """The settled children of `node`, which are at `depth`, with its own entries in them."""
        length = node.prefix.length + _STRIDE
        groups: dict[Prefix, tuple[list[_Node], Entries]] = {}
        for child in node.children:
            groups.setdefault(self._cut(child.prefix.start, length), ([], {}))[0].append(child)
        for key, entry in node.entries.items():
            groups.setdefault(self._cut(key, length), ([], {}))[1][key] = entry
        for slot, (group, waiting) in sorted(groups.items()):
            if not waiting and len(group) == 1 and self._is_settled(group[0], slot):
                self._mend(group[0], depth)
                yield group[0]
                continue
            entries = {**self._gathered(group), **waiting}
            for child in group:
                self._forget(child)
            if entries:
                made = self._build(slot, entries, depth)
                self._draw_all(made)
                yield made

    def _is_settled(self, node: _Node, slot: Prefix) -> bool:
        """Whether `node` itself, if not all below it, is as `_build` would make it for `slot`."""
        if not node.loose:
            return True
        if node.is_leaf:
            few = node.length <= self._limit or len(node.entries) == 1
            return bool(node.entries) and few and node.prefix == slot
        return (
            node.length > self._limit
            and node.prefix == self._common(self._spread(node))
            and self._is_split(node)
        )

    def _is_split(self, node: _Node) -> bool:
        """Whether each child of `node` has a part of what it tells apart, and none has it all."""
        longer = node.prefix.length + _STRIDE
        return all(child.prefix.length >= longer for child in node.children)

    def _spread(self, node: _Node) -> list[int]:
        """Numbers that share as many bits as all destinations below `node` do."""
        found = list(node.entries)
        for child in node.children:
            if child.is_leaf:
                found += child.entries
            elif child.weight:
                found += (child.prefix.start, self._last(child.prefix))
        return found

    def _gathered(self, nodes: Iterable[_Node]) -> Entries:
        found: Entries = {}
        for top in nodes:
            for node in top.nodes():
                found.update(node.entries)
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
        for each in node.nodes():
            each.tag = each.tag or self._new_tag(each.prefix)
        for each in node.nodes():
            self._draw(each)

    def _draw(self, node: _Node) -> None:
        # The root is drawn when it is asked for, as it has other names.
        if node is not self._root:
            for base, rules in zip(self._stems, self._rules(node)):
                self._chains[f"{base}-{node.tag}"] = rules

    def _forget(self, node: _Node) -> None:
        for each in node.nodes():
            del self._tags[each.tag]
            for base in self._stems:
                del self._chains[f"{base}-{each.tag}"]

    def _rules(self, node: _Node) -> tuple[Rules, Rules]:
        """Those of `node` in the tree for pods, and those in the one for the host."""
        jumps = [(self._match(child.prefix), child.tag) for child in node.children]
        pods, hosts = (
            Packed([together(rule(match, f"{base}-{tag}") for match, tag in jumps), *texts])
            for base, texts in zip(self._stems, listed(node.entries))
        )
        return pods, hosts

    def _match(self, prefix: Prefix) -> str:
        """What a rule asks for that is about the destinations in `prefix`."""
        number = prefix.start >> LOCAL_BITS
        kind = ipaddress.IPv4Address if self._family.version == 4 else ipaddress.IPv6Address
        address = f"{show_address(kind(number))}/{min(prefix.length, self._bits)}"
        if prefix.length <= self._bits:
            return match(address)
        protocol = self._protocol(prefix)
        if prefix.length <= self._bits + PROTOCOL_BITS:
            return match(address, protocol=protocol)
        ports = shown_ports(prefix.start, self._last(prefix))
        return match(address, protocol=protocol, ports=ports)

    def _protocol(self, prefix: Prefix) -> str:
        return PROTOCOLS[prefix.start >> PORT_BITS & (1 << PROTOCOL_BITS) - 1]

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
        address = prefix.start >> LOCAL_BITS
        if prefix.length <= self._bits:
            length = f"/{prefix.length}"
            if self._family.version == 4:
                return f"{address:08x}{length}"
        else:
            protocol = self._protocol(prefix)
            length = f"/{protocol[0]}{prefix.length - self._bits - PROTOCOL_BITS}"
        digest = hashlib.blake2b(repr((*prefix, salt)).encode(), digest_size=5).digest()
        return base64.b32encode(digest).decode().lower() + length
