"""A `Kernel` for agents whose tables are in memory."""

from __future__ import annotations

from collections.abc import Mapping

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables.programmer import Programmer, Writes
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.processes.launcher import Launcher
from tests.support.faketable import FakeTable
from tests.support.tables import MARK_MASQ


class StandInKernel:
    """A `Kernel` whose tables are in memory; they outlive it, as the kernel's do."""

    backends: dict[str, dict[Family, FakeTable]]
    # Of the backend in use; nobody moves with them.
    filter_tables: dict[Family, FakeTable]
    # What `choose` finds out next.
    found: str | None
    cleaned: list[str]

    def __init__(
        self,
        launcher: Launcher,
        options: IptablesOptions,
        names: frozenset[str],
        guest: str,
        backend: str = "nft",
        moves: object = None,
    ) -> None:
        self.names = names
        self.backend = backend
        self.certain = False

    def choose(self) -> bool:
        before, self.backend = self.backend, self.found or self.backend
        self.certain = self.found is not None
        return self.backend != before

    def programmers(
        self, writes: Mapping[Family, Writes] | None = None
    ) -> dict[Family, Programmer]:
        tables = self.backends[self.backend]
        return {family: Programmer(table, owner(self.names)) for family, table in tables.items()}

    def filters(self) -> dict[Family, Programmer]:
        owns = owner(frozenset({"IPVS_INPUT"}))
        return {family: Programmer(table, owns) for family, table in self.filter_tables.items()}

    def look_ahead(self) -> None:
        """To look at these tables takes no time."""

    def forget_ahead(self) -> None:
        """Nothing was looked at."""

    def close(self) -> None:
        """Nobody listens to these tables."""

    def clean_others(self) -> None:
        """Notes what the backend in use held at that time."""
        self.cleaned.append(self.backends[self.backend][IPV4].save())


def fresh_kernel() -> type[StandInKernel]:
    """One whose tables hold nothing but kube-proxy's mark chain."""

    class Fresh(StandInKernel):
        backends = {  # noqa: RUF012  (fresh for each test)
            backend: {family: FakeTable(MARK_MASQ) for family in FAMILIES}
            for backend in ("nft", "legacy")
        }
        filter_tables = {  # noqa: RUF012
            family: FakeTable("", "filter") for family in FAMILIES
        }
        found = None
        cleaned = []  # noqa: RUF012

    return Fresh
