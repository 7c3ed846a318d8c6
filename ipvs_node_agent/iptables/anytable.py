"""What the agent needs of one family's table, whoever keeps it."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Protocol

from ipvs_node_agent.nat.amended import Amendment


class Since(enum.Enum):
    """What became of a table since it was last read, as far as the table itself can tell."""

    UNCHANGED = enum.auto()
    CHANGED = enum.auto()
    UNKNOWN = enum.auto()


class Table(Protocol):
    """One family's table; which one, and in which backend, stays behind it."""

    def save(self) -> str:
        """The table as iptables-save prints it. Raises TableError."""

    def restore(self, text: str) -> None:
        """Applies `text`, all of it or nothing, without flushing the rest. Raises TableError."""

    def changed(self, closely: bool = False) -> Since:
        """Whether somebody else changed something of ours since it was last looked at.

        Asking costs next to nothing, and `closely` a little: then who is not told looks, and who is
        told makes sure that nothing was missed.
        """

    def reread(self) -> Amendment | None:
        """What has become of the chains that others were last told to have changed.

        None where that may be any, and `save` alone can tell. Raises TableError.
        """

    @property
    def read_ahead(self) -> bool:
        """Whether what `save` gives is there already, and nothing was told since."""

    def looked(self) -> None:
        """What was told until the last `reread` is known, and is no change any more."""

    @property
    def told(self) -> int:
        """Another number each time that others are told to have changed something of ours."""

    @property
    def changed_by(self) -> tuple[str, ...]:
        """Who changed something of ours between the last two looks, as far as that is told."""

    @property
    def told_by(self) -> int | None:
        """What poll(2) finds readable when somebody changes it; None where nobody tells."""

    def watch(self, chains: Collection[str]) -> None:
        """Has others' `chains` count for `changed` as ours do, from the last `save` on."""

    def prepare(self) -> None:
        """Gets ready for the next `restore`, where one was made; takes next to no time."""

    def close(self) -> None:
        """Waits for the last restore, and listens no more until the next `save`."""
