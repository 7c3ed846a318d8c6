"""One table of the kernel's, through iptables-save and iptables-restore."""

from __future__ import annotations

import logging
import re
import select
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Callable, TypeVar

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import command, legacytable
from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.command import Command, TableError
from ipvs_node_agent.iptables.saved import ends, saved_table, whole_if_told
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.nat.amended import Amendment
from ipvs_node_agent.nat.chains import BUILT_IN_CHAINS, NAT
from ipvs_node_agent.nat.ruletext import Rules
from ipvs_node_agent.nat.saveformat import parse_rules
from ipvs_node_agent.nft.monitor import NftMonitor, Touched, listen
from ipvs_node_agent.processes.launcher import Launcher, Running
from ipvs_node_agent.processes.spares import Spares

log = logging.getLogger(__name__)

T = TypeVar("T")

NFT, LEGACY = "nft", "legacy"
BACKENDS = (NFT, LEGACY)

# What a look may take that nobody waits for yet, in seconds.
AHEAD_LIMIT = 10
# A restore input of so many characters changes more than the kernel could tell.
_LOUD = 1 << 20
# So many of those who changed a table are named at most.
_MOST_NAMED = 3
# Anybody may name a chain so that it is more than one word of an input.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


# What a look at a legacy table says.
_SINCE = {True: Since.UNCHANGED, False: Since.CHANGED, None: Since.UNKNOWN}


