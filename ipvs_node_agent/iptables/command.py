"""One command of netfilter's: where it is looked for, what it is given and prints, how it fails.

All knowledge of exit statuses and error texts stays here: whoever gets a `TableError` asks what it
is, and reads none of its words.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, Callable

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.processes.launcher import Launcher, LaunchError, Running
from ipvs_node_agent.processes.spares import Spares, Streams, memory_file

# What a command may take besides waiting for the lock, in seconds. 40,000 rules take under one.
TIME_LIMIT = 30
# How long what is not needed all the time is kept for the next time, in seconds.
IDLE = 75.0
_SHOWN_STDERR = 4096
# Services and cron start with a PATH that need not hold the system's own commands.
_SYSTEM = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
# Exit statuses of iptables-restore that speak of its input, and of neither lock nor rights; and the
# words of iptables-nft-restore, whose status for all that the kernel refuses is 4.
_REFUSED = (1, 2)
_NFT_REFUSED = re.compile(r"[A-Z]+_[A-Z]+ failed \((?!Operation not permitted|Cannot allocate)")
_PROGRAM = re.compile(r"^ip6?tables\S*( v\S+ \(\w+\))?:")
_NOISE = re.compile(r"Try `|#|Error occurred at line")
_LOCK = "xtables lock"
FOREIGN_HINT = (
    "nft list ruleset shows what was made with nft in that table: move that to a table of its own"
)
LOCKED_HINT = "another program holds /run/xtables.lock"


class TableError(RefusedError):
    """A command of iptables failed.

    `line` is the line of the restore input that it blames, and `blamed` that line's text. With
    `by_content` it ran, and refused what it was given; with `hung` it took too long and was killed;
    with `locked` nothing but somebody else's lock was in the way.
    """

    def __init__(
        self,
        what: str,
        why: str,
        hint: str = "",
        line: int | None = None,
        by_content: bool = False,
        hung: bool = False,
        locked: bool = False,
    ) -> None:
        super().__init__(what, why, hint)
        self.line, self.blamed = line, ""
        self.by_content, self.hung, self.locked = by_content, hung, locked


def foreign(command: str) -> TableError:
    """What `command` fails with where only nft can show or change what the table holds."""
    why = "has rules made with nft that iptables cannot read"
    return TableError(command, why, FOREIGN_HINT)


def _search() -> str:
    return ":".join((*os.get_exec_path(), *_SYSTEM))


def find(command: str) -> str | None:
    """Where `command` is on this machine."""
    return shutil.which(command, path=_search())


def launch(busy: Callable[[], None] = lambda: None, idle: float = math.inf) -> Launcher:
    """What commands are started with; each has a time limit, and see there for `busy`.

    Its process takes memory until nobody has needed it for `idle` seconds.
    """
    return Launcher({**os.environ, "PATH": _search(), "LC_ALL": "C"}, busy, idle)


@dataclass(frozen=True)
class Command:
    """A command that runs; `result` has to be called once."""

    name: str
    limit: float
    good: Sequence[int]
    running: Running
    streams: Streams

    @property
    def well(self) -> bool:
        """Whether it has ended as it should, once it has ended; `result` is still to be called."""
        try:
            status, expired = self.running.end()
        except LaunchError:
            return False
        return status in self.good and not expired

    def result(self, most: int = -1) -> str:
        """What it printed, the first `most` bytes, once it has ended. Raises TableError."""
        printed, complaints = self.streams
        with printed, complaints:
            try:
                status, expired = self.running.end()
            except LaunchError as error:
                raise TableError(self.name, str(error)) from None
            if expired:
                why = f"did not end within {self.limit:g} s and was killed"
                raise TableError(self.name, why, hung=True)
            if status not in self.good:
                raise _failure(self.name, status, complaints)
            printed.seek(0)
            return printed.read(most).decode("utf-8", "replace")


def start(
    launcher: Launcher,
    command: str,
    arguments: Sequence[str],
    limit: float = TIME_LIMIT,
    stdin: str = "",
    package: str = "iptables",
    good: Sequence[int] = (0,),
    spares: Spares | None = None,
) -> Command:
    """Starts `command`, which is killed after `limit` seconds. Raises TableError.

    `package` is what it comes with, and `good` are the exit statuses of success. It may be one of
    the `spares`.
    """
    given = stdin.encode()
    # Before it is looked for, which takes as long as the rest.
    ran = spares.start((command, *arguments), limit, given) if spares is not None else None
    if ran is None:
        path = find(command)
        if path is None:
            raise TableError(command, "not found", f"apt install {package}")
        try:
            ran = _ran(launcher, [path, *arguments], limit, given)
        except (LaunchError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise TableError(command, f"could not be started: {why}") from None
    return Command(command, limit, good, *ran)


def _ran(
    launcher: Launcher, command: Sequence[str], limit: float, given: bytes
) -> tuple[Running, Streams]:
    """`command` under way. Raises LaunchError and OSError."""
    with ExitStack() as files:
        streams = Streams(*(files.enter_context(memory_file()) for _ in range(2)))
        with memory_file() as read:
            read.write(given)
            read.seek(0)
            running = launcher.start(command, limit, (read, *streams))
        files.pop_all()
        return running, streams


def _failure(command: str, status: int, complaints: BinaryIO) -> TableError:
    complaints.seek(0)
    text = complaints.read(_SHOWN_STDERR).decode("utf-8", "replace")
    lines = [_PROGRAM.sub("", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line and not _NOISE.match(line)]
    if status < 0:
        said.append(f"killed by signal {-status}")
    blamed = re.search(r"\bline:? (\d+)", text)
    why = "; ".join(said) or f"exit status {status}"
    hint = _hint(text)
    refused = status in _REFUSED or _NFT_REFUSED.search(text) is not None
    # Who waited for the lock and got it may have been refused all the same.
    locked = not (hint or refused) and _LOCK in text
    hint = LOCKED_HINT if locked else hint
    line = int(blamed[1]) if blamed else None
    return TableError(command, why, hint, line, by_content=refused and not hint, locked=locked)


def _hint(text: str) -> str:
    if "Permission denied" in text or "must be root" in text:
        return "it needs root, or the capabilities CAP_NET_ADMIN and CAP_NET_RAW"
    # Which of the two it says depends on its version.
    if "incompatible" in text or "CHAIN_ADD failed (Operation not supported)" in text:
        return FOREIGN_HINT
    return ""
