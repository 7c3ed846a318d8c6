"""A nat or filter table that others change, and that fails, at the moments that a history says.

It is the table of tests/support, which real kernels are held to, with neighbours and faults. It
remembers what the agent can know of it: what the agent last saw there or wrote.
"""

from __future__ import annotations

import itertools
from typing import Callable, Literal, NamedTuple

from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.command import FOREIGN_HINT, LOCKED_HINT, TableError
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat.amended import Amendment
from ipvs_node_agent.nft.monitor import Touched
from tests.simulation import oracle
from tests.support.faketable import BUILT_IN, Chains, FakeTable, applied
from tests.support.tables import MARK_MASQ

LOCKED = TableError("iptables-restore", "Another app is holding the lock", LOCKED_HINT, locked=True)
HANGING_SECONDS = 35.0
KUBE_MARK = "KUBE-MARK-MASQ"
# What a kernel without memory to spare says, which is no Service's fault.
BUSY = TableError("iptables-restore", "Resource temporarily unavailable")
# Whether the kernel tells of a change, tells only how many there were, or shows nothing of it.
Telling = Literal["told", "missed", "unseen"]


class Wrote(NamedTuple):
    """A restore: what the agent took the table to hold before and after, and what it really did."""

    text: str
    seen: Chains
    left: Chains
    there: Chains
    now: Chains


class Transactions:
    """The changes of all tables, which the kernel numbers as one."""

    def __init__(self) -> None:
        self.last = 0
        self.listening: list[SimTable] = []

    def made(self, table: SimTable, told: Telling, touched: Touched) -> None:
        """`table` was changed; whoever listens is told of all tables."""
        self.last += told != "unseen"
        if told == "told":
            for each in self.listening:
                each.hears_of(self.last, touched if each is table else frozenset())


