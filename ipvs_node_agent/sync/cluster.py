"""What the API server has told so far, as a value: each event makes another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Union

from ipvs_node_agent.model.events import Changed, Deleted, Listed
from ipvs_node_agent.model.objects import Node, Problem, Service
from ipvs_node_agent.model.services import Services

Told = Union[Listed, Changed, Deleted]

# All of a Node, where it is lost.
WHOLE = ""


class Pending(NamedTuple):
    """A change that the kernel does not know: since when, and what the Service was `before`."""

    since: float
    before: Service | None


@dataclass(frozen=True)
class Cluster:
    """Everything known of the cluster; None for what was never listed.

    `node` is this Node with what it has lost since: its rules stay while it is gone, or has no pod
    CIDR or address for a moment. `told_node` is what was told of it last, None where it is gone.
    """

    services: Services | None = None
    node: Node | None = None
    told_node: Node | None = None
    node_listed: bool = False

    @property
    def listed(self) -> bool:
        """Whether both have been listed whole."""
        return self.services is not None and self.node_listed

    @property
    def problems(self) -> frozenset[Problem]:
        """What is wrong with the Services and the Node as they were told."""
        of_node = self.node.problems if self.node is not None else ()
        services = self.services or Services()
        return frozenset(of_node).union(*(services[key].problems for key in services.troubled))

    @property
    def lost(self) -> frozenset[str]:
        """What this Node once had and has not at the moment; WHOLE where all of it is gone."""
        last, told = self.node, self.told_node
        if last is None or told is None:
            return frozenset() if last is None else frozenset({WHOLE})
        kinds = {
            "pod CIDRs": (last.pod_cidrs, told.pod_cidrs),
            "addresses": (last.addresses, told.addresses),
        }
        return frozenset(kind for kind, (had, has) in kinds.items() if had and not has)

    def changes(self, before: Cluster) -> Iterator[tuple[str, Service | None]]:
        """The keys of the Services with external IPs that changed, and what they were `before`."""
        # The first list is no change to anybody.
        if before.services is None or self.services is None:
            return
        for key in self.services.differing(before.services):
            old, new = before.services.get(key), self.services.get(key)
            if any(s.load_balancer_ips or s.external_ips for s in (old, new) if s is not None):
                yield key, old

    def with_node(self, event: Told) -> Cluster:
        """After `event`, which is about the Node; itself where that says nothing new."""
        told = _node_in(event)
        known = replace(self, node=_kept(self.node, told), told_node=told, node_listed=True)
        return self if known == self else known

    def with_services(self, event: Told) -> Cluster:
        """After `event`, which is about Services; itself where that says nothing new.

        A change before the first list is a bug of ours, and raises RuntimeError.
        """
        if isinstance(event, Listed):
            services = (self.services or Services()).listed(event.items)
        elif self.services is None:
            raise RuntimeError("a Service changed before the first list")
        elif isinstance(event, Deleted):
            services = self.services.with_changes({event.key: None})
        else:
            services = self.services.with_changes({event.item.key: event.item})
        return self if services is self.services else replace(self, services=services)


def _node_in(event: Told) -> Node | None:
    """The Node as `event` leaves it; None where there is none any more."""
    if isinstance(event, Listed):
        return event.items[0] if event.items else None
    return event.item if isinstance(event, Changed) else None


def _kept(last: Node | None, told: Node | None) -> Node | None:
    """The Node to go by where it was `last` and is `told`."""
    if last is None or told is None or told.name != last.name:
        return last if told is None else told
    return told._replace(
        pod_cidrs=told.pod_cidrs or last.pod_cidrs, addresses=told.addresses or last.addresses
    )
