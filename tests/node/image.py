"""The disks that the machines start from: Debian with systemd, a kernel, and what nodes have.

An image is a folder with `disk.img`, `vmlinuz` and `initrd.img`. It is made once for each recipe,
beside its place, and kept in the cache. Nothing of this repository is in it but how it is set up.

    python3 -m tests.node.image            # makes both, and prints where they are
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.environments.chroot import apt, bootstrap, need_debootstrap, tail
from tests.support.cache import cache

CACHE = cache("node")
RELEASES = {"debian12": "bookworm", "debian13": "trixie"}
_PREPARE = Path(__file__).resolve().parent / "guest" / "prepare"

_SYSTEM = "systemd systemd-sysv dbus udev kmod procps iproute2 linux-image-cloud-amd64"
# What keeps rules on a Debian host. Of these, ufw and netfilter-persistent exclude one another.
_FIREWALLS = "nftables ufw firewalld"
_PERSISTENT = (
    "cd /opt && apt-get update && apt-get download netfilter-persistent iptables-persistent"
    " && for package in *.deb; do"
    " dpkg-deb --fsys-tarfile $package | tar -x --keep-directory-symlink -C /; done"
    " && rm -rf *.deb /var/lib/apt/lists/*"
)
# What kube-proxy calls.
_PROXY = "iptables ipset ipvsadm conntrack"
# What the package depends on, so that apt needs no network.
_AGENT = (
    "python3-kubernetes python3-sh python3-yaml python3-cryptography python3-urllib3"
    " python3-prometheus-client"
)
# In two steps, as a kernel's initrd is made by what is there at the time.
_STEPS = (
    "sh /src/tests/node/guest/prepare before",
    apt(f"{_SYSTEM} {_FIREWALLS} {_PROXY} {_AGENT}"),
    _PERSISTENT,
    "sh /src/tests/node/guest/prepare after",
)
_SIZE = "3G"


class NotMade(Exception):
    """An image could not be made; the message says why."""


def obtain(name: str) -> Path:
    """The folder of an image, made if need be. Raises NotMade."""
    folder = _location(name)
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"{name}: waiting until another run has made the image")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _make(name, folder)
    return folder


def _location(name: str) -> Path:
    recipe = repr((RELEASES[name], _STEPS, _SIZE, _PREPARE.read_text()))
    return CACHE / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _make(name: str, folder: Path) -> None:
    for other in CACHE.glob(f"{name}-*"):
        shutil.rmtree(other)
    part = folder.with_name(f"{folder.name}.part")
    log = CACHE / f"{name}.build.log"
    _say(f"{name}: the image is being made, see {log}")
    started = time.monotonic()
    part.mkdir()
    root = part / "root"
    try:
        with log.open("wb") as output:
            if asyncio.run(bootstrap(RELEASES[name], root, _STEPS, output)):
                raise NotMade(f"cannot make the image of {name}; the end of {log}:\n{tail(log)}")
            (root / "src").rmdir()  # Where the repository was seen.
            disk = part / "disk.img"
            # Without a loop device: the file system is written out of the folder.
            make: list[str | Path] = [
                "mke2fs",
                "-q",
                *("-t", "ext4"),
                *("-L", "root"),
                "-d",
                root,
                disk,
                _SIZE,
            ]
            subprocess.run(make, check=True, stdout=output, stderr=output)
        for kind in ("vmlinuz", "initrd.img"):
            (kernel,) = (root / "boot").glob(f"{kind}-*")
            shutil.copyfile(kernel, part / kind)
        shutil.rmtree(root)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _say(f"{name}: made in {time.monotonic() - started:.0f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def obtain_all(names: Iterable[str] = RELEASES) -> list[Path]:
    """The folders of these images, made side by side if need be. Raises NotMade."""
    need_debootstrap()
    with ThreadPoolExecutor() as pool:
        return list(pool.map(obtain, names))


if __name__ == "__main__":
    try:
        print(*obtain_all(), sep="\n")
    except NotMade as error:
        sys.exit(f"error: {error}")