class SimTable(FakeTable):
    """The table of `family`; where it `tells`, others' changes are told of, as nft's are.

    `advance` lets time pass, and `wrote` is called after each restore of the agent's.
    """

    def __init__(
        self,
        family: Family,
        advance: Callable[[float], None],
        wrote: Callable[[SimTable, Wrote], None],
        transactions: Transactions,
        name: str = "nat",
    ) -> None:
        super().__init__(MARK_MASQ if name == "nat" else "", name)
        self.family, self.tells = family, False
        self._advance, self._wrote = advance, wrote
        self.seen: Chains = self.copy()
        self.native = False
        # Addresses whose rules the kernel takes in no chain, and whether it says in which line.
        self.refused: dict[str, bool] = {}
        # What becomes of the next calls: the name of a fault for each.
        self.faults: list[str] = []
        # What others do just before or after a call of the agent's: (its name, the change).
        self.meanwhile: list[tuple[str, Callable[[], None]]] = []
        # What was told since the table was read, each a set of chains, or None for any: what nobody
        # has taken note of yet, with the numbers of the changes, and what somebody has.
        self._queue: list[tuple[int, Touched]] = []
        self._heard: list[Touched] = []
        # And the number of the last one that somebody has taken note of.
        self._transactions, self._counted = transactions, 0
        transactions.listening.append(self)
        self._listening = False
        # What the last `reread` gave.
        self._there: Amendment = {}
        self._version = itertools.count()
        self._last = self._read = next(self._version)

    # Others

    def change(self, text: str, told: Telling = "told") -> None:
        """Somebody else applies `text`; what cannot be done is left."""
        try:
            self._become(applied(self._chains, f"*{self.name}\n{text}\nCOMMIT\n", self.name), told)
        except TableError:
            return

    def rename(self, old: str, new: str, told: Telling = "told") -> None:
        """Somebody else gives a chain another name; jumps to it follow."""
        if old not in self._chains or new in self._chains:
            return
        renamed = {
            new if name == old else name: [
                f"{rule[: -len(old)]}{new}" if rule.endswith(f"-j {old}") else rule
                for rule in rules
            ]
            for name, rules in self._chains.items()
        }
        self._become(renamed, told)

    def flush(self, told: Telling = "told") -> None:
        """Somebody else takes away everything."""
        self._become({name: [] for name in BUILT_IN}, told)

    def _become(self, chains: Chains, told: Telling) -> None:
        before, self._chains = self._chains, chains
        names = {n for n in before.keys() | chains.keys() if before.get(n) != chains.get(n)}
        # Of what others have, and of new names, it is told alone that it is more than we can read.
        few = all(n in before and (n in BUILT_IN or oracle.OWN_CHAIN.fullmatch(n)) for n in names)
        self.note(told, frozenset(names) if few else None)

    def note(self, told: Telling = "told", touched: Touched = None) -> None:
        """The table is another one now; `told` says whether the kernel tells."""
        self._last = next(self._version)
        self._transactions.made(self, told, touched)

    def hears_of(self, number: int, touched: Touched) -> None:
        """The kernel tells of a change by its number, and of what it touched here."""
        self._queue.append((number, touched))

    def _hear(self) -> None:
        for number, touched in self._queue:
            left_out = self.tells and number != self._counted + 1
            any_chain = touched is None or left_out
            self._heard += [None] if any_chain else [touched] if touched else []
            self._counted = number
        self._queue = []

    # The agent's side

    def save(self) -> str:
        """The table, or what goes wrong. Raises TableError."""
        self._pause("before save")
        self._queue, self._heard, self._listening = [], [], True
        self._counted = self._transactions.last
        self._fail("save")
        if self.native:
            raise TableError("iptables-save", "Table `nat' is incompatible", FOREIGN_HINT)
        self._read = self._last
        self.seen = self.copy()
        text = super().save()
        self._pause("after save")
        return text

    def reread(self) -> Amendment | None:
        """Those chains that others were told to have changed, or what goes wrong."""
        if not self.tells or None in self._heard:
            return None
        self._pause("before save")
        self._fail("save")
        if self.native:
            raise TableError("iptables-restore", "Table `nat' is incompatible", FOREIGN_HINT)
        names = frozenset().union(*(each for each in self._heard if each is not None))
        self._there = {n: tuple(self._chains[n]) if n in self._chains else None for n in names}
        self._pause("after save")
        return self._there

    def looked(self) -> None:
        """See `Table`."""
        self._heard = []
        for name, rules in self._there.items():
            self.seen.pop(name, None)
            if rules is not None:
                self.seen[name] = list(rules)

    @property
    def told(self) -> int:
        """See `Table`; the number of what was told and not looked at."""
        return len(self._heard)

    def changed(self, closely: bool = False) -> Since:
        """See `Table`; closely it is exact, as a digest is, or the number of all changes."""
        self._hear()
        if self.tells and closely and self._counted != self._transactions.last:
            self._heard.append(None)
        if self._heard:
            return Since.CHANGED
        if self.tells or (closely and self._read == self._last):
            return Since.UNCHANGED
        return Since.UNKNOWN

    @property
    def told_by(self) -> int | None:
        """See `Table`; a number that stands for this one."""
        return id(self) if self.tells and self._listening else None

    @property
    def is_telling(self) -> bool:
        """Whether somebody who waits for it would be woken."""
        return self.tells and self._listening and bool(self._queue)

    @property
    def is_unread(self) -> bool:
        """Whether it was told of something that the agent has not looked at."""
        here = [touched for _, touched in self._queue if touched != frozenset()]
        return self.tells and self._listening and bool(here or self._heard)

    def close(self) -> None:
        """See `Table`."""
        super().close()
        self._listening = False

    def restore(self, text: str) -> None:
        """Applies `text`, or fails, before or after it did. Raises TableError."""
        self._pause("before restore")
        fault = self._fail("restore")
        self._check(text)
        there = self.copy()
        super().restore(text)
        self.note("told", frozenset())
        seen, self.seen = self.seen, applied(self.seen, text, self.name)
        self._wrote(self, Wrote(text, seen, self.seen, there, self.copy()))
        # Who waits for the kernel to tell of it hears whatever came before.
        self._hear()
        if not self.tells:
            # Its size is looked at anew.
            self._heard = []
        self._pause("after restore")
        if fault:
            raise BUSY

    def _check(self, text: str) -> None:
        if self.native:
            why = "CHAIN_ADD failed (Operation not supported)"
            raise TableError("iptables-restore", why, FOREIGN_HINT)
        for number, line in enumerate(text.split("\n"), 1):
            for address, names_it in self.refused.items():
                writes = line.startswith(("-A IPVS", "-I IPVS", "-R IPVS"))
                if writes and f"-d {address}/" in line and "comment" in line:
                    why = "RULE_APPEND failed (Invalid argument)"
                    blamed = number if names_it else None
                    raise TableError("iptables-restore", why, line=blamed, by_content=True)

    def _fail(self, call: str) -> bool:
        """Does what the next fault says; True where the call is to fail after its effect."""
        if not self.faults:
            return False
        fault = self.faults.pop(0)
        if fault == "locked":
            raise LOCKED
        if fault == "hangs":
            self._advance(HANGING_SECONDS)
            why = "did not end within 35 s and was killed"
            raise TableError(f"iptables-{call}", why, hung=True)
        if fault == "late" and call == "restore":
            return True
        raise BUSY

    def _pause(self, moment: str) -> None:
        due = [change for when, change in self.meanwhile if when == moment]
        self.meanwhile = [each for each in self.meanwhile if each[0] != moment]
        for change in due:
            change()
