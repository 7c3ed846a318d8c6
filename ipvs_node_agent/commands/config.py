"""`ipvs-node-agent config`: reads the configuration as `run` does, and shows what is in effect.

The service's reload begins with it, so that a bad file fails the reload with its sentence.
"""

from __future__ import annotations

import argparse

from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load_with_keys
from ipvs_node_agent.config.shown import in_effect


def main(options: argparse.Namespace) -> int:
    """Prints the configuration, unless it is to be quiet. Raises UsageError."""
    loaded = load_with_keys(options.file or options.config)
    if not options.quiet:
        output.print_text(in_effect(loaded))
    return output.OK
