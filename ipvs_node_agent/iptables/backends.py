"""Which tables are the agent's business: both families, in the backend that the node uses."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Callable

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.programmer import Programmer, Writes
from ipvs_node_agent.iptables.saved import saved_table
from ipvs_node_agent.iptables.table import AHEAD_LIMIT, BACKENDS, NFT, KernelTable, may_read
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from ipvs_node_agent.nat.chains import FILTER, NAT, OWN_INPUT_CHAIN, owner
from ipvs_node_agent.nat.ruleset import Found, Ruleset
from ipvs_node_agent.processes.launcher import Launcher

log = logging.getLogger(__name__)

# The kubelet's chains; kubernetes-sigs/iptables-wrappers goes by the same two.
_KUBELET_CHAINS = re.compile(r"^:(KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) ", re.MULTILINE)

_OF_FILTER = Ruleset(table=FILTER)


@dataclass(eq=False)
class Kernel:
    """The tables to program. `names` are those of the agent's chains, and `mark` is Kubernetes'
    chain that marks.

    `backend` is taken to be the node's until `choose` knows better. It is `certain` where the
    kubelet's chains settled it; until then it is a guess to look at again soon. `moves` is called
    when kube-proxy's chains or tables come or go (nft).
    """

    launcher: Launcher
    options: IptablesOptions
    names: frozenset[str]
    mark: str
    backend: str = NFT
    moves: Callable[[], None] = lambda: None
    certain: bool = field(default=False, init=False)
    _tables: list[KernelTable] = field(default_factory=list, init=False)
    _unclean: Once = field(default_factory=Once, init=False)

    def choose(self) -> bool:
        """Chooses the backend; True where it is now another one than before."""
        before = self.backend
        if self.options.backend != "auto":
            self.launcher.prepare()
            self.backend, self.certain = self.options.backend, True
            return self.backend != before
        try:
            found = detect_backend(self.launcher)
        except TableError as error:
            log.debug("cannot tell the iptables backend yet: %s", error)
            return False
        if self.certain and found != before:
            # Somebody may be flushing what the kubelet is about to make anew: look once more.
            self.certain = False
            return False
        self.certain = found is not None
        # Without a trace of the kubelet stay with what there is.
        self.backend = found or before
        return self.backend != before

    def programmers(
        self, writes: Mapping[Family, Writes] | None = None
    ) -> dict[Family, Programmer]:
        """One for each family's nat table, in the place of all earlier ones.

        What they write is in `writes`.
        """
        self.close()
        noted = writes or {}
        return {
            family: self._programmer(family, NAT, str(family), self.mark, noted.get(family))
            for family in FAMILIES
        }

    def filters(self) -> dict[Family, Programmer]:
        """One for each family's filter table."""
        return {family: self._programmer(family, FILTER, f"{family} filter") for family in FAMILIES}

    def _programmer(
        self, family: Family, name: str, called: str, mark: str = "", writes: Writes | None = None
    ) -> Programmer:
        owns = owner(_names_in(name, self.names))
        table = KernelTable(
            self.launcher,
            family,
            self.backend,
            self.options,
            owns,
            mark,
            name,
            self.moves,
            # The filter table is hardly ever written.
            again=name == NAT,
            hush=self._hush,
        )
        self._tables.append(table)
        return Programmer(table, owns, called, writes)

    @contextmanager
    def _hush(self) -> Iterator[None]:
        """Has no table be told of the one write that is made meanwhile."""
        for table in self._tables:
            table.pause()
        transactions = 0
        try:
            yield
            transactions = 1
        finally:
            for table in self._tables:
                table.resume(transactions)

    def look_ahead(self) -> None:
        """Starts to look at the tables, while it is not known yet what they are to hold."""
        end = time.monotonic() + AHEAD_LIMIT
        for table in self._tables:
            # One that hangs makes the next one wait.
            if time.monotonic() < end:
                table.look_ahead()

    def forget_ahead(self) -> None:
        """Gives up what was looked at too long ago."""
        for table in self._tables:
            table.forget_ahead()

    def close(self) -> None:
        """Listens to the tables no more."""
        for table in self._tables:
            table.close()
        self._tables = []

    def clean_others(self) -> bool:
        """Removes what is ours from the backend that is not in use; False where it could not."""
        others, fault = set(BACKENDS) - {self.backend}, ""
        try:
            for line in clean(self.launcher, self.names, self.options, others):
                log.info("%s", line)
        except RefusedError as error:
            fault = str(error)
        if self._unclean.new(fault):
            log.warning("cannot clean the other iptables backend: %s", fault)
        return not fault


def detect_backend(launcher: Launcher) -> str | None:
    """The backend that the node's kubelet uses; None where it left no trace.

    The order is that of kubernetes-sigs/iptables-wrappers, version 3. Raises TableError.
    """
    for backend in BACKENDS:
        for family in FAMILIES:
            save = f"{family.command}-{backend}-save"
            if command.find(save) is None or not may_read(family, backend, "mangle"):
                continue
            try:
                text = saved_table(launcher, save, "mangle")
            except TableError:
                if family is IPV4:
                    raise
                continue  # A kernel without IPv6 still has a backend.
            if _KUBELET_CHAINS.search(text):
                return backend
    return None


def filters_found(filters: Mapping[Family, Programmer]) -> dict[Family, Found | TableError]:
    """What each of the `filters` holds of ours, or why it cannot be read."""
    found: dict[Family, Found | TableError] = {}
    for family, programmer in filters.items():
        try:
            found[family] = programmer.read(_OF_FILTER)
        except TableError as error:
            found[family] = error
    return found


def _names_in(table: str, names: frozenset[str]) -> frozenset[str]:
    """Which chains in `table` are ours, where ours in nat have `names`."""
    return names if table == NAT else frozenset({OWN_INPUT_CHAIN})


def installed(family: Family, backend: str) -> bool:
    """Whether `backend`'s commands for `family` are on this machine."""
    return command.find(f"{family.command}-{backend}-restore") is not None


def clean(
    launcher: Launcher,
    names: frozenset[str],
    options: IptablesOptions,
    backends: Iterable[str] = BACKENDS,
) -> list[str]:
    """Removes all that is ours, a line for each removal. Raises RefusedError, once all is tried."""
    done: list[str] = []
    failed: TableError | None = None
    for backend, family, name in product(backends, FAMILIES, (NAT, FILTER)):
        if not (installed(family, backend) and may_read(family, backend, name)):
            continue
        owns = owner(_names_in(name, names))
        table = KernelTable(launcher, family, backend, options, owns, name=name)
        programmer, nothing = Programmer(table, owns), Ruleset(table=name)
        try:
            change = programmer.check(nothing)
            held = programmer.read(nothing).chains
        except TableError as error:
            # A filter table that the agent never used may be one that iptables cannot use.
            if name == NAT or OWN_INPUT_CHAIN in names:
                failed = failed or error
            continue
        finally:
            table.close()
        where = f"{family.command}-{backend}"
        if change.dropped:
            done.append(f"{where}: removed {', '.join(change.dropped)}")
        for chain in held:
            done.append(f"{where}: emptied {chain}, which a rule of another program jumps to")
    if failed is not None:
        raise failed
    return done
