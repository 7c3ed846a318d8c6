"""Which nat tables are the agent's business: both families, in the backend that the node uses.

`Kernel` chooses the backend and hands out a `Programmer` for each family; `clean` removes what is
ours from any backend.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.iptables.table import (
    BACKENDS,
    LEGACY,
    NFT,
    KernelTable,
    TableError,
    detect_backend,
    installed,
    legacy_tables,
)
from ipvs_node_agent.iptables.writes import Writes
from ipvs_node_agent.model.addresses import FAMILIES, Family
from ipvs_node_agent.nat.ruleset import Ruleset, owner

log = logging.getLogger(__name__)


class Kernel:
    """The tables to program. `names` are those of the agent's chains, `guest` is Kubernetes' own
    that marks.

    `backend` is taken to be the node's until there is better knowledge.
    """

    def __init__(
        self,
        launcher: Launcher,
        options: IptablesOptions,
        names: frozenset[str],
        guest: str,
        backend: str = NFT,
    ) -> None:
        self._launcher, self._options, self._guest = launcher, options, guest
        self.names = names
        self.backend = backend
        # Whether the kubelet's chains settled it; until then it is a guess to look at again soon.
        self.certain = False
        self._tables: dict[Family, KernelTable] = {}
        self.choose()

    def choose(self) -> bool:
        """Chooses the backend; True where it is now another one than before."""
        before = self.backend
        if self._options.backend != "auto":
            self.backend, self.certain = self._options.backend, True
            return self.backend != before
        try:
            found = detect_backend(self._launcher)
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
        """A programmer for each family, in the place of those that were handed out before.

        What they write is noted in `writes`.
        """
        self.close()
        owns = owner(self.names)
        self._tables = {
            family: KernelTable(
                self._launcher, family, self.backend, self._options, owns, self._guest
            )
            for family in FAMILIES
        }
        return {
            family: Programmer(table, owns, str(family), (writes or {}).get(family))
            for family, table in self._tables.items()
        }

    def close(self) -> None:
        """Listens to the tables no more."""
        for table in self._tables.values():
            table.close()
        self._tables = {}

    def clean_others(self) -> None:
        """Removes what is ours from the backend that is not in use."""
        others = [backend for backend in BACKENDS if backend != self.backend]
        try:
            for line in clean(self._launcher, self.names, self._options, others):
                log.info("%s", line)
        except RefusedError as error:
            log.warning("cannot clean the other iptables backend: %s", error)


def clean(
    launcher: Launcher,
    names: frozenset[str],
    options: IptablesOptions,
    backends: Iterable[str] = BACKENDS,
) -> list[str]:
    """Removes our chains and jumps from `backends`, in both families; a line for each removal.

    What fails is raised at the end as RefusedError, after everything else is done.
    """
    done: list[str] = []
    failed: TableError | None = None
    for backend in backends:
        for family in FAMILIES:
            # Asking a legacy table that does not exist would make it.
            if not installed(family, backend) or (
                backend == LEGACY and "nat" not in legacy_tables(family)
            ):
                continue
            programmer = Programmer(KernelTable(launcher, family, backend, options), owner(names))
            try:
                change = programmer.check(Ruleset())
                held = programmer.read().chains
            except TableError as error:
                failed = failed or error
                continue
            where = f"{family.command}-{backend}"
            if change.dropped:
                done.append(f"{where}: removed {', '.join(change.dropped)}")
            for chain in held:
                done.append(f"{where}: emptied {chain}, which somebody else's rule jumps to")
    if failed is not None:
        raise failed
    return done
