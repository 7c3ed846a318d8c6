"""`ipvs-node-agent check`: gathers the facts about this node and judges them; changes nothing.

What takes long is looked at at the same time, in threads that nobody waits for where a signal ends
the command. Findings are told in an order that stays, each as soon as the
facts that it takes are known.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Generic, NamedTuple, TypeVar

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.check.facts import ClusterFacts, ConfigFacts, Facts, HostFacts
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, as_json, as_line
from ipvs_node_agent.check.gather_cluster import look_at_cluster
from ipvs_node_agent.check.gather_host import look_at_host
from ipvs_node_agent.check.gather_pods import look_at_pods
from ipvs_node_agent.check.judge import (
    OF_ACCESS,
    OF_CLUSTER,
    OF_CONFIGURATION,
    OF_HOST,
    OF_RULES,
    judged,
)
from ipvs_node_agent.commands import output
from ipvs_node_agent.commands.diff import (
    Tables,
    as_the_agent_sees,
    changes_between,
    looked_around,
    tables_of,
)
from ipvs_node_agent.config.file import DEFAULT_PATH, load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host.rundir import own_names
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.model.addresses import FAMILIES
from ipvs_node_agent.model.objects import Problem, Snapshot, UncoveredPod
from ipvs_node_agent.nat.ruleset import Change
from ipvs_node_agent.rules.planner import Plans
from ipvs_node_agent.rules.policy import lacking, to_program, unneeded_in

T = TypeVar("T")
U = TypeVar("U")
Doing = Callable[[str], None]

# A running agent may be in the middle of a change: it is given this long to end it, in seconds.
_PATIENCE = 3.0
# What takes no longer is not named, in seconds.
_SHORT = 0.2
_COLOURS = {OK: output.GREEN, WARN: output.YELLOW, FAIL: output.RED}


def main(options: argparse.Namespace) -> int:
    """Prints all findings. Raises AgentError."""
    # Millions of objects come, and hardly one goes before the end.
    gc.disable()
    progress, colours = output.Progress(), output.takes_colours(sys.stdout)
    checking, found = Checking(options.config, progress.show), list[Finding]()
    try:
        for finding in checking.findings():
            found.append(finding)
            if options.output != "json":
                progress.clear()
                output.print_text(shown(finding, colours))
    finally:
        progress.clear()
    if options.output == "json":
        output.print_text(as_json(found, checking.node))
    return output.FAILED if any(finding.level == FAIL for finding in found) else output.OK


def shown(finding: Finding, colours: bool) -> str:
    """A finding's line, for people."""
    level, said = as_line(finding)
    return f"{output.coloured(f'{level:4}', _COLOURS[level], colours)}  {said}\n"


class _Look(Generic[T]):
    """Something that is looked at in a thread of its own, which says what it is `doing`."""

    def __init__(self, look: Callable[[Doing], T]) -> None:
        self._look, self._doing = look, ""
        self._found: Future[T] = Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._found.set_result(self._look(self._do))
        except BaseException as error:
            self._found.set_exception(error)

    def _do(self, what: str) -> None:
        self._doing = what

    def result(self, waiting: Doing) -> T:
        """What was seen; `waiting` is told what it is waited for."""
        return self.early(self._found, waiting)

    def early(self, told: Future[U], waiting: Doing) -> U:
        """What is told before the end."""
        either: list[Future[Any]] = [told, self._found]
        while not wait(either, _SHORT, FIRST_COMPLETED).done:
            waiting(self._doing)
        if not told.done():
            self._found.result()  # Raises what kept it from telling.
        return told.result()


class _Seen(NamedTuple):
    """The cluster, what rules depend on, and the pods that they leave out."""

    cluster: ClusterFacts
    snapshot: Snapshot | None = None
    uncovered: tuple[UncoveredPod, ...] = ()


