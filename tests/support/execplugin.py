"""Kubeconfigs whose credentials a program makes (client.authentication.k8s.io)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.kubeconfigs import URL, document, write
from tests.support.processes import runs
from tests.support.waiting import eventually

VERSION = "client.authentication.k8s.io/v1beta1"


def plugin(directory: Path, body: str) -> dict[str, Any]:
    """A user whose credentials a program makes."""
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    return {"exec": {"apiVersion": VERSION, "command": str(script), "interactiveMode": "Never"}}


def saying(**status: Any) -> str:
    """A plugin's body that gives this."""
    said = {"apiVersion": VERSION, "kind": "ExecCredential", "status": status}
    return f"cat <<'END'\n{json.dumps(said)}\nEND"


class Hanging:
    """A kubeconfig at `path` whose plugin, and what that starts, hang until they are ended."""

    def __init__(self, directory: Path, url: str, user: dict[str, Any]) -> None:
        self._directory = directory
        # Renamed, so that nobody reads half of it.
        body = f"sleep 1000 &\necho $$ $! > {directory}/new.$$\n"
        body += f"mv {directory}/new.$$ {directory}/started.$$\nwait"
        content = document({**user, **plugin(directory, body)}, server=url)
        self.path = write(directory / "hangs.conf", content)

    def started(self) -> list[int]:
        """The process ids of all so far."""
        texts = [path.read_text() for path in self._directory.glob("started.*")]
        return [int(number) for text in texts for number in text.split()]

    def running(self) -> list[int]:
        """The process ids of those that have not ended."""
        return list(filter(runs, self.started()))

    def is_over(self) -> None:
        """Waits until none of them runs any more."""
        assert self.started()
        eventually(lambda: not self.running(), "the end of the plugin", timeout=5)


@contextmanager
def hanging_plugin(directory: Path, url: str = URL, **user: Any) -> Iterator[Hanging]:
    """A kubeconfig with a plugin that hangs; what a test leaves of it is ended."""
    directory.mkdir(exist_ok=True)
    made = Hanging(directory, url, user)
    try:
        yield made
    finally:
        for number in made.running():
            os.kill(number, signal.SIGKILL)
