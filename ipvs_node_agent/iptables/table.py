"""The kernel's nat tables through iptables-save and iptables-restore.

A `Table` is three methods wide: `save` gives the table's text, `restore` applies a text as one,
`touched` tells whether a look is worth it. All knowledge of commands, backends, exit statuses and
error texts stays behind it.
"""

from __future__ import annotations

import logging
import os
import re
import select
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Callable, Protocol

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables import legacytable
from ipvs_node_agent.iptables.launcher import Launcher, LaunchError
from ipvs_node_agent.iptables.nftmonitor import NftMonitor
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family
from ipvs_node_agent.nat.chains import BUILT_IN_CHAINS

log = logging.getLogger(__name__)

NFT, LEGACY = "nft", "legacy"
BACKENDS = (NFT, LEGACY)

# What a command may take besides waiting for the lock, in seconds. 40,000 rules take under one.
_TIME_LIMIT = 30
_SHOWN_STDERR = 4096
# Exit statuses of iptables-restore that speak of its input, and of neither lock nor rights; and the
# words of iptables-nft-restore, whose status for all that the kernel refuses is 4.
_REFUSED = (1, 2)
_NFT_REFUSED = re.compile(r"[A-Z]+_[A-Z]+ failed \((?!Operation not permitted|Cannot allocate)")
# A restore input of so many characters changes more than the kernel could tell.
_LOUD = 1 << 20
# The kubelet's chains; kubernetes-sigs/iptables-wrappers goes by the same two.
_KUBELET_CHAINS = re.compile(r"^:(KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) ", re.MULTILINE)
_LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
FOREIGN_HINT = "nft list ruleset shows what was made with nft in the table nat: move it to another"
# What iptables-nft-save prints in place of a table with rules that only nft can show.
_INCOMPATIBLE = re.compile(r"# Table .* is incompatible")
_FIRST_RULE = re.compile(r"^(\[\d+:\d+\] )?-A ", re.MULTILINE)
_PROGRAM = re.compile(r"^ip6?tables\S*( v\S+ \(\w+\))?:")
_NOISE = re.compile(r"Try `|#|Error occurred at line")
LOCKED_HINT = "another program holds /run/xtables.lock"


class TableError(RefusedError):
    """A command of iptables failed.

    `line` is the line of the restore input that it blames, and `blamed` that line's text. With
    `by_content` it ran, and refused what it was given; with `hung` it took too long and was killed.
    """

    def __init__(
        self,
        what: str,
        why: str,
        hint: str = "",
        line: int | None = None,
        by_content: bool = False,
        hung: bool = False,
    ) -> None:
        super().__init__(what, why, hint)
        self.line, self.by_content, self.hung = line, by_content, hung
        self.blamed = ""

    @property
    def locked(self) -> bool:
        """Whether nothing but somebody else's lock was in the way."""
        return self.hint == LOCKED_HINT


class Table(Protocol):
    """One family's nat table."""

    def save(self) -> str:
        """The table as iptables-save prints it. Raises TableError."""

    def restore(self, text: str) -> None:
        """Applies `text`, all of it or nothing, without flushing the rest. Raises TableError."""

    def touched(self) -> bool | None:
        """Whether somebody else changed something of ours since `save`; None: only it can tell.

        Asking costs next to nothing.
        """

    def same(self) -> bool:
        """Whether the table certainly still is what the last `save` found; costs a little."""


