"""What /proc tells of this node's processes: who holds a lock, who listens, who is an agent.

Processes of other network namespaces are somebody else's node. What is not to be seen, for lack of
rights or since it has just ended, is left out.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ipvs_node_agent.facts import Process

_PROC = Path("/proc")
_LISTENING = "0A"
_PREDECESSORS = ("network-node-manager", "ipvs-node-controller")


def lock_holder(path: Path) -> int | None:
    """The process that holds a flock(2) on `path`, found without asking for the lock."""
    try:
        status = path.stat()
        locks = (_PROC / "locks").read_text()
    except OSError:
        return None
    device = status.st_dev
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    for line in locks.splitlines():
        # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ...
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == file:
            return int(words[4])
    return None


def agent_processes() -> Iterator[Process]:
    """Everything that runs as an agent of ours, or as one of its predecessors."""
    found = {number: program for number, words in _commands() if (program := _agent(words))}
    for number, program in found.items():
        # What one of them is just starting looks like it for a moment.
        if _parent(number) not in found:
            yield Process(number, program)


def _parent(number: int) -> int | None:
    try:
        return int((_PROC / f"{number}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _agent(words: Sequence[str]) -> str:
    names = [os.path.basename(word) for word in words[:4]]
    if names[0] in _PREDECESSORS:
        return names[0]
    # Started by its script or by `python3 -m`; what starts it in turn, such as sudo, is none.
    ours = "ipvs-node-agent" in names or "ipvs_node_agent" in names
    return "ipvs-node-agent" if ours and "python" in names[0] and "run" in words else ""


def process_called(program: str) -> int | None:
    """A process whose program has that name."""
    return next((n for n, words in _commands() if os.path.basename(words[0]) == program), None)


def _commands() -> Iterator[tuple[int, list[str]]]:
    """The command lines of the processes in this network namespace, but this process."""
    try:
        own = os.readlink("/proc/self/ns/net")
        numbers = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return
    for number in sorted(numbers):
        try:
            if number == os.getpid() or os.readlink(_PROC / f"{number}/ns/net") != own:
                continue
            words = (_PROC / f"{number}/cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        if words:
            yield number, [word.decode("utf-8", "replace") for word in words]


def listener_on(host: str, port: int) -> Process | None:
    """Who listens where nobody else could then; process 0 where that is not to be seen.

    `host` is an IP address, or a name that stands for all of them.
    """
    inodes = {inode for _, inode in _listening(host, port)}
    if not inodes:
        return None
    for number, words in _commands():
        if inodes & set(_sockets(number)):
            return Process(number, os.path.basename(words[0]))
    return Process(0, "")


def users_listening_on(host: str, port: int) -> set[int]:
    """The users, by number, of who listens where nobody else could then; see `listener_on`."""
    return {user for user, _ in _listening(host, port)}


def _listening(host: str, port: int) -> Iterator[tuple[int, str]]:
    """User and inode of each socket that listens there."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # NUMBER: ADDRESS:PORT PEER STATE QUEUES TIMER RETRIES USER TIMEOUT INODE ...
            words = line.split()
            address, _, theirs = words[1].rpartition(":")
            if words[3] == _LISTENING and int(theirs, 16) == port and _meet(host, address):
                yield int(words[7]), words[9]


def _meet(host: str, address: str) -> bool:
    """Whether `host` and the address of a line in /proc/net are not apart."""
    # 32 bits at a time, each in the machine's own order.
    raw = bytes.fromhex(address)
    words = (raw[place : place + 4] for place in range(0, len(raw), 4))
    order = 1 if sys.byteorder == "big" else -1
    theirs = ipaddress.ip_address(b"".join(word[::order] for word in words))
    try:
        ours = ipaddress.ip_address(host)
    except ValueError:
        return True
    return ours == theirs or ours.is_unspecified or theirs.is_unspecified


def _sockets(number: int) -> Iterator[str]:
    try:
        descriptors = list((_PROC / f"{number}/fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
        except OSError:
            continue
        if found:
            yield found[1]
