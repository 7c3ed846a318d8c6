"""Gathers what `check` knows of the cluster: the credentials, and the API server's answers.

It makes GET requests only, each with a time limit, and never raises.
"""

from __future__ import annotations

from typing import Any, Callable

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.resources import Resource, host_name, list_all, node_name, resources
from ipvs_node_agent.check.facts import ClusterFacts, Validity
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.kubeconfig import installers
from ipvs_node_agent.model.events import NODES, SERVICES

# Somebody is waiting for it.
_TIMEOUT = 10.0


def look_at_cluster(api: Api, config: Config, doing: Callable[[str], None]) -> ClusterFacts:
    """What the credentials of `config` are, and what they are good for at `api`.

    `doing` is told what takes its time.
    """
    doing("reading the credentials")
    try:
        credentials = api.credentials()
    except AgentError as error:
        name, other = config.node_name or host_name(), installers.elsewhere()
        return ClusterFacts(error=error, node_name=name, other_kubeconfig=other)
    listed: dict[str, tuple[Any, ...]] = {}
    refused: list[AgentError] = []
    unreachable: AgentError | None = None
    # The Node first: a small answer tells whether there is one at all.
    for resource in reversed(resources(api, config)):
        doing(f"listing {resource.name}")
        try:
            listed[resource.name], version = list_all(
                api, resource, "0", lambda _: None, read_timeout=_TIMEOUT
            )
            _watch(api, resource, version)
        except AgentError as error:
            if isinstance(error, ApiError) and not error.status:
                unreachable = error
                break
            refused.append(error)
    nodes, services = listed.get(NODES), listed.get(SERVICES)
    return ClusterFacts(
        server=credentials.server,
        user=credentials.user,
        certified_name=credentials.node_name,
        warning=credentials.warning,
        validity=Validity(*credentials.valid) if credentials.valid else None,
        unreachable=unreachable,
        refused=tuple(refused),
        node_name=node_name(api, config),
        node=nodes[0] if nodes else None,
        services=None
        if services is None or nodes is None
        else {service.key: service for service in services},
    )


def _watch(api: Api, resource: Resource, version: str) -> None:
    parameters = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "1"}
    parameters.update(resource.selector())
    with api.get(resource.path, parameters, f"watch {resource.name}", _TIMEOUT):
        pass  # That it begins is all there is to know.