class Checking:
    """One look at this node; `waiting` is told what takes long. Raises UsageError.

    `node` is the Node's name, as soon as it is known.
    """

    def __init__(self, path: Path | None, waiting: Doing = lambda _: None) -> None:
        self._configuration, self._waiting = _configuration(path), waiting
        self.node = ""

    def findings(self) -> Iterator[Finding]:
        """All findings, each as soon as it can be told."""
        config, waiting = self._configuration.config, self._waiting
        begun: Future[ClusterFacts] = Future()
        cluster = _Look(partial(_cluster, config, begun.set_result))
        host = _Look(partial(look_at_host, config))
        facts = Facts(self._configuration, time.time())
        yield from judged(OF_CONFIGURATION, facts)
        facts = replace(facts, cluster=cluster.early(begun, waiting))
        self.node = facts.cluster.node_name
        yield from judged(OF_ACCESS, facts)
        facts = replace(facts, host=host.result(waiting))
        yield from judged(OF_HOST, facts)
        seen = cluster.result(waiting)
        wanted = _Look(partial(_wanted, config, seen))
        facts = replace(facts, cluster=seen.cluster, seen=seen.snapshot, uncovered=seen.uncovered)
        yield from judged(OF_CLUSTER, facts)
        plans, problems = wanted.result(waiting)
        changes = None
        if plans is not None and seen.snapshot is not None:
            changes = self._changes(seen.snapshot, facts.host, plans)
        yield from judged(OF_RULES, replace(facts, problems=problems, changes=changes))

    def _changes(
        self, seen: Snapshot, host: HostFacts, plans: Plans
    ) -> tuple[tuple[str, Change], ...] | None:
        """What `run` would change; None where nobody can tell."""
        config, mode = self._configuration.config, host.proxy.answer
        if not host.may_program or lacking(config, seen.node, seen.pod_interfaces):
            return None
        if unneeded_in(mode):
            plans = Plans(config, to_program(seen, mode))
        tables, end = _tables(host), time.monotonic() + _PATIENCE
        try:
            while tables is not None:
                changes = changes_between(config, tables, plans)
                if not changes or host.holder is None or time.monotonic() > end:
                    return tuple(changes)
                self._waiting("waiting for the agent, which may be writing")
                before, seen = seen, as_the_agent_sees(seen)
                if seen != before:
                    plans = Plans(config, to_program(seen, mode))
                time.sleep(0.3)
                tables = _tables_now(config)
        except AgentError:
            pass  # The table that cannot be read has a finding of its own.
        return None


def _configuration(path: Path | None) -> ConfigFacts:
    shown = str(path or DEFAULT_PATH)
    there = os.path.exists(path or DEFAULT_PATH)
    if path is not None and not os.path.isfile(path):
        load(path)  # Bad usage: there is nothing to look at.
    try:
        return ConfigFacts(shown, load(path), there=there)
    except AgentError as error:
        return ConfigFacts(shown, error=error)


def _cluster(config: Config, begun: Callable[[ClusterFacts], None], doing: Doing) -> _Seen:
    api = Api(Path(config.kubeconfig))
    found = look_at_cluster(api, config, doing, begun)
    if found.node is None or found.services is None:
        return _Seen(found)
    doing("asking where the API server is reached, and for this node's pods")
    try:
        snapshot = looked_around(api, config, Snapshot(found.services, found.node))
    except AgentError:
        return _Seen(found)
    return _Seen(found, snapshot, look_at_pods(api, config, snapshot))


def _wanted(config: Config, seen: _Seen, doing: Doing) -> tuple[Plans | None, tuple[Problem, ...]]:
    """What is wanted, and all that gets no rules."""
    node, services = seen.cluster.node, seen.cluster.services
    if node is None or services is None:
        return None, ()
    doing(f"planning the rules of {len(services)} Services")
    plans = Plans(config, seen.snapshot or Snapshot(services, node))
    problems = [problem for service in services.values() for problem in service.problems]
    for family in FAMILIES:
        problems += plans.of(family).problems
    return plans, tuple(problems)


def _tables(host: HostFacts) -> Tables | None:
    """The tables as they were gathered; None where one of them was not to be read."""
    used = [table for table in host.tables if table.backend == host.backend]
    if len(used) != len(FAMILIES) or any(table.error for table in used):
        return None
    return Tables(host.backend, {table.family: table.found for table in used}, host.filters)


def _tables_now(config: Config) -> Tables:
    with closing(launch()) as launcher:
        chains = config.chains
        kernel = Kernel(launcher, config.iptables, own_names(chains), chains.mark_masquerade)
        kernel.choose()
        found = tables_of(kernel)
        kernel.close()
        return found
