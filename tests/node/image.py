"""The disks that the machines start from: Debian with systemd, a kernel, and what nodes have.

An image is a folder with `disk.img`, `vmlinuz` and `initrd.img`, made once for each recipe and kept
in the cache. Nothing of this repository is in it but how it is set up.

    python3 -m tests.node.image            # makes both, and prints where they are
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tests.environments.chroot import apt, bootstrap, need_debootstrap
from tests.node.architecture import ARCHITECTURE, FOREIGN
from tests.support.cache import NotMade, cache, made_once

CACHE = cache("node")
RELEASES = {"debian12": "bookworm", "debian13": "trixie"}
_PREPARE = Path(__file__).resolve().parent / "guest" / "prepare"

_SYSTEM = (
    f"systemd systemd-sysv dbus udev kmod procps iproute2 linux-image-cloud-{ARCHITECTURE.name}"
)
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
# It rolls out from the node itself, which is to be reached by no network, and asks apt's library.
# For the chapters of a foreign processor it would be compiled in vain.
_ROLE = "" if FOREIGN else " ansible-core python3-apt"
# In two steps, as a kernel's initrd is made by what is there at the time.
_STEPS = (
    "sh /src/tests/node/guest/prepare before",
    apt(f"{_SYSTEM} {_FIREWALLS} {_PROXY} {_AGENT}{_ROLE}"),
    _PERSISTENT,
    "sh /src/tests/node/guest/prepare after",
)
_SIZE = "3G"


def obtain(name: str) -> Path:
    """The folder of an image, made if need be. Raises NotMade."""
    label = f"{ARCHITECTURE.name}-{name}" if FOREIGN else name
    recipe = repr((RELEASES[name], _STEPS, _SIZE, _PREPARE.read_text()))
    folder = CACHE / f"{label}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"

    def make(part: Path, output: IO[bytes]) -> None:
        for other in CACHE.glob(f"{label}-*"):
            if other.is_dir() and other != part:
                shutil.rmtree(other)
        root = part / "root"
        foreign = ARCHITECTURE.name if FOREIGN else ""
        failed = asyncio.run(bootstrap(RELEASES[name], root, _STEPS, output, foreign))
        if failed:
            raise subprocess.CalledProcessError(failed, "its recipe")
        (root / "src").rmdir()  # Where the repository was seen.
        write_filesystem(part / "disk.img", "root", root, _SIZE)
        for kind in ("vmlinuz", "initrd.img"):
            (kernel,) = (root / "boot").glob(f"{kind}-*")
            shutil.copyfile(kernel, part / kind)
        shutil.rmtree(root)

    return made_once(folder, make)


def write_filesystem(path: Path, label: str, folder: Path, size: str) -> None:
    """Writes an ext4 file system with what is in a folder; needs no loop device."""
    options = ["-q", "-t", "ext4", "-L", label, "-d", str(folder)]
    subprocess.run(["mke2fs", *options, str(path), size], check=True)


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
