"""The Services whose rules the kernel refuses in one family, and when each is tried again.

A Service is left out for as long as it is the very value that was refused and it is not its turn;
one that changes is tried at once. After a refusal it is tried again after 10 s, doubling to five
minutes; one that was only suspected, after a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Problem, Service

_FIRST, _CAP = 10.0, 300.0
_SUSPECTED = 1.0


class _Refusal(NamedTuple):
    """`why` is what the kernel said of `service`, which is `out` until `again`, then tried.

    `delay` is how long it waits after the next refusal.
    """

    service: Service
    why: str
    delay: float
    again: float
    out: bool = True


class Refused:
    """Keeps count of them."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._refusals: dict[str, _Refusal] = {}

    def add(
        self, keys: Iterable[str], services: Mapping[str, Service], why: str, now: float
    ) -> None:
        """The kernel has just refused them as they are in `services`."""
        for key in keys:
            last = self._refusals.get(key)
            known = last is not None and last.service is services[key]
            delay = last.delay if last is not None and known else _FIRST
            self._refusals[key] = _Refusal(services[key], why, min(delay * 2, _CAP), now + delay)

    def suspect(
        self, keys: Iterable[str], services: Mapping[str, Service], why: str, now: float
    ) -> None:
        """Some of them were refused, and nobody knows yet which."""
        for key in keys:
            self._refusals[key] = _Refusal(services[key], why, _FIRST, now + _SUSPECTED)

    def keep(self, services: Mapping[str, Service]) -> None:
        """Forgets those that are not in `services` as they were."""
        self._refusals = {
            key: refusal
            for key, refusal in self._refusals.items()
            if services.get(key) is refusal.service
        }

    def try_again(self, now: float) -> None:
        """Leaves those out no longer whose turn it is."""
        for key, refusal in self._refusals.items():
            if refusal.again <= now:
                self._refusals[key] = refusal._replace(out=False)

    @property
    def left_out(self) -> frozenset[str]:
        """Who gets no rules at the moment."""
        return frozenset(key for key, refusal in self._refusals.items() if refusal.out)

    @property
    def known(self) -> frozenset[str]:
        """All of them, left out or being tried again."""
        return frozenset(self._refusals)

    def taken(self) -> list[str]:
        """Those that were tried again and that the kernel has just taken; it forgets them."""
        taken = [key for key, refusal in self._refusals.items() if not refusal.out]
        for key in taken:
            del self._refusals[key]
        return taken

    @property
    def next_try(self) -> float:
        """When the next of those that are left out is to be tried again."""
        return min((each.again for each in self._refusals.values() if each.out), default=math.inf)

    @property
    def problems(self) -> frozenset[Problem]:
        """What an operator should know of them."""
        return frozenset(
            Problem(
                key,
                "KernelRefused",
                f"its {self._family} rules are left out, trying again: {refusal.why}",
            )
            for key, refusal in self._refusals.items()
        )
