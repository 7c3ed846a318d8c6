"""What is followed of the API server: all Services and this Node; and one list of either."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from ipvs_node_agent.apiserver.bodies import BrokenList, read_list, version_in
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.reading import UnknownObject, read_node, read_service
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.events import NODES, SERVICES

LIST_READ_TIMEOUT = 60.0
# Leaves out only Services that have no ClusterIP: they get no rule, and guard no address. Any other
# selector would hide ClusterIPs, and a Service whose external IP is one of them has to be refused.
_SPARING = {"fieldSelector": "spec.type!=ExternalName,spec.clusterIP!=None"}


@dataclass(frozen=True)
class Resource:
    """What to list and watch. `read` makes a value of a raw object, or raises UnknownObject.

    `selector` gives the request's selectors; it is asked each time, and may raise AgentError.
    `sparing` are further ones, for what `read` would make nothing of: a server that does not know
    them is asked without. `streamed` says that there is enough of it for a streaming list.
    """

    name: str
    path: str
    kind: str
    read: Callable[[Any], Any]
    selector: Callable[[], Mapping[str, str]]
    sparing: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False


def resources(api: Api, config: Config) -> list[Resource]:
    """What the agent follows: all Services, and its own Node."""

    def own_node() -> Mapping[str, str]:
        # A node may list and watch no other Node than its own (Node authorizer).
        return {"fieldSelector": f"metadata.name={node_name(api, config)}"}

    return [
        Resource(
            SERVICES, "/api/v1/services", "Service", read_service, dict, _SPARING, streamed=True
        ),
        Resource(NODES, "/api/v1/nodes", "Node", read_node, own_node),
    ]


def node_name(api: Api, config: Config) -> str:
    """This node's name: as configured, certified, or else the host's. Raises RefusedError."""
    return config.node_name or api.credentials().node_name or host_name()


def host_name() -> str:
    """The name that a kubelet gives its Node unless told otherwise: the lower-cased host name."""
    return socket.gethostname().strip().lower()


def list_all(
    api: Api,
    resource: Resource,
    version: str,
    skipped: Callable[[str], None],
    sparing: Mapping[str, str] | None = None,
    read_timeout: float = LIST_READ_TIMEOUT,
) -> tuple[tuple[Any, ...], str]:
    """All that there is of `resource`, and the version to watch from. Raises AgentError.

    `version` "0" takes what the server has in its cache, "" asks for the newest. What is no such
    object is passed over, and `skipped` is told why. The answer may pause for `read_timeout`.
    """
    items: list[Any] = []

    def found(raw: Any) -> None:
        try:
            items.append(resource.read(raw))
        except UnknownObject as error:
            skipped(str(error))

    parameters = {**(sparing or {}), **resource.selector()}
    if version:
        parameters["resourceVersion"] = version
    doing = f"list {resource.name}"
    with api.get(resource.path, parameters, doing, read_timeout) as answer:
        try:
            metadata = read_list(answer.pieces(), found)
        except BrokenList as error:
            raise ApiError("API server", f"cannot {doing}: {error}") from None
    listed = version_in(metadata)
    if not listed:
        raise ApiError("API server", f"cannot {doing}: the list has no resourceVersion")
    return tuple(items), listed
