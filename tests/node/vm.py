"""A machine under qemu, without KVM: booted, rebooted, cut off from power, and told what to do.

It is told over a serial port and not over the network, since what it is told breaks its firewalls.
Its disk is an overlay over an image that nobody writes to.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.netns import Namespace
from tests.support.waiting import eventually

BOOT_SECONDS = 180.0
COMMAND_SECONDS = 120.0


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
        self.console = directory / "console.log"
        # What it was told, and how long that took.
        self._record = directory / "commands.log"
        base = ["-b", str(image / "disk.img"), "-F", "raw"]
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *base, str(self._disk)], check=True
        )
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
        with self.console.open("ab") as console:
            self._process = self._namespace.popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self._channel = eventually(self._connected, "qemu's socket")
        reader = threading.Thread(target=self._read, args=(self._channel,), daemon=True)
        reader.start()
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
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = None
        self._boot = ""

    def stop(self) -> None:
        """Leaves nothing behind; the disk goes with its directory."""
        if self._process is not None:
            self.cut_power()
        self._disk.unlink(missing_ok=True)

    def attempt(self, command: str, stdin: str = "", timeout: float = COMMAND_SECONDS) -> Done:
        """Runs a command of bash as root, to its end. Raises Failed where it has none."""
        began = time.monotonic()
        number = self._send(command=command, stdin=stdin)
        try:
            return self._answer(number, command, timeout)
        finally:
            with self._record.open("a") as record:
                record.write(f"{time.monotonic() - began:6.2f} s  {command.strip()}\n")

    def ask(self, connections: list[list[Any]]) -> list[str]:
        """What guest/traffic.py's `ask` gives for these connections."""
        number = self._send(ask=connections)
        found: list[str] = json.loads(self._answer(number, "ask", COMMAND_SECONDS).output)
        return found

    def read(self, path: str) -> str:
        """A file, at no cost of a process."""
        return self._answer(self._send(read=path), path, COMMAND_SECONDS).output

    def _answer(self, number: int, command: str, timeout: float) -> Done:
        with self._changed:
            if not self._changed.wait_for(lambda: self._heard(number), timeout):
                raise Failed(f"no answer within {timeout:g} s: {command}")
            if number not in self._answers:
                raise Failed(f"the machine is gone: {command}\n{self.last_words()}")
            return self._answers.pop(number)

    def run(self, command: str, stdin: str = "", timeout: float = COMMAND_SECONDS) -> str:
        """What a command prints. Raises Failed where its exit status is not 0."""
        done = self.attempt(command, stdin, timeout)
        if done.status:
            raise Failed(f"exit status {done.status}: {command}\n{done.output}")
        return done.output

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Writes a file."""
        self.run(f"install -D -m {mode} /dev/stdin {path}", text)

    def last_words(self, lines: int = 30) -> str:
        """The end of what it has printed on its console."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    @property
    def running(self) -> bool:
        """Whether there is a process, and somebody in it who listens."""
        return self._process is not None and self._process.poll() is None and bool(self._boot)

    def _heard(self, number: int) -> bool:
        return number in self._answers or not self.running

    def _send(self, **asked: Any) -> int:
        if self._channel is None:
            raise Failed(f"the machine is down: {asked}")
        number = next(self._ids)
        self._channel.sendall(json.dumps({"id": number, **asked}).encode() + b"\n")
        return number

    def _wait_for_boot(self, before: str) -> None:
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: self._boot not in ("", before) or self._gone, BOOT_SECONDS
            )
            if not arrived or self._gone:
                raise Failed(f"it does not boot\n{self.last_words()}")

    @property
    def _gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

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
            "qemu-system-x86_64",
            # One processor: two machines with two each would wait for each other's.
            # No cmpxchg16b: under it, this emulation panics Debian 13's kernel every other boot.
            *("-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-m", "2048", "-smp", "1"),
            *("-display", "none", "-monitor", "none", "-serial", "stdio", "-nodefaults"),
            *("-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd.img")),
            "-append",
            # What defends a real machine costs an emulated one a tenth of its time.
            "root=LABEL=root console=ttyS0 net.ifnames=0 quiet panic=-1 systemd.show_status=0"
            " mitigations=off init_on_alloc=0 audit=0",
            "-drive",
            # What it has flushed survives its end; what the host keeps in memory does as well.
            f"file={self._disk},if=virtio,format=qcow2",
            *("-drive", f"file={self._bed},if=virtio,format=raw,readonly=on"),
            *("-netdev", "user,id=uplink,ipv6=off"),
            *("-device", "virtio-net-pci,netdev=uplink", "-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=channel,path={self._socket_path},server=on,wait=off"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=channel,name=bed"),
        ]


def make_bed(files: dict[str, Path], path: Path) -> None:
    """Writes a file system with these files, for the machine to read."""
    folder = path.with_suffix(".files")
    folder.mkdir()
    size = 16 << 20
    for name, source in files.items():
        shutil.copy(source, folder / name)
        size += source.stat().st_size
    command: list[str | Path] = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        "bed",
        "-d",
        folder,
        path,
        f"{size >> 10}k",
    ]
    subprocess.run(command, check=True)
    shutil.rmtree(folder)
