"""`ipvs-node-agent explain`: why an external IP works here, or does not."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.ownpods import own_pods
from ipvs_node_agent.check.gather_pods import look_at_pods
from ipvs_node_agent.commands import output
from ipvs_node_agent.commands.diff import snapshot
from ipvs_node_agent.commands.output import GREEN, RED, YELLOW, coloured
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError, RefusedError, one_line
from ipvs_node_agent.explain import gather, tried, verdict
from ipvs_node_agent.explain.connect import connections
from ipvs_node_agent.explain.facts import DOWN, RUNNING, SILENT, Agent, Facts
from ipvs_node_agent.explain.lines import FAIL, NEUTRAL, OK, UNKNOWN, WARN, Explanation
from ipvs_node_agent.explain.services import naming
from ipvs_node_agent.explain.target import Target, target
from ipvs_node_agent.host import links
from ipvs_node_agent.host.rundir import directory
from ipvs_node_agent.model.addresses import Address
from ipvs_node_agent.observe import statussocket
from ipvs_node_agent.observe.status import HANGING, IN_SYNC
from ipvs_node_agent.rules.coverage import remedy

_STATUS = {True: output.OK, False: output.FAILED, None: RefusedError.exit_status}
_COLOURS = {OK: GREEN, WARN: YELLOW, FAIL: RED, UNKNOWN: YELLOW, NEUTRAL: ""}
_LONGEST = 1000


def main(options: argparse.Namespace) -> int:
    """Prints what there is to say about the target. Raises AgentError."""
    asked = target(options.target)
    config = load(options.config)
    if os.geteuid() != 0:
        raise RefusedError("explain", "only root can read the kernel's tables", "sudo")
    facts = gathered(config, asked)
    made = _tried(config, facts, asked) if options.connect else {}
    found = verdict.explain(facts, asked, made)
    if options.output == "json":
        output.print_text(verdict.as_json(found, asked.text, facts.node))
    else:
        output.print_text(as_text(found, output.takes_colours(sys.stdout)))
    return _STATUS[verdict.overall(found)]


def gathered(config: Config, asked: Target) -> Facts:
    """All that is known, about what was `asked`."""
    api = Api(Path(config.kubeconfig))
    try:
        facts = gather.look(config, snapshot(api, config, output.note))
    except AgentError as error:
        facts = gather.look(config, None, str(error))
    facts = replace(facts, agent=_agent())
    if facts.seen is not None:
        missed = look_at_pods(api, config, facts.seen)
        facts = replace(facts, uncovered=missed, remedy=remedy(missed, facts.coverage))
    return gather.look_at(facts, verdict.addresses(facts, asked))


def _tried(config: Config, facts: Facts, asked: Target) -> dict[Address, tried.Tried]:
    """What real connections told, by the address that they were made to."""
    there, names, told = links.Links(), dict[Address, str](), dict[Address, tried.Tried]()
    with suppress(OSError):
        there = links.ask()
    # Without the API server, a pod is called by its address.
    with suppress(AgentError, ValueError, RecursionError):
        pods = own_pods(Api(Path(config.kubeconfig)), facts.node) if facts.seen else ()
        names = {address: pod.key for pod in pods for address in pod.addresses}
    for address in verdict.addresses(facts, asked):
        ports = verdict.tcp_ports(facts, asked, address)
        attempts = connections(address, ports, facts.coverage, there, names) if ports else ()
        told[address] = tried.tell(attempts, naming(facts, address))
    return told


def _agent() -> Agent:
    """What the running agent says."""
    try:
        said = statussocket.ask(directory())
    except statussocket.Unanswered as error:
        return Agent(SILENT if error.state == HANGING else DOWN, False, error.why)
    except AgentError as error:
        return Agent(SILENT, False, error.why)
    if said.state == HANGING:
        return Agent(SILENT, False, said.sentence)
    return Agent(RUNNING, said.state == IN_SYNC, said.sentence, said.refused)


def as_text(found: Sequence[Explanation], colours: bool = False) -> str:
    """A line each, for people; whatever was read from outside is made harmless."""
    lines: list[str] = []
    for one in found:
        if lines:
            lines.append("")
        for level, subject, text in one.lines:
            said = one_line(f"{subject}: {text}", _LONGEST)
            shown = coloured(f"{level:4}", _COLOURS[level], colours and bool(_COLOURS[level]))
            lines.append(f"{shown}  {said}".rstrip())
        works, sentence, mend = one.verdict
        colour = {True: GREEN, False: RED, None: YELLOW}[works]
        said = one_line(f"{one.subject}: {sentence}", _LONGEST)
        lines.append(coloured(said, colour, colours))
        lines += [f"=> {one_line(mend, _LONGEST)}"] if mend else []
    return "".join(f"{line}\n" for line in lines)
