"""A machine under qemu, without KVM: booted, rebooted, cut off from power, and told what to do.

It is told over a serial port and not over the network, since what it is told breaks its firewalls.
Its disk is an overlay over an image that nobody writes to.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.node.architecture import ARCHITECTURE
from tests.node.image import write_filesystem
from tests.support.netns import Namespace
from tests.support.waiting import PATIENCE, eventually

_BOOT_SECONDS = 180.0
_COMMAND_SECONDS = 120.0


class Failed(AssertionError):
    """A command in the machine ended with an error, or not at all."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    output: str


class Machine:
    """One machine. `bed` is a file system that it sees as /bed, read-only."""

    def __init__(self, image: Path, bed: Path, namespace: Namespace, directory: Path) -> None:
        self._image, self._bed, self._namespace = image, bed, namespace
        self._disk = directory / "disk.qcow2"
        self._socket_path = directory / "channel"
        self._console = directory / "console.log"
        self._console.touch()
        # What it was told, and how long that took.
        self._record = directory / "commands.log"
        base = ["-b", str(image / "disk.img"), "-F", "raw"]
        subprocess.run(["qemu-img", "create", "-qf", "qcow2", *base, self._disk], check=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ids = itertools.count(1)
        self._answers: dict[int, Done] = {}
        self._changed = threading.Condition()
        self._boot = ""

    def start(self) -> float:
        """Boots it, and waits until it does what it is told; how many seconds that took."""
        began = time.monotonic()
        self._socket_path.unlink(missing_ok=True)
        with self._console.open("ab") as console:
            self._process = self._namespace.popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self._channel = eventually(self._connected, "qemu's socket")
        threading.Thread(target=self._read, args=(self._channel,), daemon=True).start()
        self._wait_for_boot("")
        return time.monotonic() - began

    def reboot(self) -> float:
        """Reboots it as an operator does; how many seconds until it is there again."""
        began, before = time.monotonic(), self._boot
        self._send(command="systemctl reboot", stdin="")
        self._wait_for_boot(before)
        return time.monotonic() - began

    def cut_power(self) -> None:
        """Ends it between two instructions. What it had not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = None
        self._boot = ""

    def stop(self) -> None:
        """Leaves nothing behind; the disk goes with its directory."""
        self.cut_power()
        self._disk.unlink(missing_ok=True)

    def attempt(self, command: str, stdin: str = "", timeout: float = _COMMAND_SECONDS) -> Done:
        """Runs a command of bash as root, to its end. Raises Failed where it has none."""
        began = time.monotonic()
        try:
            return self._told(command, timeout, command=command, stdin=stdin)
        finally:
            with self._record.open("a") as record:
                record.write(f"{time.monotonic() - began:6.2f} s  {command.strip()}\n")

    def run(self, command: str, stdin: str = "", timeout: float = _COMMAND_SECONDS) -> str:
        """What a command prints. Raises Failed where its exit status is not 0."""
        done = self.attempt(command, stdin, timeout)
        if done.status:
            raise Failed(f"exit status {done.status}: {command}\n{done.output}")
        return done.output

    def ask(self, connections: list[list[Any]]) -> list[str]:
        """What guest/traffic.py's `ask` gives for these connections."""
        found: list[str] = json.loads(self._told("ask", ask=connections).output)
        return found

    def read(self, path: str) -> str:
        """A file, at no cost of a process."""
        return self._told(path, read=path).output

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Writes a file."""
        self.run(f"install -D -m {mode} /dev/stdin {path}", text)

    def last_words(self) -> str:
        """The end of what it has printed on its console."""
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-30:])

    @property
    def running(self) -> bool:
        """Whether there is a process, and somebody in it who listens."""
        return not self._gone and bool(self._boot)

    @property
    def _gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _told(self, what: str, timeout: float = _COMMAND_SECONDS, **asked: Any) -> Done:
        timeout *= PATIENCE
        number = self._send(**asked)
        with self._changed:
            if not self._changed.wait_for(
                lambda: number in self._answers or not self.running, timeout
            ):
                raise Failed(f"no answer within {timeout:g} s: {what}")
            if number not in self._answers:
                raise Failed(f"the machine is gone: {what}\n{self.last_words()}")
            return self._answers.pop(number)

    def _send(self, **asked: Any) -> int:
        if self._channel is None:
            raise Failed(f"the machine is down: {asked}")
        number = next(self._ids)
        self._channel.sendall(json.dumps({"id": number, **asked}).encode() + b"\n")
        return number

    def _wait_for_boot(self, before: str) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._boot not in ("", before) or self._gone, _BOOT_SECONDS * PATIENCE
            )
            if self._boot in ("", before) or self._gone:
                raise Failed(f"it does not boot\n{self.last_words()}")

    def _connected(self) -> socket.socket | None:
        if self._gone:
            raise Failed(f"qemu does not start\n{self.last_words()}")
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(str(self._socket_path))
        except OSError:
            made.close()
            return None
        return made

    def _read(self, channel: socket.socket) -> None:
        """Takes what the machine says, until it is gone."""
        try:
            for line in channel.makefile("rb"):
                if line.strip():
                    self._take(json.loads(line))
        except (OSError, ValueError):
            pass
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._changed:
            if "boot" in message:
                self._boot = message["boot"]
            else:
                self._answers[message["id"]] = Done(message["status"], message["output"])
            self._changed.notify_all()

    def _command(self) -> list[str]:
        return [
            *ARCHITECTURE.emulator,
            # One processor: two machines with two each would wait for each other's.
            *("-accel", "tcg,thread=multi", "-m", "2048", "-smp", "1"),
            *("-display", "none", "-monitor", "none", "-serial", "stdio", "-nodefaults"),
            *("-kernel", f"{self._image}/vmlinuz", "-initrd", f"{self._image}/initrd.img"),
            "-append",
            # What defends a real machine costs an emulated one a tenth of its time.
            f"root=LABEL=root console={ARCHITECTURE.console} net.ifnames=0 quiet panic=-1"
            " systemd.show_status=0 mitigations=off init_on_alloc=0 audit=0",
            # What it has flushed survives its end; what the host keeps in memory does as well.
            *("-drive", f"file={self._disk},if=virtio,format=qcow2"),
            *("-drive", f"file={self._bed},if=virtio,format=raw,readonly=on"),
            *("-netdev", "user,id=uplink,ipv6=off"),
            *("-device", "virtio-net-pci,netdev=uplink", "-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=channel,path={self._socket_path},server=on,wait=off"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=channel,name=bed"),
        ]


def make_bed(files: list[Path], path: Path) -> None:
    """Writes a file system with these files, for the machine to read."""
    folder = path.with_suffix(".files")
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    size = sum(file.stat().st_size for file in files) + (16 << 20)
    write_filesystem(path, "bed", folder, f"{size >> 10}k")
    shutil.rmtree(folder)
