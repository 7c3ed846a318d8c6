"""Nodes on which things go wrong: broken commands, held locks, and the processes that pile up."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Whether tests of endurance take as long as they should, instead of as long as everyday allows.
LONG = bool(os.environ.get("IPVS_NODE_AGENT_LONG"))

# For what does not depend on the backend.
ANY_BACKEND = pytest.mark.parametrize("backend", ["nft", "legacy"] if LONG else ["nft"])

_SYSTEM = Path("/usr/sbin")


class Commands:
    """The commands of iptables for one agent alone, which a test can break and mend.

    They are a copy of the system's in `directory`, seen in the place of the system's by what
    `wrapper` starts, in a mount namespace of its own.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        for path in _SYSTEM.glob("*tables*"):
            shutil.copy2(path, directory / path.name, follow_symlinks=False)
        bind = f'mount --bind "{directory}" {_SYSTEM} && exec "$@"'
        self.wrapper = ["unshare", "--mount", "sh", "-c", bind, "sh"]

    def remove(self, name: str) -> None:
        """Has the command `name` missing."""
        (self._directory / name).unlink()

    def replace(self, name: str, script: str) -> None:
        """Has `script`, of the shell, run as the command `name`."""
        new = self._directory / "new"
        new.write_text(f'#!/bin/sh\ndate +%s.%N >>"$0.calls"\n{script}\n')
        new.chmod(0o755)
        new.replace(self._directory / name)

    def mend(self, name: str) -> None:
        """Has the system's command back."""
        (self._directory / name).unlink(missing_ok=True)
        shutil.copy2(_SYSTEM / name, self._directory / name, follow_symlinks=False)

    def calls(self, name: str) -> list[float]:
        """When the replaced command `name` was started, in seconds."""
        path = self._directory / f"{name}.calls"
        return [float(line) for line in path.read_text().split()] if path.exists() else []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock on `path` that flock(2) gives."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
