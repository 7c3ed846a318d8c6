"""The pods of this node that have addresses of their own, as the API server tells of them.

They are asked for, not followed: each of them changes more often than anybody has to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.bodies import read_list
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.reading import child
from ipvs_node_agent.model.addresses import Address, parse_address
from ipvs_node_agent.model.objects import OwnPod, is_node_name

_PATH, _DOING = "/api/v1/pods", "list this node's pods"
_TIMEOUT = 10.0
# More of either than those of any node.
_MOST_BYTES, _MOST_PODS = 64 << 20, 4096
# Those that have ended keep the address in their status, which may be another pod's by now.
_PHASES = ("Pending", "Running")


def own_pods(api: Api, node: str) -> tuple[OwnPod, ...]:
    """Those of `node`, out of the server's cache. Raises AgentError, and ValueError for no list."""
    found: list[OwnPod] = []

    def take(raw: Any) -> None:
        if len(found) >= _MOST_PODS:
            raise ValueError("more pods than a node has")
        found.extend(_read(raw, node))

    # The only pods that a node may list (Node authorizer).
    parameters = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
    try:
        with api.get(_PATH, parameters, _DOING, _TIMEOUT, once=True) as answer:
            read_list(_bounded(answer.pieces()), take)
    except Superseded:
        raise ApiError("API server", "the credentials were just replaced") from None
    return tuple(found)


def _bounded(pieces: Iterable[bytes]) -> Iterator[bytes]:
    left = _MOST_BYTES
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise ValueError("a list that is too large")
        yield piece


def _read(raw: Any, node: str) -> Iterator[OwnPod]:
    """The pod in `raw`, if it has addresses of its own on `node`."""
    metadata, spec, status = (child(raw, field) for field in ("metadata", "spec", "status"))
    names = metadata.get("namespace"), metadata.get("name")
    if not all(isinstance(name, str) and is_node_name(name) for name in names):
        return
    if spec.get("nodeName") != node or spec.get("hostNetwork", False) is not False:
        return
    listed = status.get("podIPs")
    addresses = tuple(_addresses(listed if isinstance(listed, list) else ()))
    if addresses and status.get("phase") in _PHASES:
        yield OwnPod("/".join(map(str, names)), addresses)


def _addresses(listed: Iterable[Any]) -> Iterator[Address]:
    for each in listed:
        text = each.get("ip") if isinstance(each, dict) else None
        try:
            yield parse_address(text if isinstance(text, str) else "")
        except ValueError:
            pass  # It is no address that a packet could come from.
