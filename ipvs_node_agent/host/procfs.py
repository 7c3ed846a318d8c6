"""What /proc tells of this node's processes: who holds a lock, who listens, who is an agent.

Processes of other network namespaces are somebody else's node. What is not to be seen, for lack of
rights or since it has just ended, is left out. Who starts a process chooses its arguments, and with
them its name: so what it is goes by the file that it runs, and by whose process it is.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ipvs_node_agent.model.addresses import Address

_End = tuple[Address, int]

_PROC = Path("/proc")
# In /proc/net: the state of a socket, and the inode of one that no process has.
_LISTENING, _NOBODYS = "0A", "0"
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
    found = (one for one in _tcp_sockets(port) if one.state == _LISTENING)
    return {str(one.here[0]) for one in found if one.user == user and one.here[1] == port}


def user_at_the_far_end(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    """The user, by number, of whoever on this node has the other end of a connection of ours.

    Both are the addresses of sockets (`getsockname`, `getpeername`). None where nobody has it: it
    was not accepted yet, or is closed; for such the kernel names no user, or a wrong one.
    """
    ends = [(ipaddress.ip_address(host), port) for host, port, *_ in (theirs, ours)]
    for one in _tcp_sockets(ends[0][1]):
        if [one.here, one.there] == ends and one.inode != _NOBODYS:
            return one.user
    return None


def _listening(host: str, port: int) -> Iterator[tuple[int, str]]:
    """User and inode of each socket that listens there."""
    for one in _tcp_sockets(port):
        if one.state == _LISTENING and _meet(host, one.here[0]):
            yield one.user, one.inode


class _Tcp(NamedTuple):
    """A line of /proc/net/tcp or /proc/net/tcp6."""

    here: _End
    there: _End
    state: str
    user: int
    inode: str


def _tcp_sockets(port: int) -> Iterator[_Tcp]:
    """Those of this network namespace that have this port."""
    for name in ("tcp", "tcp6"):
        for line in _read(f"net/{name}").splitlines()[1:]:
            # NUMBER: ADDRESS:PORT PEER STATE QUEUES TIMER RETRIES USER TIMEOUT INODE ...
            words = line.split()
            if words[1].endswith(f":{port:04X}"):
                here, there = _end(words[1]), _end(words[2])
                yield _Tcp(here, there, words[3], int(words[7]), words[9])


def _end(text: str) -> _End:
    """An address and port of /proc/net; what is IPv4 for IPv6's sockets is IPv4."""
    # 32 bits at a time, each in the machine's own order.
    raw, port = bytes.fromhex(text[:-5]), int(text[-4:], 16)
    words = (raw[place : place + 4] for place in range(0, len(raw), 4))
    order = 1 if sys.byteorder == "big" else -1
    address = ipaddress.ip_address(b"".join(word[::order] for word in words))
    return getattr(address, "ipv4_mapped", None) or address, port


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
