"""`ipvs-node-agent render`: the rules for Kubernetes objects in files, as input for a restore.

The files are what kubectl prints: JSON, YAML, lists, many documents.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import yaml

from ipvs_node_agent.apiserver.reading import UnknownObject, read_node, read_service, shown
from ipvs_node_agent.commands import output
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.yamlloader import Bounded
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.objects import Node, Service, Snapshot
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.rules.planner import plan
from ipvs_node_agent.rules.policy import pod_interfaces

_GET_SERVICES = "kubectl get services -A -o yaml prints some"
_GET_NODE = "kubectl get node NAME -o yaml prints one"


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
    named = _node(options.node, broken) if options.node else None
    services, nodes = _read(options.file, broken)
    node = named or _own_node(nodes, config.node_name)
    if not (config.pod_interfaces or config.pod_cidrs is not None or node.pod_cidrs):
        raise UsageError(
            "render",
            "no pod CIDR",
            "give --pod-cidr CIDR, --pod-interface NAME, --node FILE, or podCIDRs in --config",
        )
    snapshot = Snapshot(services, node, pod_interfaces=pod_interfaces(config, node, ()))
    planned = plan(config, snapshot, options.family)
    unreadable = [*node.problems, *(each for one in services.values() for each in one.problems)]
    for problem in (*unreadable, *planned.problems):
        output.note(str(problem))
    output.print_text(restore_input(difference(Found(), planned.ruleset)))
    return UsageError.exit_status if broken else output.OK


def _read(names: Sequence[str], broken: list[str]) -> tuple[dict[str, Service], dict[str, Node]]:
    """The Services and Nodes in files, by their names."""
    services: dict[str, Service] = {}
    nodes: dict[str, Node] = {}
    for name in names:
        for raw in _objects(name, broken, _GET_SERVICES):
            try:
                if isinstance(raw, dict) and raw.get("kind") == "Node":
                    node = read_node(raw)
                    nodes[node.name] = node
                else:
                    service = read_service(raw)
                    services[service.key] = service
            except UnknownObject as error:
                output.note(f"{name}: skipped an object: {error}")
    return services, nodes


def _own_node(nodes: Mapping[str, Node], name: str | None) -> Node:
    """The one that the rules are for: the only one, or the one that the configuration names."""
    if name is not None and name in nodes:
        return nodes[name]
    if len(nodes) == 1:
        return next(iter(nodes.values()))
    if nodes:
        output.note(f"none of {len(nodes)} Nodes is chosen: use --node FILE or nodeName")
    return Node("", (), (), ())


def _node(name: str, broken: list[str]) -> Node:
    try:
        nodes = [read_node(raw) for raw in _objects(name, broken, _GET_NODE)]
    except UnknownObject as error:
        raise UsageError(name, str(error), _GET_NODE) from None
    if len(nodes) != 1:
        raise UsageError(name, f"wanted one Node, got {len(nodes)}")
    return nodes[0]


def _objects(name: str, broken: list[str], hint: str) -> list[Any]:
    """The objects in a file, as far as they can be read; if not to its end, it is `broken`.

    Raises UsageError for a file without any. Its rules would be none, and a restore would take
    away those that are there.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(name, error.strerror or str(error)) from None
    except ValueError:
        raise UsageError(name, "is not UTF-8 text") from None
    why: list[str] = []
    documents = list(read_documents(text, why.append))
    for status in filter(_is_error, documents):
        said = shown(status.get("message"))
        raise UsageError(name, f"holds an error of the API server in place of objects: {said}")
    if not any(map(_is_kubernetes, documents)):
        found = f": it {why[0]}" if why else ""
        raise UsageError(name, f"holds no Kubernetes object{found}", hint)
    for each in why:
        output.note(f"{name}: {each} (the objects before it are used)")
        broken.append(name)
    return [item for document in documents for item in items_of(document)]


def _is_error(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "Status"


def _is_kubernetes(document: Any) -> bool:
    """Whether it is an object, or a list of some or none; as opposed to a text that is YAML too."""
    if not isinstance(document, dict) or document.get("kind") == "Table":
        return False
    return all(isinstance(document.get(key), str) for key in ("apiVersion", "kind"))


def items_of(document: Any) -> list[Any]:
    """The objects in a document, which may be a list of some."""
    if not isinstance(document, dict) or "items" not in document:
        return [] if document is None else [document]
    # An empty list of Go's may be null.
    items = [] if document["items"] is None else document["items"]
    if not isinstance(items, list):
        return [document]
    kind = document.get("kind")
    if not isinstance(kind, str) or kind == "List" or not kind.endswith("List"):
        return items
    # The API server's own lists say once for all of their items what these are.
    kind = kind[: -len("List")]
    return [{"kind": kind, **item} if isinstance(item, dict) else item for item in items]


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


def read_documents(text: str, broken: Callable[[str], None]) -> Iterator[Any]:
    """The documents in `text`; where it cannot be parsed, `broken` is told why."""
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
        broken(f"is not YAML{where}: {error.problem}")
    # What does not fit its tag, such as `!!int x`, makes PyYAML raise what it runs into first.
    except Exception as error:
        broken(f"is not YAML: {error}")
