"""The runtime state in /run/ipvs-node-agent: who runs, and which chain names were ever used.

The names outlive a restart with another configuration, so that chains under the old names are
still known as the agent's own. /run is emptied by a reboot, and so are the kernel's tables.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipvs_node_agent.config.settings import Chains
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.nat.chains import OWN_MARK_CHAIN, OWN_POSTROUTING_CHAIN, may_be_ours

log = logging.getLogger(__name__)

_DIRECTORY = Path("/run/ipvs-node-agent")
_DIRECTORY_MODE, _LOCK_MODE, _NAMES_MODE = 0o755, 0o600, 0o644


def directory() -> Path:
    """Where the runtime state is kept; systemd tells by RUNTIME_DIRECTORY (systemd.exec(5)).

    Whatever a service starts has the variable, and that of another service is none of ours.
    """
    for each in os.environ.get("RUNTIME_DIRECTORY", "").split(":"):
        if Path(each).name == _DIRECTORY.name:
            return Path(each)
    return _DIRECTORY


@contextmanager
def only_one(doing: str) -> Iterator[None]:
    """Makes sure that no other agent runs on this node meanwhile. Raises RefusedError."""
    path = directory() / "lock"
    try:
        _make(path.parent)
        descriptor = _open(path, os.O_RDWR | os.O_CREAT, _LOCK_MODE)
    except OSError as error:
        hint = "run it as root" if isinstance(error, PermissionError) else ""
        raise RefusedError(doing, f"cannot open {path}: {error.strerror}", hint) from None
    # Python's own descriptors are closed in children, so none of them keeps the lock.
    with open(descriptor, "rb"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            why = "an agent is already running on this node"
            raise RefusedError(doing, why, "systemctl stop ipvs-node-agent") from None
        yield


def _make(path: Path) -> None:
    """Makes the directory, and those above, where they are not there yet. Raises OSError."""
    if path.is_dir():
        return
    _make(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        os.close(_open(path, os.O_RDONLY | os.O_DIRECTORY, _DIRECTORY_MODE))


def _open(path: Path, flags: int, mode: int) -> int:
    """Opens what is not a link, and gives it the mode, whatever the umask is. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def own_names(chains: Chains, known: Iterable[str] = ()) -> frozenset[str]:
    """The names of all chains that are the agent's: those of `chains`, and earlier ones.

    `known` are some of those; the file holds them too, unless it could not be written.
    """
    try:
        # As text, Python would load a codec, which an upgrade of the system may have taken away.
        earlier = (directory() / "chains").read_bytes().decode("ascii").split()
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
        if _holds(path, content):
            return
        new = path.with_suffix(".new")
        # Another agent may have been killed while it wrote.
        new.unlink(missing_ok=True)
        try:
            with open(_open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NAMES_MODE), "wb") as file:
                file.write(content)
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("cannot save the chains' names in %s: %s", path, error)


def _holds(path: Path, content: bytes) -> bool:
    """Whether there is such a file, which everybody may read and only its owner change."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    as_it_should = stat.S_IFREG | _NAMES_MODE
    return status.st_mode == as_it_should and path.read_bytes() == content
