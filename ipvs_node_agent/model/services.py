"""All Services at one moment, as a value that never changes and is cheap to make another of.

What is planned from must stay as it was while events come in, and of two of them it must be clear
what differs, with 50,000 Services and for each event. So the Services are kept in shards by the
hash of their keys: another value shares all shards but those with a change, and two shards that are
the same object need no look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ipvs_node_agent.model.objects import Service

# With 50,000 Services a change copies a shard of two hundred.
_SHARDS = 256


class Services(Mapping[str, Service]):
    """The Services by their keys. Nobody can change it.

    `troubled` are the keys of those that have problems.
    """

    __slots__ = ("_count", "_shards", "troubled")

    def __init__(self, services: Iterable[Service] = ()) -> None:
        shards: tuple[dict[str, Service], ...] = tuple({} for _ in range(_SHARDS))
        for service in services:
            shards[hash(service.key) % _SHARDS][service.key] = service
        self._shards, self._count = shards, sum(map(len, shards))
        self.troubled = frozenset(key for key, service in self.items() if service.problems)

    def __getitem__(self, key: str) -> Service:
        return self._shards[hash(key) % _SHARDS][key]

    def __iter__(self) -> Iterator[str]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        # A shard that is the same object is not looked into.
        return isinstance(other, Services) and self._shards == other._shards

    __hash__ = None  # type: ignore[assignment]

    def with_changes(self, changes: Mapping[str, Service | None]) -> Services:
        """These Services but for `changes`, where None takes one away; itself if none is one."""
        fresh: dict[int, dict[str, Service]] = {}
        for key, service in changes.items():
            place = hash(key) % _SHARDS
            if self._shards[place].get(key) == service:
                continue
            if place not in fresh:
                fresh[place] = self._shards[place].copy()
            shard = fresh[place]
            if service is None:
                del shard[key]
            else:
                shard[key] = _sharing(shard.get(key), service)
        if not fresh:
            return self
        shards = list(self._shards)
        for place, shard in fresh.items():
            shards[place] = shard
        made = Services.__new__(Services)
        made._shards, made._count = tuple(shards), sum(map(len, shards))
        now = (key for key, service in changes.items() if service and service.problems)
        made.troubled = self.troubled.difference(changes).union(now)
        return made

    def listed(self, services: Iterable[Service]) -> Services:
        """`services` and no others; those that are as they were stay the very same objects."""
        listed = {service.key: service for service in services}
        return self.with_changes({key: listed.get(key) for key in self.keys() | listed.keys()})

    def differing(self, other: Services) -> Iterator[str]:
        """The keys under which `other` has something else, or nothing, or these have nothing."""
        for ours, theirs in zip(self._shards, other._shards):
            if ours is not theirs:
                keys = ours.keys() | theirs.keys()
                yield from (key for key in keys if ours.get(key) is not theirs.get(key))


def _sharing(old: Service | None, new: Service) -> Service:
    """`new` with all that is as it was the very same objects: others keep the old ones as keys."""
    if old is None:
        return new
    return Service._make(was if was == now else now for was, now in zip(old, new))
