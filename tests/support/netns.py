"""Network namespaces for tests: made, entered, wired together, and gone with the test.

They live in a mount namespace of the test process, with a /run of its own, so that neither the
host's namespaces nor its iptables lock are ever seen, and nothing outlives the process.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_PRIVATE_REC = (1 << 18) | 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count(1)
_private = threading.Event()


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {doing}: {os.strerror(number)} (kernel tests need root)")


def make_private() -> None:
    """Gives this process its own mounts and an empty /run; needs root, and once is enough."""
    if _private.is_set():
        return
    _check(_libc.unshare(_CLONE_NEWNS), "unshare the mount namespace")
    _check(_libc.mount(b"none", b"/", None, _MS_PRIVATE_REC, None), "make the mounts private")
    _check(_libc.mount(b"run", b"/run", b"tmpfs", 0, b"mode=755"), "mount a tmpfs on /run")
    _private.set()


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self, label: str = "ns") -> None:
        make_private()
        self.name = f"{label}-{os.getpid()}-{next(_serial)}"
        self.path = Path("/run/netns") / self.name
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")
        # Nobody else is there, and checking for a duplicate address takes over a second.
        self.set("ipv6/conf/default/accept_dad", "0")

    def delete(self) -> None:
        """Removes it; the kernel drops it with the last process inside."""
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread, its new sockets and its new children are inside meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(inside, _CLONE_NEWNET), f"enter {self.name}")
            try:
                yield
            finally:
                _check(_libc.setns(before, _CLONE_NEWNET), "go back")
        finally:
            os.close(inside)
            os.close(before)

    def run(self, *command: str, stdin: str = "") -> str:
        """What `command` prints inside; CalledProcessError, with its errors, where it fails."""
        with self.enter():
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=60, check=False
            )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts `command` inside."""
        with self.enter():
            return subprocess.Popen(command, **options)

    def add_address(self, device: str, *addresses: str) -> None:
        """Gives `device` its addresses (ADDRESS/LENGTH); IPv6 ones can be used at once."""
        for address in addresses:
            extra = ["nodad"] if ":" in address else []
            self.run("ip", "address", "add", address, "dev", device, *extra)

    def add_route(self, destination: str, gateway: str) -> None:
        """Sends `destination` by way of `gateway`."""
        self.run("ip", "route", "add", destination, "via", gateway)

    def forward(self) -> None:
        """Makes it a router in both families."""
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.set(key, "1")

    def set(self, key: str, value: str) -> None:
        """Sets one of the kernel's network settings, named by its path below /proc/sys/net."""
        with self.enter():
            Path("/proc/sys/net", key).write_text(value)


def link(left: Namespace, right: Namespace, left_device: str, right_device: str) -> None:
    """A cable between two namespaces, both ends up."""
    make = ["ip", "link", "add", left_device, "type", "veth", "peer", "name", right_device]
    left.run(*make, "netns", right.name)
    left.run("ip", "link", "set", left_device, "up")
    right.run("ip", "link", "set", right_device, "up")


@contextmanager
def namespaces(*labels: str) -> Iterator[tuple[Namespace, ...]]:
    """New namespaces, one for each label, gone at the end."""
    made: list[Namespace] = []
    try:
        for label in labels:
            made.append(Namespace(label))
        yield tuple(made)
    finally:
        for namespace in made:
            namespace.delete()
