"""What the log says of the cluster, each thing once: changes in the kernel, problems, troubles."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Callable

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Address, show_address
from ipvs_node_agent.model.events import CONNECTION, Recovered, Skipped, Trouble
from ipvs_node_agent.model.objects import Problem, Service, UncoveredPod
from ipvs_node_agent.rules.coverage import Coverage, described, remedy
from ipvs_node_agent.rules.policy import external_ips, is_counted, unneeded_in
from ipvs_node_agent.sync.cluster import WHOLE, Cluster, Pending

log = logging.getLogger(__name__)

_LINES_AT_ONCE = 20
# What the API server sends again and again is said once, as long as it is not more than this.
_REMEMBERED = 100


class Notices:
    """Says what is new, and keeps what there is no need to say again."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        # What was said of the present ones, and since when there are any.
        self._said: set[str] = set()
        self.troubled_since = math.inf
        self.last_trouble: tuple[float, str] | None = None
        self._skipped: set[Skipped] = set()
        self.problems: frozenset[Problem] = frozenset()
        self._lacks, self._pods, self._doubt = Once(), Once(), Once()
        self.proxy_doubt, self._uncovered = "", False

    # The API server

    @property
    def trouble(self) -> str:
        """Why the API server cannot be followed now; empty where it can."""
        return next(iter(self._troubles.values()), "")

    def take_trouble(self, event: Trouble, now: float) -> None:
        """A resource cannot be followed."""
        text = str(event.error)
        # Who is away fails in many ways, one after the other and for each resource.
        what = "" if event.away else text
        # Whoever refuses, or cannot be asked for want of credentials, is silent too.
        is_explained = event.resource == CONNECTION and self._troubles
        if what not in self._said and not is_explained:
            log.warning("%s (trying again; the rules stay as they are)", text)
        else:
            log.debug("still cannot follow the %s: %s", event.resource, text)
        self._said.add(what)
        self.troubled_since = min(self.troubled_since, now)
        self._troubles[event.resource] = text
        self.last_trouble = (now, text)

    def take_recovered(self, event: Recovered) -> None:
        """It can again."""
        if self._troubles.pop(event.resource, None) and not self._troubles:
            self._said, self.troubled_since = set(), math.inf
            log.info("the API server answers again")

    def take_skipped(self, event: Skipped) -> None:
        """Something that it sent was passed over; each list has it again."""
        if event in self._skipped:
            return
        log.warning("skipped one of the API server's %s: %s", event.resource, event.text)
        if len(self._skipped) >= _REMEMBERED:
            self._skipped.clear()
        self._skipped.add(event)

    # The node

    def take_node(self, before: Cluster, now: Cluster) -> None:
        """The cluster is another one `now`; what this Node lost is said."""
        name = now.node.name if now.node is not None else ""
        for what in sorted(now.lost - before.lost):
            if what == WHOLE:
                log.warning("Node %s is gone from the API server; keeping its rules", name)
            else:
                log.warning("Node %s lost its %s; using the last known ones", name, what)

    def take_lacking(self, what: str) -> None:
        """What is lacking before anything can be written; empty where nothing is."""
        if self._lacks.new(what):
            log.warning("waiting, and leaving all rules as they are: %s", what)

    def take_pods(self, known_by: str) -> None:
        """How packets of pods are known."""
        if self._pods.new(known_by):
            log.info("pods are matched by %s", known_by)

    def take_uncovered(self, pods: tuple[UncoveredPod, ...], known: Coverage | None) -> None:
        """These pods are not; said once as long as there are any."""
        if pods and known and not self._uncovered:
            log.warning("%s; set %s", described(pods), remedy(pods, known))
        elif self._uncovered and not pods:
            log.info("all pods of this node have rules now")
        self._uncovered = bool(pods)

    def take_proxy_doubt(self, doubt: str) -> None:
        """What speaks against kube-proxy's mode as it is known; empty where nothing does."""
        if self._doubt.new(doubt):
            log.warning("kube-proxy's mode is in doubt, and the rules stay as they are: %s", doubt)
        self.proxy_doubt = doubt

    def take_proxy_mode(self, before: str | None, now: str | None) -> None:
        """kube-proxy's mode is another one `now`."""
        if unneeded_in(now):
            log.warning(
                "kube-proxy is in %s mode, which does not need this agent: no Service gets rules",
                now,
            )
        elif unneeded_in(before):
            log.info("kube-proxy is in %s mode: Services get their rules", now)

    # Services

    def take_problems(self, problems: frozenset[Problem]) -> None:
        """These are all that there are."""
        new = sorted(problems - self.problems)
        for problem in new[:_LINES_AT_ONCE]:
            log.warning("%s (%s)", problem, problem.reason)
        if len(new) > _LINES_AT_ONCE:
            log.warning("and %d more problems", len(new) - _LINES_AT_ONCE)
        self.problems = problems

    def say_synced(
        self,
        pending: Mapping[str, Pending],
        now: float,
        config: Config,
        service: Callable[[str], Service | None],
        serves: Callable[[str, Address], bool],
    ) -> None:
        """The kernel has the changes that were `pending`; `serves` tells who has which address."""
        changed = [
            (key, change)
            for key, change in pending.items()
            if _asked(change.before, config) or _asked(service(key), config)
        ]
        for key, change in changed[:_LINES_AT_ONCE]:
            asked = _asked(service(key), config)
            served = [address for address in asked if serves(key, address)]
            shown = _outcome(service(key), asked, served, _before(change.before, config))
            log.info("%s: %s (%.0f ms)", key, shown, (now - change.since) * 1000)
        if len(changed) > _LINES_AT_ONCE:
            log.info("and %d more Services", len(changed) - _LINES_AT_ONCE)


def _asked(service: Service | None, config: Config) -> tuple[Address, ...]:
    return () if service is None else external_ips(service, config)


def _before(service: Service | None, config: Config) -> str:
    asked = _asked(service, config)
    has_rules = service is not None and is_counted(service, config)
    return _leading(asked, service) if has_rules else f"{_shown(asked)} without rules"


def _outcome(
    service: Service | None, asked: Iterable[Address], served: Iterable[Address], before: str
) -> str:
    """What the kernel holds of a Service, in a few words."""
    if service is None:
        return f"deleted, was {before}"
    if not asked:
        return f"no external IP, was {before}"
    return _leading(served, service) if served else f"{_shown(asked)} without rules"


def _leading(external: Iterable[Address], service: Service | None) -> str:
    internal = service.cluster_ips if service is not None else ()
    return f"{_shown(external)} to {_shown(internal) or 'no ClusterIP'}"


def _shown(addresses: Iterable[Address]) -> str:
    return " ".join(map(show_address, addresses))
