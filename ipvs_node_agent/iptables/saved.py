"""What iptables-save prints of a table: all of it, nothing, or an error.

Its status alone proves nothing: of a table that it cannot show, iptables-nft-save prints a comment
and ends well.
"""

from __future__ import annotations

import logging
import re

from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.command import Command, TableError
from ipvs_node_agent.processes.launcher import Launcher

log = logging.getLogger(__name__)

# So many characters at its end are enough to tell whether a saved table is whole.
_LAST = 4096
# What iptables-nft-save prints in place of a table with rules that only nft can show.
_INCOMPATIBLE = re.compile(r"# Table .* is incompatible")
_FIRST_RULE = re.compile(r"^(\[\d+:\d+\] )?-A ", re.MULTILINE)


def saved_table(launcher: Launcher, save: str, table: str, *options: str) -> str:
    """What `save`, one of iptables' commands, prints of `table`; empty where there is none yet.

    Raises TableError.
    """
    return _whole(command.start(launcher, save, [*options, "-t", table]), table)


def whole_if_told(running: Command, table: str) -> str | None:
    """What a command under way prints of `table`; None where it has to be asked for again."""
    try:
        return _whole(running, table)
    except TableError as error:
        log.debug("looking at the table again: %s", error)
        return None


def _whole(running: Command, table: str) -> str:
    text = running.result()
    begin, end = ends(text)
    if any(_INCOMPATIBLE.match(line) for line in begin):
        raise command.foreign(running.name)
    if all(line.startswith("#") for line in begin if line):
        return ""
    if f"*{table}" not in begin or "COMMIT" not in end:
        raise TableError(running.name, f"printed an incomplete table {table}")
    return text


def ends(text: str) -> tuple[list[str], list[str]]:
    """The lines of a saved table before its first rule, and its last ones."""
    rule = _FIRST_RULE.search(text)
    begin = text[: rule.start()] if rule else text
    return begin.split("\n"), text[-_LAST:].split("\n")