class KernelTable:
    """The nat table of this network namespace, in one family, by one backend's commands.

    `owns` tells which chains are the agent's: `touched` is about those and the built-in ones, and
    about whether the chain `guest` has rules.
    """

    def __init__(
        self,
        launcher: Launcher,
        family: Family,
        backend: str,
        options: IptablesOptions,
        owns: Callable[[str], bool] = lambda _: True,
        guest: str = "",
    ) -> None:
        self._launcher = launcher
        self._family, self._backend, self._owns, self._guest = family, backend, owns, guest
        self._monitor: NftMonitor | None = None
        self._touched = False
        # Of what `save` found, where nothing was written since.
        self._digest: bytes | None = None
        self._ending: Command | None = None
        self._save = f"{family.command}-{backend}-save"
        self._restore = f"{family.command}-{backend}-restore"
        self._lock_wait = options.lock_wait_seconds

    def save(self) -> str:
        """The table as iptables-save prints it; empty where the kernel has none yet."""
        self._finish()
        # What happens from now on is after this look, or at worst both in it and after it.
        self._listen()
        self._touched = False
        self._digest = self._legacy_digest()
        text = saved_table(self._launcher, self._save, "nat")
        if self._monitor is not None:
            self._monitor.knows(_chain_names(text))
        return text

    def restore(self, text: str) -> None:
        """Applies `text` as one transaction, waiting for another iptables to let go of its lock."""
        self._finish()
        self._digest = None
        if len(text) > _LOUD:
            self._stop_listening()
        # Only with a number does -w stop waiting, and only as a word of its own on every version.
        arguments = ["-w", str(self._lock_wait), "--noflush"]
        limit = _TIME_LIMIT + self._lock_wait
        command = Command(self._launcher, self._restore, arguments, limit, text)
        if self._monitor is not None and self._committed(command, self._monitor):
            self._ending = command
        else:
            command.result()

    def _committed(self, command: Command, monitor: NftMonitor) -> bool:
        """Waits for the end of `command`, or until the kernel tells that it took its change.

        From there to the end it takes longer than all before: closing its socket waits until the
        old rules are freed. False where only its end can tell how it went.
        """
        waiting = select.poll()
        for each in (command, monitor):
            waiting.register(each, select.POLLIN)
        while True:
            ready = [number for number, _ in waiting.poll()]
            heard = monitor.hear(command.process)
            self._touched = self._touched or heard.changed
            if heard.committed or command.fileno() in ready:
                return heard.committed

    def _finish(self) -> None:
        """Waits for the end of the last restore, which has had its effect already."""
        command, self._ending = self._ending, None
        if command is not None:
            try:
                command.result()
            except TableError as error:
                # What the kernel told may have been another process of that number.
                log.debug("looking at the table again: %s", error)
                self._touched = True

    def touched(self) -> bool | None:
        """See `Table`; legacy tables have nobody who would tell."""
        self._finish()
        if self._monitor is not None:
            self._touched = self._touched or self._monitor.hear().changed
        elif not self._touched:
            return None
        return self._touched

    def same(self) -> bool:
        """See `Table`; of an nft table only `touched` tells."""
        return self._digest is not None and self._legacy_digest() == self._digest

    def _legacy_digest(self) -> bytes | None:
        # Asking for a table makes it.
        if self._backend != LEGACY or "nat" not in legacy_tables(self._family):
            return None
        try:
            return legacytable.digest(self._family.version)
        except OSError as error:
            log.debug("cannot tell whether the legacy table is the same: %s", error)
            return None

    def _listen(self) -> None:
        """Starts to listen, or forgets what was heard so far."""
        if self._monitor is not None:
            self._monitor.hear()
        elif self._backend == NFT:
            version = self._family.version
            try:
                self._monitor = NftMonitor(version, "nat", self._concerns, self._guest)
            except OSError as error:
                log.debug("cannot listen for changes of nftables: %s", error)

    def _stop_listening(self) -> None:
        """Spares the kernel telling us more of our own change than we could take in."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
            self._touched = True

    def _concerns(self, chain: str) -> bool:
        return chain in BUILT_IN_CHAINS or self._owns(chain)

    def close(self) -> None:
        """Waits for the last restore, and listens no more; another table takes its place."""
        self._finish()
        self._stop_listening()


def saved_table(launcher: Launcher, command: str, table: str, *options: str) -> str:
    """What `command`, one of iptables-save's, prints of `table`; empty where there is none yet.

    Its status alone proves nothing: of a table that it cannot show, iptables-nft-save prints a
    comment and ends well. So either it prints the whole table, or nothing. Raises TableError.
    """
    text = Command(launcher, command, [*options, "-t", table]).result()
    begin, end = _ends(text)
    if any(_INCOMPATIBLE.match(line) for line in begin):
        why = "holds what was made with nft, and iptables cannot use it"
        raise TableError(command, why, FOREIGN_HINT)
    if all(line.startswith("#") for line in begin if line):
        return ""
    if f"*{table}" not in begin or "COMMIT" not in end:
        raise TableError(command, f"printed no whole table {table}")
    return text


def _ends(text: str) -> tuple[list[str], list[str]]:
    """The lines of a saved table before its first rule, and its last ones."""
    rule = _FIRST_RULE.search(text)
    begin = text[: rule.start()] if rule else text
    return begin.split("\n"), text[-_SHOWN_STDERR:].split("\n")


def _chain_names(text: str) -> Iterator[str]:
    """The names of all chains in a saved table."""
    return (line[1:].partition(" ")[0] for line in _ends(text)[0] if line[:1] == ":")


def detect_backend(launcher: Launcher) -> str | None:
    """The backend that the node's kubelet uses; None where it left no trace.

    The order is that of kubernetes-sigs/iptables-wrappers, version 3. Reading a legacy table would
    make it, so legacy is asked only about tables that the kernel already has. Raises TableError.
    """
    for backend in BACKENDS:
        for family in FAMILIES:
            if backend == LEGACY and "mangle" not in legacy_tables(family):
                continue
            command = f"{family.command}-{backend}-save"
            if _path(command) is None:
                continue
            try:
                text = saved_table(launcher, command, "mangle")
            except TableError:
                if family is IPV4:
                    raise
                continue  # A kernel without IPv6 still has a backend.
            if _KUBELET_CHAINS.search(text):
                return backend
    return None


def legacy_tables(family: Family) -> Sequence[str]:
    """The names of the legacy tables that this network namespace has."""
    try:
        return _LEGACY_TABLES[family.version].read_text().split()
    except OSError:
        return ()


def installed(family: Family, backend: str) -> bool:
    """Whether `backend`'s commands for `family` are on this machine."""
    return _path(f"{family.command}-{backend}-restore") is not None


