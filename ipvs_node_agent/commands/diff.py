"""`ipvs-node-agent diff`: what `run` would change now, without changing it."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from ipvs_node_agent.apiserver import leash
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.resources import list_all, node_name, resources
from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError, RefusedError
from ipvs_node_agent.host import links, pods
from ipvs_node_agent.host.rundir import directory, own_names
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.iptables.proxymode import proxy_mode
from ipvs_node_agent.model.events import NODES, SERVICES
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.observe import statussocket
from ipvs_node_agent.rules.here import Here
from ipvs_node_agent.rules.invalid import input_rules
from ipvs_node_agent.rules.planner import plan
from ipvs_node_agent.rules.policy import lacking, pod_interfaces, to_program


def main(options: argparse.Namespace) -> int:
    """Prints the changes as input for restores, each under its command. Raises AgentError."""
    changes = pending_changes(load(options.config), output.note)
    text = "".join(f"# {command} --noflush\n{restore_input(change)}" for command, change in changes)
    output.print_text(coloured_change(text) if output.takes_colours(sys.stdout) else text)
    return output.PENDING if changes else output.OK


def coloured_change(text: str) -> str:
    """What goes in red and what comes in green; the rest as it is."""
    for lines, colour in (("^-[AI].*", output.GREEN), ("^-[DX].*", output.RED)):
        text = re.sub(lines, output.coloured(r"\g<0>", colour), text, flags=re.MULTILINE)
    return text


def snapshot(config: Config, note: Callable[[str], None]) -> Snapshot:
    """The cluster as the API server tells it now. Raises RefusedError."""
    api = Api(Path(config.kubeconfig))
    listed: dict[str, tuple[Any, ...]] = {}
    for resource in resources(api, config):

        def skipped(text: str, name: str = resource.name) -> None:
            note(f"passed over in the {name} of the API server: {text}")

        listed[resource.name], _ = list_all(api, resource, "0", skipped)
    if not listed[NODES]:
        why = f"knows no Node {node_name(api, config)}"
        raise RefusedError("API server", why, "set nodeName if it has another")
    services = {service.key: service for service in listed[SERVICES]}
    return looked_around(api, config, Snapshot(services, listed[NODES][0]))


def looked_around(api: Api, config: Config, seen: Snapshot) -> Snapshot:
    """The cluster as it was `seen`, with this node's network as it is. Raises RefusedError."""
    try:
        found = links.ask()
    except OSError as error:
        raise RefusedError("kernel", f"does not tell this node's addresses: {error}") from None
    addresses = frozenset(address for _, address in found.addresses)
    networks = pods.networks(found, pods.plugins())
    here = Here(addresses=addresses).with_pod_networks(networks)
    here = here.with_routes(pods.routed(found), pods.blocks(found))
    here = here.with_api_servers(*leash.ask(api))
    interfaces = pod_interfaces(config, seen.node, here.pod_networks)
    return replace(seen, network=here.network(interfaces), pod_interfaces=interfaces)


def pending_changes(config: Config, note: Callable[[str], None]) -> list[tuple[str, Change]]:
    """What `run` would change now, in each family by its command. Raises RefusedError."""
    seen = snapshot(config, note)
    lacks = lacking(config, seen.node, seen.pod_interfaces)
    if lacks:
        raise RefusedError("diff", f"run would wait: {lacks}")
    with closing(launch()) as launcher:
        mode = proxy_mode(launcher).mode
    return changes_for(config, to_program(seen, mode))


def changes_for(config: Config, seen: Snapshot) -> list[tuple[str, Change]]:
    """What has to be changed for all of `seen` to have its rules. Raises RefusedError."""
    chains = config.chains
    kernel = Kernel(launch(), config.iptables, own_names(chains), chains.mark_masquerade)
    kernel.choose()
    changes: list[tuple[str, Change]] = []
    tables, filters, behind = kernel.programmers(), kernel.filters(), _in_front()
    for family, programmer in tables.items():
        found = programmer.read()
        own_mark = config.chains.mark_masquerade not in found.filled
        given_way = behind.get(str(family), frozenset())
        wanted = replace(plan(config, seen, family, own_mark).ruleset, behind=given_way)
        dropping = config.drop_invalid_input and bool(wanted.chains)
        for change in (difference(found, wanted), _of_filter(filters[family], dropping, given_way)):
            if change:
                changes.append((f"{family.command}-{kernel.backend}-restore", change))
    return changes


def _in_front() -> dict[str, frozenset[tuple[str, str]]]:
    """Whom the running agent leaves the first place to, by family; nobody where none runs."""
    try:
        families = statussocket.ask(directory()).families
    except AgentError:
        return {}
    return {family.name: frozenset(family.in_front) for family in families}


def _of_filter(
    programmer: Programmer, dropping: bool, behind: frozenset[tuple[str, str]]
) -> Change:
    """What has to be changed in a filter table. Raises RefusedError."""
    try:
        return programmer.pending(replace(input_rules(dropping), behind=behind))
    except TableError:
        if dropping:
            raise
        # It may be one that iptables cannot use, and nothing of ours is to be there.
        return Change()
