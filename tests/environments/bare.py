"""Runs a command in a bare Debian that has nothing but what debootstrap puts there, once.

    python3 -m tests.environments.bare trixie -- COMMAND [ARG...]

Other than in the environments the command reaches what apt reaches on the host. What it writes goes
away with the chroot.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from pathlib import Path

from tests.environments.chroot import bootstrap, need_debootstrap, tail


def main(release: str, separator: str, *command: str) -> int:
    """The command's exit status, or that of what failed before; the output is told either way."""
    assert separator == "--"
    need_debootstrap()
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "log"
        with log.open("wb") as output:
            step = f"cd /src && {shlex.join(command)}"
            status = asyncio.run(bootstrap(release, Path(work) / "root", [step], output))
        print(tail(log, 40 if status else 10), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
