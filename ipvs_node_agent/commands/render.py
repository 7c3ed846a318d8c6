"""`ipvs-node-agent render`: the rules for Kubernetes objects in files, as input for a restore.

The files are what kubectl prints: JSON, YAML, lists, many documents.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import yaml

from ipvs_node_agent.apiserver.reading import UnknownObject, read_node, read_service
from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.yamlloader import Bounded
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.objects import Node, Service, Snapshot
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.rules.planner import plan
from ipvs_node_agent.rules.policy import pod_interfaces


def main(options: argparse.Namespace) -> int:
    """Prints what is wanted for the files. Raises AgentError."""
    config = load(options.config)
    if options.pod_cidr is not None:
        config = replace(config, pod_cidrs=tuple(options.pod_cidr))
    if options.pod_interface is not None:
        config = replace(config, pod_interfaces=tuple(options.pod_interface))
    if [options.node, *options.file].count("-") > 1:
        raise UsageError("render", "standard input is named twice", "it can be read only once")
    broken: list[str] = []
    node = _node(options.node, broken) if options.node else Node("", (), (), ())
    if not (config.pod_interfaces or config.pod_cidrs is not None or node.pod_cidrs):
        raise UsageError(
            "render",
            "no pod CIDR",
            "give --pod-cidr CIDR, --pod-interface NAME, --node FILE, or podCIDRs in --config",
        )
    services = _services(options.file, broken)
    snapshot = Snapshot(services, node, pod_interfaces=pod_interfaces(config, node, ()))
    planned = plan(config, snapshot, options.family)
    unreadable = [*node.problems, *(each for one in services.values() for each in one.problems)]
    for problem in (*unreadable, *planned.problems):
        output.note(str(problem))
    output.print_text(restore_input(difference(Found(), planned.ruleset)))
    return UsageError.exit_status if broken else output.OK


def _services(names: Sequence[str], broken: list[str]) -> dict[str, Service]:
    found: dict[str, Service] = {}
    for name in names:
        for raw in _objects(name, broken):
            try:
                service = read_service(raw)
            except UnknownObject as error:
                output.note(f"{name}: skipped an object: {error}")
                continue
            found[service.key] = service
    return found


def _node(name: str, broken: list[str]) -> Node:
    try:
        nodes = [read_node(raw) for raw in _objects(name, broken)]
    except UnknownObject as error:
        hint = "kubectl get node NAME -o yaml prints one"
        raise UsageError(name, str(error), hint) from None
    if len(nodes) != 1:
        raise UsageError(name, f"wanted one Node, got {len(nodes)}")
    return nodes[0]


def _objects(name: str, broken: list[str]) -> Iterator[Any]:
    """The objects in a file, as far as they can be read; if not to its end, it is `broken`."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(name, error.strerror or str(error)) from None
    except ValueError:
        raise UsageError(name, "is no UTF-8 text") from None

    def end(why: str) -> None:
        output.note(f"{name}: {why} (the objects before it are used)")
        broken.append(name)

    return read_objects(text, end)


# Scans in C where it can, and composes in Python.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(Bounded, _Safe):  # type: ignore[misc]  # It is one of two.
    """Plain data only, as much as there is, and a timestamp stays the text that it is in JSON."""

    most_nodes = math.inf

    def __init__(self, stream: str) -> None:
        _Safe.__init__(self, stream)
        Bounded.__init__(self)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def read_objects(text: str, broken: Callable[[str], None]) -> Iterator[Any]:
    """The objects in `text`, lists taken apart; where it cannot be parsed, `broken` is told why."""
    for document in _documents(text, broken):
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from document["items"]
        elif document is not None:
            yield document


def _documents(text: str, broken: Callable[[str], None]) -> Iterator[Any]:
    if text.lstrip().startswith("{"):
        try:
            yield json.loads(text)
            return
        except (ValueError, RecursionError):
            pass  # A brace may open a YAML mapping as well.
    try:
        yield from yaml.load_all(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        broken(f"is no YAML{where}: {error.problem}")
    # What does not fit its tag, such as `!!int x`, makes PyYAML raise what it runs into first.
    except Exception as error:
        broken(f"is no YAML: {error}")
