"""`ipvs-node-agent cleanup`: removes every rule and chain that the agent ever made here."""

from __future__ import annotations

import argparse

from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.host.rundir import only_one, own_names
from ipvs_node_agent.iptables.backends import clean
from ipvs_node_agent.iptables.command import launch


def main(options: argparse.Namespace) -> int:
    """Cleans both families and both backends; prints a line for each. Raises AgentError."""
    config = load(options.config)
    with only_one("cleanup"):
        lines = clean(launch(), own_names(config.chains), config.iptables)
    output.print_text("".join(f"{line}\n" for line in lines))
    return output.OK
