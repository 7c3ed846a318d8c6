"""Where the tests keep what takes long to make."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO


class NotMade(Exception):
    """Something could not be made; the message says why."""


def cache(kind: str) -> Path:
    """The folder for one kind of it; it need not be there yet."""
    given = os.environ.get("IPVS_NODE_AGENT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or Path(home, "ipvs-node-agent"), kind).absolute()


def made_once(folder: Path, make: Callable[[Path, IO[bytes]], None]) -> Path:
    """`folder`; where it is not there, `make` fills one beside its place, and other runs wait.

    What `make` starts writes into a log. Raises NotMade with its end where a command fails.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, part = folder.with_name(f"{folder.name}.log"), folder.with_name(f"{folder.name}.part")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{folder.name}: waiting until another run has made it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        _say(f"{folder.name}: being made, which takes minutes; see {log}")
        started = time.monotonic()
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            with log.open("wb") as output:
                make(part, output)
            part.rename(folder)
        except subprocess.CalledProcessError as error:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
            raise NotMade(f"cannot make {folder}: {error}; the end of {log}:\n{end}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _say(f"{folder.name}: made in {time.monotonic() - started:.0f} s")
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
