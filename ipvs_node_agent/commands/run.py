"""`ipvs-node-agent run`: what comes before the main loop.

A start takes a second or two, of which Python needs a fifth to import all that a main loop is made
of. The kubeconfig is read in a process of its own meanwhile.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.host.memory import collect_seldom, return_freed_memory
from ipvs_node_agent.host.rundir import only_one
from ipvs_node_agent.host.systemd import ServiceManager
from ipvs_node_agent.kubeconfig.reader import Reader


def main(options: argparse.Namespace) -> int:
    """Runs the agent as a service of systemd's, or by hand. Raises AgentError."""
    run(options.config, ServiceManager(os.environ))
    return output.OK


def run(config_path: Path | None, manager: ServiceManager) -> None:
    """Runs the agent until SIGTERM or SIGINT, and tells `manager` of it. Raises AgentError."""
    config = load(config_path)
    with only_one("run"):
        # Before there is another thread, which would have memory of its own.
        return_freed_memory()
        collect_seldom()
        reader = Reader(Path(config.kubeconfig))
        reader.begin()
        from ipvs_node_agent.commands.mainloop import MainLoop

        MainLoop(config_path, config, manager, reader).run()
