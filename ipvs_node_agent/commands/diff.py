"""`ipvs-node-agent diff`: what `run` would change now, without changing it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, NamedTuple

from ipvs_node_agent.apiserver import leash
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.apiserver.resources import list_all, node_name, resources
from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError, RefusedError
from ipvs_node_agent.host import links, pods
from ipvs_node_agent.host.rundir import directory, own_names
from ipvs_node_agent.iptables.backends import Kernel, filters_found
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.proxymode import proxy_mode
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.events import NODES, SERVICES
from ipvs_node_agent.model.objects import Snapshot
from ipvs_node_agent.nat.ruleset import Change, Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.observe import statussocket
from ipvs_node_agent.rules.here import Here
from ipvs_node_agent.rules.invalid import input_rules
from ipvs_node_agent.rules.planner import Plans
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


def snapshot(api: Api, config: Config, note: Callable[[str], None]) -> Snapshot:
    """The cluster as the API server tells it now. Raises RefusedError."""
    listed: dict[str, tuple[Any, ...]] = {}
    for resource in resources(api, config):

        def skipped(text: str, name: str = resource.name) -> None:
            note(f"skipped one of the API server's {name}: {text}")

        listed[resource.name], _ = list_all(api, resource, "0", skipped)
    if not listed[NODES]:
        why = f"has no Node {node_name(api, config)}"
        raise RefusedError("API server", why, "set nodeName if the Node has another name")
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
    here = Here(addresses=addresses, absent=found.absent).with_pod_networks(networks)
    here = here.with_routes(pods.routed(found), pods.blocks(found))
    here = here.with_api_servers(*leash.ask(api))
    interfaces = pod_interfaces(config, seen.node, here.pod_networks)
    return replace(seen, network=here.network(interfaces), pod_interfaces=interfaces)


def as_the_agent_sees(seen: Snapshot) -> Snapshot:
    """`seen` with the addresses that have left the node, and that a running agent still counts."""
    try:
        lingering = statussocket.ask(directory()).lingering
    except AgentError:
        return seen
    addresses = seen.network.addresses.union(lingering)
    return replace(seen, network=seen.network._replace(addresses=addresses))


class Tables(NamedTuple):
    """What the tables hold of ours in `backend`; of a filter table, why it cannot be read."""

    backend: str
    nat: Mapping[Family, Found]
    filters: Mapping[Family, Found | TableError]


def pending_changes(config: Config, note: Callable[[str], None]) -> list[tuple[str, Change]]:
    """What `run` would change now, in each family by its command. Raises RefusedError."""
    seen = snapshot(Api(Path(config.kubeconfig)), config, note)
    lacks = lacking(config, seen.node, seen.pod_interfaces)
    if lacks:
        raise RefusedError("diff", f"run would wait: {lacks}")
    with closing(launch()) as launcher:
        kernel = Kernel(launcher, config.iptables, own_names(config.chains), _mark(config))
        kernel.choose()
        mode = proxy_mode(launcher, backend=kernel.backend).mode
        tables = tables_of(kernel)
    plans = Plans(config, to_program(seen, mode))
    changes = changes_between(config, tables, plans)
    if changes and (by_agent := as_the_agent_sees(seen)) != seen:
        changes = changes_between(config, tables, Plans(config, to_program(by_agent, mode)))
    return changes


def tables_of(kernel: Kernel) -> Tables:
    """The tables of the backend that `kernel` has chosen, as they are. Raises RefusedError."""
    nat = {family: programmer.read() for family, programmer in kernel.programmers().items()}
    return Tables(kernel.backend, nat, filters_found(kernel.filters()))


def changes_between(config: Config, tables: Tables, plans: Plans) -> list[tuple[str, Change]]:
    """What has to be changed for `tables` to hold what is planned. Raises TableError."""
    changes: list[tuple[str, Change]] = []
    behind = _in_front(tables)
    for family, found in tables.nat.items():
        own_mark = _mark(config) not in found.filled
        given_way = behind.get(str(family), frozenset())
        wanted = replace(plans.of(family, own_mark).ruleset, behind=given_way)
        dropping = config.drop_invalid_input and bool(wanted.chains)
        wanted_input = replace(input_rules(dropping), behind=given_way)
        found_input = tables.filters[family]
        if isinstance(found_input, TableError):
            # It may be one that iptables cannot use; mostly nothing of ours is to be there.
            if dropping:
                raise found_input
            found_input = Found()
        for change in (difference(found, wanted), difference(found_input, wanted_input)):
            if change:
                changes.append((f"{family.command}-{tables.backend}-restore", change))
    return changes


def _in_front(tables: Tables) -> dict[str, frozenset[tuple[str, str]]]:
    """Whom the running agent leaves the first place to, by family; nobody where none runs.

    It is asked where somebody is in front of whom the tables alone do not tell.
    """
    found = [*tables.nat.values(), *tables.filters.values()]
    ahead = [one for each in found if isinstance(each, Found) for one in each.ahead.values()]
    if all(other.insists for others in ahead for other in others):
        return {}
    try:
        families = statussocket.ask(directory()).families
    except AgentError:
        return {}
    return {family.name: frozenset(family.in_front) for family in families}


def _mark(config: Config) -> str:
    return config.chains.mark_masquerade
