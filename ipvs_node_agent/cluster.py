"""What the API server has told so far: the Services, and this Node."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Union

from ipvs_node_agent.model import Node, Problem, Service, Snapshot
from ipvs_node_agent.watch import Changed, Deleted, Listed

log = logging.getLogger(__name__)

Told = Union[Listed, Changed, Deleted]


class ServiceChange(NamedTuple):
    """What a Service was `before`, and what it is `now`; None where there was none, or is none."""

    key: str
    before: Service | None
    now: Service | None


class Cluster:
    """Everything known of the cluster."""

    def __init__(self) -> None:
        self._services: dict[str, Service] | None = None
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self.node: Node | None = None
        self._node_listed = False
        self._gone = self._bare = False

    @property
    def listed(self) -> bool:
        """Whether both have been listed whole."""
        return self._services is not None and self._node_listed

    @property
    def services(self) -> Mapping[str, Service]:
        """The Services by their keys."""
        return self._services or {}

    @property
    def problems(self) -> frozenset[Problem]:
        """What is wrong with the Services and the Node as they were told."""
        of_node = self.node.problems if self.node is not None else ()
        return frozenset(of_node).union(*self._problems.values())

    def snapshot(self) -> Snapshot | None:
        """Everything known, or None before the first whole listing of both."""
        if self._services is None or self.node is None:
            return None
        return Snapshot(self._services, self.node)

    def take_node(self, event: Told) -> bool:
        """Notes what is told of the Node; whether that changes anything.

        A Node that is gone, or without pod CIDRs, leaves what was known.
        """
        old, node = self.node, _node_in(event)
        self._node_listed = True
        if old is None:
            self.node = node
            return node is not None
        bare = node is not None and bool(old.pod_cidrs) and not node.pod_cidrs
        if node is None and not self._gone:
            log.warning("Node %s is gone from the API server; keeping its rules", old.name)
        if bare and not self._bare:
            log.warning("Node %s lost its pod CIDRs; keeping the last ones", old.name)
        self._gone, self._bare = node is None, bare
        if node is None:
            return False
        self.node = node._replace(pod_cidrs=old.pod_cidrs) if bare else node
        return self.node != old

    def take_services(self, event: Told) -> Iterator[ServiceChange]:
        """Notes what is told of Services, and gives what changes by it.

        The first list is no change to anybody.
        """
        if isinstance(event, Listed):
            yield from self._take_list({service.key: service for service in event.items})
            return
        known = self._services
        if known is None:
            raise RuntimeError("a Service changed before the first list")
        if isinstance(event, Deleted):
            yield from self._noted(event.key, known.pop(event.key, None), None)
        else:
            service = event.item
            before, known[service.key] = known.get(service.key), service
            yield from self._noted(service.key, before, service)

    def _take_list(self, listed: dict[str, Service]) -> Iterator[ServiceChange]:
        known, self._services = self._services, listed
        if known is None:
            self._problems = {key: s.problems for key, s in listed.items() if s.problems}
            return
        for key in known.keys() | listed.keys():
            yield from self._noted(key, known.get(key), listed.get(key))

    def _noted(
        self, key: str, before: Service | None, now: Service | None
    ) -> Iterator[ServiceChange]:
        if before == now:
            return
        self._problems.pop(key, None)
        if now is not None and now.problems:
            self._problems[key] = now.problems
        yield ServiceChange(key, before, now)


def _node_in(event: Told) -> Node | None:
    """The Node as `event` leaves it; None where there is none any more."""
    if isinstance(event, Listed):
        return event.items[0] if event.items else None
    return event.item if isinstance(event, Changed) else None
