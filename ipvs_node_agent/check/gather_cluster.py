"""Gathers what `check` knows of the cluster: the credentials, and the API server's answers.

It makes GET requests only, each with a time limit, and never raises.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.resources import Resource, host_name, list_all, node_name, resources
from ipvs_node_agent.check.facts import ClusterFacts, Validity
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.kubeconfig import installers

# Somebody is waiting for it.
_TIMEOUT = 10.0


def look_at_cluster(
    api: Api,
    config: Config,
    doing: Callable[[str], None],
    begun: Callable[[ClusterFacts], None],
) -> ClusterFacts:
    """What the credentials of `config` are, and what they are good for at `api`.

    `doing` is told what takes its time, and `begun` what is known without the Services.
    """
    doing("reading the credentials")
    try:
        credentials = api.credentials()
    except AgentError as error:
        name, other = config.node_name or host_name(), installers.elsewhere()
        facts = ClusterFacts(error=error, node_name=name, other_kubeconfig=other)
        begun(facts)
        return facts
    facts = ClusterFacts(
        server=credentials.server,
        user=credentials.user,
        certified_name=credentials.node_name,
        warning=credentials.warning,
        validity=Validity(*credentials.valid) if credentials.valid else None,
        node_name=node_name(api, config),
    )
    # The Node first: a small answer tells whether there is one at all.
    services, node = resources(api, config)
    facts, nodes = _listed(api, node, facts, doing)
    facts = replace(facts, node=nodes[0] if nodes else None)
    begun(facts)
    if facts.unreachable is None:
        facts, found = _listed(api, services, facts, doing)
        if nodes is not None and found is not None:
            facts = replace(facts, services={service.key: service for service in found})
    return facts


def _listed(
    api: Api, resource: Resource, facts: ClusterFacts, doing: Callable[[str], None]
) -> tuple[ClusterFacts, tuple[Any, ...] | None]:
    """All of `resource`, where it may be listed; and `facts` with what was refused."""
    doing(f"listing {resource.name}")
    found: tuple[Any, ...] | None = None
    try:
        found, version = list_all(api, resource, "0", lambda _: None, read_timeout=_TIMEOUT)
        _watch(api, resource, version)
    except AgentError as error:
        if isinstance(error, ApiError) and not error.status:
            return replace(facts, unreachable=error), found
        return replace(facts, refused=(*facts.refused, error)), found
    return facts, found


def _watch(api: Api, resource: Resource, version: str) -> None:
    parameters = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "1"}
    parameters.update(resource.selector())
    with api.get(resource.path, parameters, f"watch {resource.name}", _TIMEOUT):
        pass  # That it begins is all there is to know.
