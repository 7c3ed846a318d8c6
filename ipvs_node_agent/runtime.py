"""The runtime state in /run/ipvs-node-agent: who runs, and which chain names were ever used.

The names outlive a restart with another configuration, so that chains under the old names are
still known as the agent's own. /run is emptied by a reboot, and so are the kernel's tables.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ipvs_node_agent.chainnames import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN, may_be_ours
from ipvs_node_agent.config import Chains
from ipvs_node_agent.errors import RefusedError

log = logging.getLogger(__name__)


def directory() -> Path:
    """Where the runtime state is kept; systemd tells by RUNTIME_DIRECTORY (systemd.exec(5))."""
    return Path(os.environ.get("RUNTIME_DIRECTORY") or "/run/ipvs-node-agent")


@contextmanager
def only_one(doing: str) -> Iterator[None]:
    """Makes sure that no other agent runs on this node meanwhile. Raises RefusedError."""
    path = directory() / "lock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Python's own descriptors are closed in children, so none of them keeps the lock.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        hint = "run it as root" if isinstance(error, PermissionError) else ""
        raise RefusedError(doing, f"cannot open {path}: {error.strerror}", hint) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RefusedError(
            doing, "an agent is already running on this node", "systemctl stop ipvs-node-agent"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def own_names(chains: Chains, known: Iterable[str] = ()) -> frozenset[str]:
    """The names of all chains that are the agent's: those of `chains`, and earlier ones.

    `known` are some of those; the file holds them too, unless it could not be written.
    """
    try:
        earlier = (directory() / "chains").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        earlier = []
    names = {chains.prerouting, chains.output, OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN}
    names.update(filter(may_be_ours, earlier))
    names.update(known)
    return frozenset(names - {chains.mark_masquerade})


def remember_names(names: frozenset[str]) -> None:
    """Keeps `names` for later runs and for `cleanup`; to be called before they are used."""
    path = directory() / "chains"
    content = "".join(f"{name}\n" for name in sorted(names)).encode("ascii")
    try:
        if path.exists() and path.read_bytes() == content:
            return
        new = path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, path)
    except OSError as error:
        log.warning("cannot remember the chains' names in %s: %s", path, error)
