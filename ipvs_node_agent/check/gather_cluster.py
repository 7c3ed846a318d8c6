"""Gathers what `check` knows of the cluster: the credentials, and the API server's answers.

It makes GET requests only, each with a time limit, and never raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.resources import Resource, host_name, list_all, node_name, resources
from ipvs_node_agent.check.facts import ClusterFacts, Validity
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.model.events import NODES, SERVICES

# Somebody is waiting for it.
_TIMEOUT = 10.0


def look_at_cluster(config: Config) -> ClusterFacts:
    """What the credentials of `config` are, and what they are good for."""
    api = Api(Path(config.kubeconfig))
    try:
        credentials = api.credentials()
    except AgentError as error:
        return ClusterFacts(error=error, node_name=config.node_name or host_name())
    asked = _Asked(api)
    # The Node first: a small answer tells whether there is one at all.
    for resource in reversed(resources(api, config)):
        asked.try_all(resource)
        if asked.unreachable is not None:
            break
    nodes, services = asked.listed.get(NODES), asked.listed.get(SERVICES)
    return ClusterFacts(
        server=credentials.server,
        user=credentials.user,
        certified_name=credentials.node_name,
        warning=credentials.warning,
        validity=Validity(*credentials.valid) if credentials.valid else None,
        unreachable=asked.unreachable,
        refused=tuple(asked.refused),
        node_name=node_name(api, config),
        node=nodes[0] if nodes else None,
        services=None
        if services is None or nodes is None
        else {service.key: service for service in services},
    )


class _Asked:
    """The answers to what the agent asks of the API server."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.listed: dict[str, tuple[Any, ...]] = {}
        self.refused: list[AgentError] = []
        self.unreachable: AgentError | None = None

    def try_all(self, resource: Resource) -> None:
        """Lists and watches as the agent would."""
        try:
            items, version = list_all(
                self._api, resource, "0", lambda _: None, read_timeout=_TIMEOUT
            )
            self.listed[resource.name] = items
            self._watch(resource, version)
        except ApiError as error:
            if error.status:
                self.refused.append(error)
            else:
                self.unreachable = error
        except AgentError as error:
            self.refused.append(error)

    def _watch(self, resource: Resource, version: str) -> None:
        parameters = {
            **resource.selector(),
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": "1",
        }
        with self._api.get(resource.path, parameters, f"watch {resource.name}", _TIMEOUT):
            pass  # That it begins is all there is to know.