class KernelTable:
    """The table `name` of this network namespace, in one family, by one backend's commands.

    `owns` tells which chains are the agent's: `changed` is about those and the built-in ones, and
    about whether the chain `mark` has rules. `moves` is called when kube-proxy's chains or tables
    come or go, of an nft table. With `again`, what writes next is kept ready for it. In the block
    of `hush` nobody who could be told of a large write is told anything.
    """

    def __init__(
        self,
        launcher: Launcher,
        family: Family,
        backend: str,
        options: IptablesOptions,
        owns: Callable[[str], bool] = lambda _: True,
        mark: str = "",
        name: str = NAT,
        moves: Callable[[], None] = lambda: None,
        again: bool = False,
        hush: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._spares = Spares(launcher, command.find) if again else None
        # With what the last restore was made, unless the next one is ready.
        self._again: Sequence[str] | None = None
        self._launcher, self._name, self._moves, self._hush = launcher, name, moves, hush
        self._family, self._backend, self._owns, self._mark = family, backend, owns, mark
        self._save = f"{family.command}-{backend}-save"
        self._restore = f"{family.command}-{backend}-restore"
        self._watched = frozenset[str]()
        self._lock_wait = options.lock_wait_seconds
        # Who tells of changes, of an nft table; and what was told since it was looked at.
        self._monitor: NftMonitor | None = None
        self._since = Since.UNKNOWN
        self._touched: Touched = frozenset()
        self._told = 0
        # Who changed something of ours: since the last look, and between the last two.
        self._changing: tuple[str, ...] = ()
        self._changed_by: tuple[str, ...] = ()
        self._seen = legacytable.Seen(family.version, name)
        # The last restore, which has had its effect and still runs.
        self._ending: Command | None = None
        # A look that has begun before it is asked for.
        self._ahead: Command | None = None
        # To look at a legacy table makes it; for nat that is done anyway.
        self._makes = name == NAT

    def save(self) -> str:
        """The table as iptables-save prints it; empty where the kernel has none yet."""
        self._finish()
        text = self._seen_ahead()
        if text is None:
            self._begin_look()
            if not (self._makes or may_read(self._family, self._backend, self._name)):
                return ""
            text = saved_table(self._launcher, self._save, self._name)
        if self._monitor is not None:
            begin, _ = ends(text)
            names = (line[1:].partition(" ")[0] for line in begin if line[:1] == ":")
            self._monitor.knows(names, text.count(f"\n-A {self._mark} "))
        return text

    def _begin_look(self) -> None:
        if self._monitor is not None:
            self._heard(self._monitor)
        # What happens from now on is after this look, or at worst both in it and after it.
        self._listen()
        self.looked()
        self._look(self._seen.look)

    def _seen_ahead(self) -> str | None:
        """What was read ahead; None where nothing was, or somebody has done anything since."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or self._monitor is None:
            return None
        text = whole_if_told(ahead, self._name)
        if _readable(self._monitor):
            # The next look hears anew. To take in what was told, as of our own write of another
            # table, would take longer than that look.
            self._stop_listening()
            return None
        return text

    def forget_ahead(self) -> None:
        """Gives up what was read ahead, and listens no more where it was."""
        if self._ahead is not None:
            self.close()

    @property
    def read_ahead(self) -> bool:
        """See `Table`."""
        if self._ahead is None or self._monitor is None:
            return False
        # Any other command would have to wait for its end as well.
        return self._ahead.well and not _readable(self._monitor)

    def look_ahead(self) -> None:
        """Starts the look that `save` will want, where what happens from now on will be told.

        Until then nobody takes what is told, so it is to be soon.
        """
        if self._backend == NFT:
            self._begin_look()
        if self._monitor is not None:
            with suppress(TableError):
                arguments = ["-t", self._name]
                self._ahead = command.start(self._launcher, self._save, arguments, AHEAD_LIMIT)

    def reread(self) -> Amendment | None:
        """See `Table`."""
        self._finish()
        if self._monitor is None or self._touched is None:
            return None
        names = self._touched & self._monitor.names
        if not all(_PLAIN.fullmatch(name) for name in names):
            return None
        found = self._printed(names) if names else {}
        if found.keys() != names:
            return None
        return {name: found.get(name) for name in self._touched}

    def _printed(self, names: Collection[str]) -> Mapping[str, Rules]:
        """The rules of these chains, all as they are at one moment. Raises TableError."""
        text = "".join(f"-S {name}\n" for name in sorted(names))
        running = command.start(
            self._launcher,
            self._restore,
            ["--noflush"],
            command.TIME_LIMIT,
            f"*{self._name}\n{text}COMMIT\n",
        )
        return parse_rules(running.result())

    def looked(self) -> None:
        """See `Table`."""
        self._changed_by, self._changing = self._changing, ()
        self._since = Since.UNKNOWN if self._monitor is None else Since.UNCHANGED
        self._touched = frozenset()

    def restore(self, text: str) -> None:
        """Applies `text` as one transaction, waiting for another iptables to let go of its lock."""
        self._finish()
        self._makes = True
        self._seen.forget()
        if len(text) <= _LOUD:
            self._write(text)
            return
        self._stop_listening()
        with self._hush():
            self._write(text)

    def _write(self, text: str) -> None:
        # Only with a number does -w stop waiting, and only as a word of its own on every version.
        arguments = ["-w", str(self._lock_wait), "--noflush"]
        limit = command.TIME_LIMIT + self._lock_wait
        started = command.start(
            self._launcher, self._restore, arguments, limit, text, spares=self._spares
        )
        if self._monitor is not None and self._committed(started.running, self._monitor):
            self._ending = started
        else:
            started.result()
            self._look(self._seen.glance)
        self._again = arguments

    def prepare(self) -> None:
        """See `Table`."""
        again, self._again = self._again, None
        if again is not None and self._spares is not None:
            self._spares.keep((self._restore, *again))

    def _committed(self, running: Running, monitor: NftMonitor) -> bool:
        """Waits for the end of `running`, or until the kernel tells that it took its change.

        From there to the end it takes longer than all before: closing its socket waits until the
        old rules are freed. False where only its end can tell how it went.
        """
        while True:
            ended = running.wait(monitor)
            if self._heard(monitor, own=running.process):
                return True
            if ended:
                return False

    def _heard(self, monitor: NftMonitor, own: int | None = None) -> bool:
        """Takes note of what was told; whether the change by the process `own` is in effect."""
        heard = monitor.hear(own)
        if heard.touched != frozenset():
            self._note(heard.touched)
        self._changing = tuple(dict.fromkeys((*self._changing, *heard.by)))[-_MOST_NAMED:]
        return heard.committed

    def _note(self, touched: Touched = None) -> None:
        """Takes note that these chains have become others, or any may have."""
        self._since, self._told = Since.CHANGED, self._told + 1
        before, self._touched = self._touched, None
        if before is not None and touched is not None:
            self._touched = before | touched

    def _finish(self) -> None:
        """Waits for the end of the last restore, which has had its effect already."""
        running, self._ending = self._ending, None
        if running is not None:
            try:
                running.result()
            except TableError as error:
                # What the kernel told may have been another process of that number.
                log.debug("looking at the table again: %s", error)
                self._note()

    def changed(self, closely: bool = False) -> Since:
        """See `Table`. Of nft's changes the kernel tells; at legacy tables one looks."""
        self._finish()
        if self._monitor is not None:
            if closely:
                self._monitor.ask()
            self._heard(self._monitor)
        elif self._backend == LEGACY:
            return _SINCE[self._look(lambda: self._seen.is_same(closely))]
        return self._since

    def _look(self, look: Callable[[], T]) -> T | None:
        """What a look at a legacy table gives; None where there is none to be had."""
        if self._backend != LEGACY:
            return None
        # One that was seen is there.
        if not (self._seen.known or may_read(self._family, LEGACY, self._name)):
            return None
        try:
            return look()
        except OSError as error:
            log.debug("cannot tell whether the legacy table is the same: %s", error)
            return None

    def _listen(self) -> None:
        """Starts to listen, or forgets what was heard so far."""
        if self._monitor is None and self._backend == NFT:
            try:
                listening = listen()
            except OSError as error:
                log.debug("cannot listen for changes of nftables: %s", error)
                return
            self._monitor = NftMonitor(
                listening,
                self._family.version,
                self._name,
                self._concerns,
                self._mark,
                self._moves,
                listening.getsockname()[0],
            )
        if self._monitor is not None:
            # Before the look, so that what is left out meanwhile will show.
            self._monitor.ask()
            self._monitor.hear()

    def _stop_listening(self) -> None:
        """Spares the kernel telling us more of our own change than we could take in."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
            self._note()

    def pause(self) -> None:
        """Is told of nothing until `resume`."""
        if self._monitor is not None:
            self._monitor.pause()

    def resume(self, transactions: int) -> None:
        """Is told of changes again; any but those `transactions` meanwhile may be one of ours."""
        try:
            if self._monitor is not None:
                self._monitor.resume(transactions)
        except OSError as error:
            log.debug("cannot listen for changes of nftables any more: %s", error)
            self._stop_listening()

    def _concerns(self, chain: str) -> bool:
        return chain in BUILT_IN_CHAINS or self._owns(chain) or chain in self._watched

    @property
    def told(self) -> int:
        """See `Table`."""
        return self._told

    @property
    def changed_by(self) -> tuple[str, ...]:
        """See `Table`."""
        return self._changed_by

    @property
    def told_by(self) -> int | None:
        """See `Table`."""
        return None if self._monitor is None else self._monitor.fileno()

    def watch(self, chains: Collection[str]) -> None:
        """See `Table`."""
        # What was told since `save` has not been looked at yet.
        self._watched = frozenset(chains)

    def close(self) -> None:
        """See `Table`."""
        self._finish()
        self._seen_ahead()
        self._stop_listening()
        self._again = None
        if self._spares is not None:
            self._spares.close()


def _readable(one: NftMonitor) -> bool:
    waiting = select.poll()
    waiting.register(one, select.POLLIN)
    return bool(waiting.poll(0))


def may_read(family: Family, backend: str, table: str = NAT) -> bool:
    """Whether `table` can be read as it is; asking for a legacy one that is not there makes it."""
    return backend != LEGACY or table in legacytable.names(family.version)
