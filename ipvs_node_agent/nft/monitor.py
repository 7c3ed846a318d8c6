"""Tells whether somebody else changed an nft table, without reading the table.

The kernel tells every listener on a netlink socket what a transaction changed (what `nft monitor`
shows). Reading 40,000 rules takes half a second, listening next to nothing: kube-proxy rewrites its
own chains every thirty seconds and with every endpoint, and none of that concerns us.

Whatever cannot be told for certain (notifications lost, a message that cannot be read, a kernel
without them) counts as a change. See linux/netfilter/nf_tables.h and nfnetlink(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from ipvs_node_agent.errors import one_line

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NETLINK_DROP_MEMBERSHIP = 270, 1, 2
_NFNLGRP_NFTABLES = 7
_SUBSYSTEM = 10
_NLMSG_OVERRUN = 4
_NEWTABLE, _DELTABLE, _NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE = 0, 2, 3, 5, 6, 8
_NEWGEN, _GETGEN = 15, 16
# Of the message that ends a transaction: its number, and the process that made it.
_NUMBER, _PROCESS_ID, _PROCESS_NAME = 1, 2, 3
# Numbers are of 32 bits, and begin anew.
_NUMBERS = 1 << 32
_MOST_PROCESSES = 4
# The table that kube-proxy makes in nftables mode.
_KUBE_PROXYS = "kube-proxy"
_COUNTS = {_NEWRULE: 1, _DELRULE: -1}
# Who touched more chains than that is better off with the whole table.
_MOST_TOUCHED = 32
# The attribute that names a table, and those that name a chain, by type of message; 0 is none.
_TABLE = 1
_CHAIN = {_NEWTABLE: 0, _DELTABLE: 0, _NEWCHAIN: 3, _DELCHAIN: 3, _NEWRULE: 2, _DELRULE: 2}
_HEADER, _FAMILY_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), 4, struct.Struct("=HH")
_NLM_F_REQUEST = 1
# Asks for the number of the last transaction.
_QUESTION = _HEADER.pack(20, _SUBSYSTEM << 8 | _GETGEN, _NLM_F_REQUEST, 0, 0) + bytes(4)
_TYPE_MASK = 0x3FFF
_SO_RCVBUFFORCE = 33
# Room for what a few thousand changed rules make the kernel tell; used only while it is there.
_BUFFER = 16 << 20
_DATAGRAM = 1 << 16
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


# Names of chains; None for any that there may be.
Touched = Optional[frozenset[str]]


class Heard(NamedTuple):
    """What others changed that matters, and whether a change of ours is in effect.

    `touched` are the chains that they changed, and `by` the processes whose changes these were, as
    "NAME (pid NUMBER)".
    """

    touched: Touched = frozenset()
    committed: bool = False
    by: tuple[str, ...] = ()


class Lost(Exception):
    """Notifications were lost, or cannot be understood."""


class NftMonitor:
    """Listens for changes of one table in a network namespace, on a socket of `listen`'s there.

    `version` is that of the family, 4 or 6; `concerns` tells which chains matter. Of the chain
    `mark`, Kubernetes' that marks, only matters whether it has rules. A chain that is renamed is
    told of by its new name alone, so one by a name that was not there matters too, whoever's it is.
    `moves` is called when chains or tables of kube-proxy's come or go, as with another mode. By
    `port` the kernel knows whom it answers.
    """

    def __init__(
        self,
        listening: socket.socket,
        version: int,
        table: str,
        concerns: Callable[[str], bool],
        mark: str = "",
        moves: Callable[[], None] = lambda: None,
        port: int = 0,
    ) -> None:
        self._socket, self._family = listening, _FAMILIES[version]
        self._table, self._concerns, self._mark = table, concerns, mark
        self._moves = moves
        self._names: set[str] | None = None
        # How many rules `mark` has, and how many it was seen to have; None where that is not known.
        self._marks: int | None = None
        self._marks_seen: int | None = None
        # Of the transaction that is being told of: whether it changes anything that matters, and
        # how many rules of `mark` come or go.
        self._matters, self._balance = False, 0
        # Whether anything may have changed, so that all news are of any chain until `knows`.
        self._deaf = False
        self._touched: set[str] = set()
        # The number of the last transaction: told of, or given when it was first asked for.
        self._last: int | None = None
        # How many transactions of ours there were while it paused, less those that were left out.
        self._unheard = 0
        # What the kernel names this socket by, and whether it was asked and has not answered.
        self._port, self._asked = port, False

    def fileno(self) -> int:
        """What select(2) finds readable when there is something to hear."""
        return self._socket.fileno()

    def ask(self) -> None:
        """Has the next call of `hear` make sure that no transaction was left out.

        The kernel answers with the number of the last one, at once and behind all that it told
        before. It may be one that is still being told of, and then seems to be left out.
        """
        self._asked = True
        with suppress(OSError):
            self._socket.send(_QUESTION)

    def pause(self) -> None:
        """Is told of nothing until `resume`.

        The kernel makes a message for each rule that somebody writes only where anybody listens.
        """
        # Where it listens on, it will have heard too much, and look.
        with suppress(OSError):
            self._member(_NETLINK_DROP_MEMBERSHIP)

    def resume(self, transactions: int) -> None:
        """Listens again. Raises OSError.

        Where there were not just so many `transactions` meanwhile, the next call of `hear` takes
        them for changes of any chain.
        """
        self._member(_NETLINK_ADD_MEMBERSHIP)
        if self._last is None:
            self._lose()
        else:
            self._unheard += transactions
        self.ask()

    def _member(self, option: int) -> None:
        self._socket.setsockopt(_SOL_NETLINK, option, _NFNLGRP_NFTABLES)

    def knows(self, names: Iterable[str], marks: int = 0) -> None:
        """These are the names of all chains that there are; the one that marks has `marks` rules.

        It was seen so after the last call of `hear`.
        """
        self._names, self._deaf = set(names), False
        # What was told meanwhile may be counted already.
        self._marks, self._marks_seen, self._balance = None, marks, 0

    @property
    def names(self) -> frozenset[str]:
        """The names of all chains that there are, as far as was told; none where not known."""
        return frozenset(self._names or ())

    def hear(self, own: int | None = None) -> Heard:
        """What was told since the last call.

        Changes by the process `own` do not count: its socket has its process id for a name.
        """
        news, committed, by = False, False, list[str]()
        while True:
            try:
                data = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: more came than the buffer holds, so what is left tells nothing.
                news = True
                self._lose()
                continue
            news = True
            # The end of a transaction comes alone.
            if self._deaf and not _ends_transaction(data):
                continue
            try:
                for kind, sender, body in messages(data):
                    ours = sender == own
                    if kind == _NEWGEN and sender == self._port:
                        self._asked = False
                        self._compare(body)
                    elif kind == _NEWGEN:
                        committed = committed or ours
                        self._count(body)
                        if not ours and self._end_matters() and len(by) < _MOST_PROCESSES:
                            by.append(_process(body))
                    # Of our own thousands of rules there is nothing to know.
                    elif not ours or kind in (_NEWCHAIN, _DELCHAIN):
                        self._take(kind, body, ours)
            except Lost:
                self._lose()
        # Who does not answer proves nothing; nor does an answer that tells of more or fewer.
        if self._asked or self._unheard:
            self._asked, news = False, True
            self._lose()
        touched, self._touched = self._touched, set()
        if not (touched or self._deaf or self._balance) and self._marks_seen is not None:
            self._marks, self._marks_seen = self._marks_seen, None
        any_chain = self._deaf and news
        return Heard(None if any_chain else frozenset(touched), committed, tuple(dict.fromkeys(by)))

    def _lose(self) -> None:
        """Anything may have happened, by anybody."""
        self._deaf, self._matters, self._balance, self._unheard = True, False, 0, 0
        self._moves()

    def _count(self, body: bytes) -> None:
        """Takes note of the end of a transaction. Raises Lost if others were left out before."""
        before, self._last = self._last, _number(body)
        # None is left out where its end is told a moment after it was asked for.
        if before is not None and (self._last - before) % _NUMBERS > 1:
            raise Lost

    def _compare(self, body: bytes) -> None:
        """Takes note of the number of the last transaction, and of how many were left out."""
        before, self._last = self._last, _number(body)
        self._unheard -= 0 if before is None else (self._last - before) % _NUMBERS

    def _take(self, kind: int, body: bytes, ours: bool) -> None:
        """Takes note of a message that tells of a chain, a rule or the table. Raises Lost."""
        chain = self._chain(kind, body)
        if chain is None:
            if kind in (_NEWTABLE, _DELTABLE) and _named(body).get(_TABLE) == _KUBE_PROXYS:
                self._moves()
            return
        new = self._is_new(kind, chain)
        if ours:
            return
        if (new or kind == _DELCHAIN) and chain.startswith("KUBE-"):
            self._moves()
        if chain and chain == self._mark and kind in _COUNTS:
            self._balance += _COUNTS[kind]
        # What names no chain is about all of them.
        elif new or not chain:
            self._deaf = self._matters = True
        elif self._concerns(chain):
            self._matters = True
            self._touched.add(chain)
            self._deaf = self._deaf or len(self._touched) > _MOST_TOUCHED

    def _end_matters(self) -> bool:
        """Ends the transaction that was told of; whether it changed anything that matters."""
        # kube-proxy writes `mark` anew with each of its syncs: as many rules come as go.
        balance, self._balance = self._balance, 0
        before = self._marks
        if balance:
            self._marks = None if before is None else before + balance
            if self._marks is None or self._marks <= 0 or before == 0:
                self._deaf = self._matters = True
        matters, self._matters = self._matters, False
        return matters

    def close(self) -> None:
        """Stops listening."""
        self._socket.close()

    def _is_new(self, kind: int, chain: str) -> bool:
        """Whether a message tells of a chain by a name that was not there; takes note of it."""
        if self._names is None or kind not in (_NEWCHAIN, _DELCHAIN):
            return False
        new = kind == _NEWCHAIN and chain not in self._names
        (self._names.add if kind == _NEWCHAIN else self._names.discard)(chain)
        return new

    def _chain(self, kind: int, body: bytes) -> str | None:
        """The chain that a message is about, "" where it is the table; None where it is another."""
        if kind not in _CHAIN or not body or body[0] != self._family:
            return None
        names = _named(body)
        if names.get(_TABLE) != self._table:
            return None
        # A table that comes or goes takes all chains along.
        return names.get(_CHAIN[kind], "")


def _named(body: bytes) -> dict[int, str]:
    return dict(attributes(body[_FAMILY_HEADER:]))


def _process(body: bytes) -> str:
    """Who made the transaction that a message is the end of; any process chooses its own name."""
    found = _of_end(body)
    name = found.get(_PROCESS_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    number = int.from_bytes(found.get(_PROCESS_ID, b"")[:4], "big")
    return f"{one_line(name, 16) or 'a process'} (pid {number})"


def _number(body: bytes) -> int:
    """The number of a transaction, of which a message says that it was the last. Raises Lost."""
    return int.from_bytes(_of_end(body).get(_NUMBER, b""), "big")


def _of_end(body: bytes) -> dict[int, bytes]:
    """What the message that ends a transaction says, by attribute. Raises Lost."""
    parts = _parts(body[_FAMILY_HEADER:], _ATTRIBUTE)
    return {kind & _TYPE_MASK: data for (_, kind), data in parts}


def _ends_transaction(data: bytes) -> bool:
    """Whether the first message of a datagram is the end of a transaction."""
    kind = _HEADER.unpack_from(data)[1] if len(data) >= _HEADER.size else 0
    return bool(kind == _SUBSYSTEM << 8 | _NEWGEN)


def listen() -> socket.socket:
    """A socket that hears of all changes of nftables here. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    listening = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    try:
        try:
            listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except OSError:
            # Without CAP_NET_ADMIN the kernel's own limit holds.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        listening.bind((0, 0))
        listening.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        listening.close()
        raise
    return listening


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The nf_tables messages in a datagram: type, sender and body of each. Raises Lost."""
    for (_, kind, _, _, sender), body in _parts(data, _HEADER):
        if kind == _NLMSG_OVERRUN:
            raise Lost
        if kind >> 8 == _SUBSYSTEM:
            yield kind & 0xFF, sender, body


def attributes(data: bytes) -> Iterator[tuple[int, str]]:
    """The attributes in a message's body, each read as the name that it may be. Raises Lost."""
    for (_, kind), body in _parts(data, _ATTRIBUTE):
        yield kind & _TYPE_MASK, body.rstrip(b"\0").decode("utf-8", "replace")


def _parts(data: bytes, header: struct.Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """What stands one behind the other, each behind a header that has its length. Raises Lost."""
    while data:
        if len(data) < header.size:
            raise Lost
        fields = header.unpack_from(data)
        length = fields[0]
        if not header.size <= length <= len(data):
            raise Lost
        yield fields, data[header.size : length]
        data = data[length + 3 & ~3 :]
