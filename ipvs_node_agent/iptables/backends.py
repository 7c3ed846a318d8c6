"""Which nat tables are the agent's business: both families, in the backend that the node uses.

`Kernel` chooses the backend and hands out a `Programmer` for each family; `clean` removes what is
ours from any backend.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.launcher import Launcher
from ipvs_node_agent.iptables.programmer import Programmer, Writes
from ipvs_node_agent.iptables.table import BACKENDS, NFT, KernelTable, may_read, saved_table
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Ruleset

log = logging.getLogger(__name__)

# The kubelet's chains; kubernetes-sigs/iptables-wrappers goes by the same two.
_KUBELET_CHAINS = re.compile(r"^:(KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) ", re.MULTILINE)


class Kernel:
    """The tables to program. `names` are those of the agent's chains, and `mark` is Kubernetes'
    chain that marks.

    `backend` is taken to be the node's until `choose` knows better.
    """

    def __init__(
        self,
        launcher: Launcher,
        options: IptablesOptions,
        names: frozenset[str],
        mark: str,
        backend: str = NFT,
    ) -> None:
        self._launcher, self._options, self._mark = launcher, options, mark
        self.names = names
        self.backend = backend
        # Whether the kubelet's chains settled it; until then it is a guess to look at again soon.
        self.certain = False
        self._tables: dict[Family, KernelTable] = {}

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
                self._launcher, family, self.backend, self._options, owns, self._mark
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


def installed(family: Family, backend: str) -> bool:
    """Whether `backend`'s commands for `family` are on this machine."""
    return command.find(f"{family.command}-{backend}-restore") is not None


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
            if not (installed(family, backend) and may_read(family, backend)):
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
