"""`ipvs-node-agent check`: gathers the facts about this node and judges them; changes nothing."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.check.facts import ClusterFacts, ConfigFacts, Facts, HostFacts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, as_json
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.check.gather_host import look_at_host
from ipvs_node_agent.check.gather_pods import look_at_pods
from ipvs_node_agent.check.judge_cluster import judge
from ipvs_node_agent.commands import output
from ipvs_node_agent.commands.diff import changes_for, looked_around
from ipvs_node_agent.config.file import DEFAULT_PATH, load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError, one_line
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.rules.policy import lacking, to_program

# A running agent may be in the middle of a change: it is given this long to end it, in seconds.
_PATIENCE = 3.0
_COLOURS = {OK: output.GREEN, WARN: output.YELLOW, FAIL: output.RED}


def main(options: argparse.Namespace) -> int:
    """Prints all findings. Raises AgentError."""
    findings = check(options.config)
    if options.output == "json":
        output.print_text(as_json(findings))
    else:
        output.print_text(as_lines(findings, output.takes_colours(sys.stdout)))
    return output.FAILED if any(finding.level == FAIL for finding in findings) else output.OK


def as_lines(findings: Sequence[Finding], colours: bool = False) -> str:
    """A line each, for people; whatever was read from outside is made harmless."""
    lines = []
    for level, what, text, mend in findings:
        said = one_line(f"{what}: {text}", 1000) + (f" => {one_line(mend, 1000)}" if mend else "")
        lines.append(f"{output.coloured(f'{level:4}', _COLOURS[level], colours)}  {said}\n")
    return "".join(lines)


def check(path: Path | None) -> list[Finding]:
    """All findings about this node. Raises UsageError for a configuration named and missing."""
    configuration = _configuration(path)
    config = configuration.config
    cluster = look_at_cluster(config)
    host = look_at_host(config)
    seen = _seen(config, cluster)
    changes = _changes(config, seen, host) if seen is not None else None
    uncovered = look_at_pods(config, seen) if seen is not None else ()
    return judge(Facts(configuration, cluster, host, time.time(), changes, seen, uncovered))


def _configuration(path: Path | None) -> ConfigFacts:
    shown = str(path or DEFAULT_PATH)
    there = os.path.exists(path or DEFAULT_PATH)
    if path is not None and not os.path.isfile(path):
        load(path)  # Bad usage: there is nothing to look at.
    try:
        return ConfigFacts(shown, load(path), there=there)
    except AgentError as error:
        return ConfigFacts(shown, error=error)


def _seen(config: Config, cluster: ClusterFacts) -> Snapshot | None:
    if cluster.node is None or cluster.services is None:
        return None
    try:
        api = Api(Path(config.kubeconfig))
        return looked_around(api, config, Snapshot(cluster.services, cluster.node))
    except AgentError:
        return None


def _changes(
    config: Config, seen: Snapshot, host: HostFacts
) -> tuple[tuple[str, Change], ...] | None:
    if not host.may_program or lacking(config, seen.node, seen.pod_interfaces):
        return None
    wanted = to_program(seen, host.proxy.answer)
    end = time.monotonic() + _PATIENCE
    try:
        while True:
            changes = changes_for(config, wanted)
            if not changes or host.holder is None or time.monotonic() > end:
                return tuple(changes)
            time.sleep(0.3)
    except AgentError:
        return None  # The table that cannot be read has a finding of its own.
