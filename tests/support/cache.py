"""Where the tests keep what takes long to make."""

from __future__ import annotations

import os
from pathlib import Path


def cache(kind: str) -> Path:
    """The folder for one kind of it; it need not be there yet."""
    given = os.environ.get("IPVS_NODE_AGENT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or Path(home, "ipvs-node-agent"), kind).absolute()
