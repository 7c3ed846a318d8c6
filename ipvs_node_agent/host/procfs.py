"""What /proc tells of this node's processes: who holds a lock, who listens, who is an agent.

Processes of other network namespaces are somebody else's node. What is not to be seen, for lack of
rights or since it has just ended, is left out. Who starts a process chooses its arguments, and with
them its name: so what it is goes by the file that it runs, and by whose process it is.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipvs_node_agent.host import tcpsockets
from ipvs_node_agent.model.addresses import Address

_PROC = Path("/proc")
_MOST_BYTES = 1 << 16
_PREDECESSORS = ("network-node-manager", "ipvs-node-controller")


@dataclass(frozen=True)
class Process:
    """A process of this node's network; `program` is the name of the file that it runs."""

    number: int
    program: str


def lock_holder(path: Path) -> int | None:
    """The process that holds a flock(2) on `path`, found without asking for the lock."""
    try:
        status = path.stat()
    except OSError:
        return None
    device = status.st_dev
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    for line in _read("locks").splitlines():
        # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ...
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == file:
            return int(words[4])
    return None


def agent_processes() -> Iterator[Process]:
    """Everything that runs as an agent of ours, or as one of its predecessors."""
    found = {number: kind for number in _trusted() if (kind := _agent(number))}
    for number, kind in found.items():
        # What one of them is just starting looks like it for a moment.
        if not found.keys() & _status(number, "PPid"):
            yield Process(number, kind)


def _agent(number: int) -> str:
    """The name of the agent that a process runs as, if it is one."""
    program = _program(number)
    if program in _PREDECESSORS:
        return program
    if not program.startswith("python"):
        return ""
    # Its arguments are its own memory: another account's may let us wait for them.
    words = _read(f"{number}/cmdline", _MOST_BYTES).split("\0")[:-1]
    # Started by its script or by `python3 -m`.
    names = [os.path.basename(word) for word in words[:4]]
    ours = "ipvs-node-agent" in names or "ipvs_node_agent" in names
    return "ipvs-node-agent" if ours and "run" in words else ""


def process_called(program: str) -> int | None:
    """A process that runs the program of that name."""
    return next((number for number in _trusted() if _program(number) == program), None)


def _trusted() -> Iterator[int]:
    """The processes of root and of who asks."""
    trusted = {0, os.geteuid()}
    for number in _processes():
        # Those too that it may become again, as one with setuid.
        users = _status(number, "Uid")
        if users and users <= trusted:
            yield number


def _status(number: int, field: str) -> set[int]:
    """The numbers under a field of a process's status."""
    found = re.search(rf"^{field}:([\t0-9]+)$", _read(f"{number}/status"), re.MULTILINE)
    return set(map(int, found[1].split())) if found else set()


def _program(number: int) -> str:
    """The name of the file that a process runs."""
    # As the kernel calls one that an upgrade has replaced.
    return os.path.basename(_link(f"{number}/exe").removesuffix(" (deleted)"))


def _processes() -> Iterator[int]:
    """The processes in this network namespace, but this one."""
    own = _link("self/ns/net")
    for number in sorted(int(name) for name in _names("") if name.isdigit()):
        if own and number != os.getpid() and _link(f"{number}/ns/net") == own:
            yield number


def listener_on(host: str, port: int) -> Process | None:
    """Who listens where nobody else could then, at an IP or any; process 0 where not to be seen."""
    sockets = {f"socket:[{inode}]" for _, inode in _listening(host, port)}
    if not sockets:
        return None
    for number in _processes():
        if any(_link(f"{number}/fd/{name}") in sockets for name in _names(f"{number}/fd")):
            return Process(number, _program(number))
    return Process(0, "")


def users_listening_on(host: str, port: int) -> set[int]:
    """The users, by number, of who listens where nobody else could then; see `listener_on`."""
    return {user for user, _ in _listening(host, port)}


def addresses_listening_on(port: int, user: int) -> set[str]:
    """The addresses at which that user's processes listen on a port."""
    return {str(one.here[0]) for one in tcpsockets.listening(port) if one.user == user}


def user_at_the_far_end(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    """The user, by number, of whoever on this node has the other end of a connection of ours.

    Both are the addresses of sockets (`getsockname`, `getpeername`). None where nobody has it: it
    was not accepted yet, or is closed; for such the kernel names no user, or a wrong one.
    """
    here, there = ((ipaddress.ip_address(host), port) for host, port, *_ in (theirs, ours))
    found = tcpsockets.connected(here, there)
    return None if found is None else found.user


def _listening(host: str, port: int) -> Iterator[tuple[int, int]]:
    """User and inode of each socket that listens there."""
    for one in tcpsockets.listening(port):
        if _meet(host, one.here[0]):
            yield one.user, one.inode


def _meet(host: str, theirs: Address) -> bool:
    """Whether the two are not apart."""
    try:
        ours = ipaddress.ip_address(host)
    except ValueError:
        return True
    return ours == theirs or ours.is_unspecified or theirs.is_unspecified


# What is not to be seen is empty.


def _read(path: str, most: int = -1) -> str:
    try:
        with open(_PROC / path, "rb", buffering=0) as file:
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(_PROC / path)
    except OSError:
        return ""


def _names(path: str) -> list[str]:
    try:
        return os.listdir(_PROC / path)
    except OSError:
        return []
