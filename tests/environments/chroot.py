"""Chroots: what a program in one needs from the host, and namespaces that end with it."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# Where the folder in KUBEBUILDER_ASSETS is seen inside: a cluster's binaries, for tests/cluster.
ASSETS = "/assets"

_GRACE_SECONDS = 3

Say = Callable[[str], None]


def passed_on(*patterns: str) -> dict[str, str]:
    """The host's environment variables that a command inside is to see."""
    wanted = re.compile("|".join(patterns))
    return {key: value for key, value in os.environ.items() if wanted.fullmatch(key)}


def take_over_network_settings(root: Path) -> None:
    """Lets apt and pip reach in the chroot what they reach on the host, by proxy or private CA too.

    The host's hooks of apt stay out: they call programs that the chroot does not have.
    """
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    for name in {"/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", bundle, os.getenv("PIP_CERT")}:
        if name and os.path.isfile(name):
            inside = root / name.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.unlink(missing_ok=True)
            shutil.copyfile(name, inside)
    dump = subprocess.run(["apt-config", "dump"], check=True, stdout=subprocess.PIPE, text=True)
    kept = re.findall(r"(?im)^Acquire::(?:https?|Check-|Retries|ForceIPv).*\n", dump.stdout)
    (root / "etc/apt/apt.conf.d/80host").write_text("".join(kept))


async def isolated(
    arguments: Sequence[str | Path], output: IO[bytes] | None, *, network: bool
) -> int:
    """Runs a program in namespaces of its own, and ends with it all it started and mounted.

    The kernel sees to that even when this process is killed: the namespaces' first process dies
    with unshare, and unshare dies with this process.
    """
    namespaces = ["--mount", "--pid", "--ipc", "--uts"] + ([] if network else ["--net"])
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", *namespaces, "--propagation", "private", "--mount-proc"),
        *("--fork", "--kill-child", *arguments),
        stdin=subprocess.DEVNULL if output else None,
        stdout=output,
        stderr=output,
    )
    try:
        return await process.wait()
    except asyncio.CancelledError:
        # A Ctrl-C has reached the program as well: pytest reports what it has done so far.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
        raise
    finally:
        if process.returncode is None:
            # Not process.kill(): that can take the exit status away from under the event loop.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


def inside(
    root: Path, writes: str, variables: Mapping[str, str], command: Sequence[str]
) -> list[str | Path]:
    """The arguments that run a command in the chroot, in exactly this environment."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if (root / "venv").is_dir():
        path = f"/venv/bin:{path}"
    variables = {**variables, "PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}
    if os.environ.get("KUBEBUILDER_ASSETS"):
        variables["KUBEBUILDER_ASSETS"] = ASSETS
    settings = [f"{key}={value}" for key, value in variables.items()]
    return [HERE / "enter", root, REPOSITORY, writes, "env", "-iC", "/src", *settings, *command]


def apt(packages: str) -> str:
    """The shell script that installs Debian packages in a chroot, and keeps nothing else."""
    command = "apt-get -o DPkg::Use-Pty=0 -o Acquire::Languages=none -o Acquire::Retries=5"
    return (
        f"export DEBIAN_FRONTEND=noninteractive; {command} update"
        f" && {command} install -y --no-install-recommends {packages}"
        " && apt-get clean && rm -rf /var/lib/apt/lists/*"
    )


async def bootstrap(
    release: str, root: Path, steps: Sequence[str], output: IO[bytes], foreign: str = ""
) -> int:
    """Makes a bare Debian and runs shell scripts in it, until one fails; the exit status.

    `foreign` is Debian's name of a processor that is not this machine's.
    """
    emulated = (HERE / "emulated", foreign) if foreign else ()
    kind = (f"--arch={foreign}",) if foreign else ()
    variables = passed_on("PIP_.*", "(?i:(https?|no)_proxy)")
    variables.setdefault("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    bare = (*emulated, "debootstrap", "--variant=minbase", *kind, release, root)
    failed = await isolated(bare, output, network=True)
    for step in steps:
        if not failed:
            take_over_network_settings(root)
            shell = inside(root, "keep", variables, ["sh", "-c", step])
            failed = await isolated([*emulated, *shell], output, network=True)
    return failed


def need_debootstrap() -> None:
    """Makes sure that chroots can be made here; needs root."""
    os.umask(0o022)  # A chroot has users other than root.
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # Some shells leave these out, even root's.
    if not shutil.which("debootstrap"):
        get = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
        subprocess.run([*get, "update"], check=True, stdout=sys.stderr)
        subprocess.run([*get, "install", "-y", "debootstrap"], check=True, stdout=sys.stderr)


async def hold(lock: IO[str], kind: int, say: Say, reason: str) -> None:
    """Waits for a lock without blocking the event loop, and says why when it has to."""
    for attempt in itertools.count():
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == 0:
                say(reason)
            await asyncio.sleep(0.2)


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
