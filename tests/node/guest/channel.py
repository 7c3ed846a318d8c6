"""Runs in the machine: does what comes over the serial port, and answers there.

A line is a JSON object. Asked: `id`, and either `command` for bash and its `stdin`, `ask` with
connections for traffic.py, or `read` with a file. Told: `id`, `status`, `output` (both streams);
and once at the start `boot`, so that the other side sees who is there now.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import traffic  # type: ignore[import-not-found]  # It is beside this one in the machine.

PORT = "/dev/virtio-ports/bed"
_HANGUP_PAUSE = 0.1


class Channel:
    """The port; many threads may answer at once."""

    def __init__(self) -> None:
        self._port = os.open(PORT, os.O_RDWR)
        self._writing = threading.Lock()

    def tell(self, **message: Any) -> None:
        """Sends one line. The first newline ends what an earlier boot has left unfinished."""
        data = b"\n" + json.dumps(message).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(self._port, data) :]

    def serve(self) -> None:
        """Does what comes, each in a thread of its own."""
        rest = b""
        while True:
            data = os.read(self._port, 1 << 16)
            if not data:
                # Nobody is on the other side.
                threading.Event().wait(_HANGUP_PAUSE)
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                threading.Thread(target=self._do, args=(json.loads(line),), daemon=True).start()

    def _do(self, asked: dict[str, Any]) -> None:
        if "ask" in asked:
            # To start another Python for it would take most of a second.
            self.tell(id=asked["id"], status=0, output=json.dumps(traffic.ask(asked["ask"])))
            return
        if "read" in asked:
            # Looked at over and over, which no process should be started for.
            self.tell(id=asked["id"], status=0, output=Path(asked["read"]).read_text())
            return
        done = subprocess.run(
            ["/bin/bash", "-c", asked["command"]],
            input=asked["stdin"].encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        self.tell(id=asked["id"], status=done.returncode, output=output)


def main() -> None:
    """Says who is here, and serves."""
    os.environ.update(LC_ALL="C.UTF-8", HOME="/root", DEBIAN_FRONTEND="noninteractive")
    channel = Channel()
    with open("/proc/sys/kernel/random/boot_id") as file:
        channel.tell(boot=file.read().strip())
    channel.serve()


if __name__ == "__main__":
    main()
