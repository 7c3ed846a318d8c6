"""The processors that the machines can have: ARCH of `make node-test` says which."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A machine: a Debian of image.RELEASES, and which iptables it uses at first."""

    release: str
    backend: str = "nft"


@dataclass(frozen=True)
class Architecture:
    """A processor, by the name that Debian and Go have for it."""

    name: str
    # qemu with a board and a processor, and the board's serial port as Linux calls it.
    emulator: Sequence[str]
    console: str
    nodes: Mapping[str, Node]
    # Whether the machines run side by side.
    at_once: bool
    # The files of tests/node that are played; all of them where there are none.
    chapters: Sequence[str] = ()
    # Time limits are multiplied by it. They are made for two processors that do nothing else.
    patience: float = 3.0


_AMD64 = Architecture(
    "amd64",
    # No cmpxchg16b: under it, this emulation panics Debian 13's kernel every other boot.
    ("qemu-system-x86_64", "-cpu", "max,-cx16"),
    "ttyS0",
    {"debian12": Node("debian12"), "debian13": Node("debian13")},
    at_once=True,
)
_ARM64 = Architecture(
    "arm64",
    # An old one: what newer ones sign their pointers with takes an emulation longest.
    ("qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72"),
    "ttyAMA0",
    {"debian13-nft": Node("debian13", "nft"), "debian13-legacy": Node("debian13", "legacy")},
    at_once=False,
    chapters=(
        "test_1_install",
        "test_1_structures",
        "test_3_rivals",
        "test_5_boots",
        "test_9_journal",
    ),
)


def _asked_for() -> Architecture:
    known = {each.name: each for each in (_AMD64, _ARM64)}
    name = os.environ.get("ARCH") or _AMD64.name
    if name not in known:
        raise SystemExit(f"error: ARCH is {name}, and not one of {', '.join(known)}")
    return known[name]


ARCHITECTURE = _asked_for()
# Whether the machines have another processor than the one they run on.
FOREIGN = ARCHITECTURE is not _AMD64