# Services and cron start with a PATH that need not hold the system's own commands.
_SEARCH = ":".join([*os.get_exec_path(), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


def launch(alive: Callable[[], None] = lambda: None) -> Launcher:
    """What the commands of iptables are started with; each has a time limit, and calls `alive`."""
    return Launcher({**os.environ, "PATH": _SEARCH, "LC_ALL": "C"}, alive)


def _path(command: str) -> str | None:
    return shutil.which(command, path=_SEARCH)


class Command:
    """A command of netfilter's that runs; `result` has to be called once. Raises TableError.

    `package` is what it comes with, and `good` are the exit statuses of success.
    """

    def __init__(
        self,
        launcher: Launcher,
        command: str,
        arguments: Sequence[str],
        limit: float = _TIME_LIMIT,
        stdin: str = "",
        package: str = "iptables",
        good: Sequence[int] = (0,),
    ) -> None:
        path = _path(command)
        if path is None:
            raise TableError(command, "not found", f"apt install {package}")
        self._command, self._limit, self._good = command, limit, good
        self._files = ExitStack()
        try:
            self._printed = self._files.enter_context(_memory_file())
            self._complaints = self._files.enter_context(_memory_file())
            with _memory_file() as given:
                given.write(stdin.encode())
                given.seek(0)
                streams = (given, self._printed, self._complaints)
                self._running = launcher.start([path, *arguments], limit, streams)
        except (LaunchError, OSError) as error:
            self._files.close()
            why = error.strerror if isinstance(error, OSError) else error
            raise TableError(command, f"could not be started: {why}") from None

    def fileno(self) -> int:
        """What select(2) finds readable once the command has ended."""
        return self._running.fileno()

    @property
    def process(self) -> int:
        """Its process id."""
        return self._running.process

    def result(self) -> str:
        """What it printed, once it has ended; raises TableError where it failed."""
        with self._files:
            try:
                status, expired = self._running.end()
            except LaunchError as error:
                raise TableError(self._command, str(error)) from None
            if expired:
                why = f"did not end within {self._limit:g} s and was killed"
                raise TableError(self._command, why, hung=True)
            if status not in self._good:
                raise _failure(self._command, status, self._complaints)
            self._printed.seek(0)
            return self._printed.read().decode("utf-8", "replace")


def _memory_file() -> BinaryIO:
    """An unnamed file in memory: it works with a full disk and a read-only file system."""
    return open(os.memfd_create("ipvs-node-agent"), "w+b", buffering=0)


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
    line = int(blamed[1]) if blamed else None
    refused = status in _REFUSED or _NFT_REFUSED.search(text) is not None
    return TableError(command, why, hint, line, by_content=refused and not hint)


def _hint(text: str) -> str:
    if "Permission denied" in text or "must be root" in text:
        return "it needs root, or the capabilities CAP_NET_ADMIN and CAP_NET_RAW"
    # Which of the two it says depends on its version.
    if "incompatible" in text or "CHAIN_ADD failed (Operation not supported)" in text:
        return FOREIGN_HINT
    if "xtables lock" in text:
        return LOCKED_HINT
    return ""
