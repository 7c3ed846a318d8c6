"""What runs in the launcher's process is small; what it does is tested through the launcher."""

from __future__ import annotations

import subprocess
import sys

from tests.support.places import REPOSITORY


def test_it_brings_in_nothing_else_of_ours() -> None:
    """All of that would be memory that is there as long as the agent."""
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r});"
        " import ipvs_node_agent.processes.launched;"
        " print(*sorted({name for name in sys.modules if name.startswith('ipvs')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    name = "ipvs_node_agent.processes.launched"
    assert done.stdout.split() == ["ipvs_node_agent", name.rpartition(".")[0], name]
