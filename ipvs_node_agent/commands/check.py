"""`ipvs-node-agent check`: gathers the facts about this node and judges them; changes nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ipvs_node_agent.check.facts import Cluster, Configuration, Facts, Host
from ipvs_node_agent.check.finding import Finding
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.check.gather_host import look_at_host
from ipvs_node_agent.check.judge_cluster import judge
from ipvs_node_agent.commands.diff import changes_for
from ipvs_node_agent.config.settings import DEFAULT_PATH, Config, load
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host.kubeproxy import to_program
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.rules.policy import lacking

# A running agent may be in the middle of a change: it is given this long to end it, in seconds.
_PATIENCE = 3.0


def check(path: Path | None) -> list[Finding]:
    """All findings about this node. Raises UsageError for a configuration named and missing."""
    configuration = _configuration(path)
    config = configuration.config
    cluster = look_at_cluster(config)
    host = look_at_host(config)
    changes = _changes(config, cluster, host)
    return judge(Facts(configuration, cluster, host, time.time(), changes))


def _configuration(path: Path | None) -> Configuration:
    shown = str(path or DEFAULT_PATH)
    there = os.path.exists(path or DEFAULT_PATH)
    if path is not None and not there:
        load(path)  # Bad usage: there is nothing to look at.
    try:
        return Configuration(shown, load(path), there=there)
    except AgentError as error:
        return Configuration(shown, error=error)


def _changes(config: Config, cluster: Cluster, host: Host) -> tuple[tuple[str, Change], ...] | None:
    if cluster.node is None or cluster.services is None or not host.may_program:
        return None
    if lacking(config, cluster.node):
        return None
    wanted = to_program(Snapshot(cluster.services, cluster.node), host.proxy.answer)
    end = time.monotonic() + _PATIENCE
    try:
        while True:
            changes = changes_for(config, wanted)
            if not changes or host.holder is None or time.monotonic() > end:
                return tuple(changes)
            time.sleep(0.3)
    except AgentError:
        return None  # The table that cannot be read has a finding of its own.
