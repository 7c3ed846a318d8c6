"""Looks for pods of this node whose packets no rule takes for a pod's.

The kernel tells of addresses that may be pods', and the rules cover most of them. Only where some
are left over is the API server asked whose they are, and seldom: what turned out to be nobody's,
such as the address of a container of docker's, is not asked about again as long as it stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Callable

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.apiserver.ownpods import own_pods
from ipvs_node_agent.backoff import Once, Seldom
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host import pods
from ipvs_node_agent.host.links import Links
from ipvs_node_agent.host.neighbours import neighbours
from ipvs_node_agent.model.objects import Candidate, OwnPod, UncoveredPod
from ipvs_node_agent.rules.coverage import uncovered
from ipvs_node_agent.sync.state import Published

log = logging.getLogger(__name__)

_LOOK_PERIOD = 30.0
# The least time between two requests.
_LEAST_PAUSE = 600.0


class UncoveredPods:
    """Tells which pods the rules do not cover, whenever others are.

    `published` is what the agent knows, and `links` what the kernel told last.
    """

    def __init__(
        self,
        published: Callable[[], Published],
        links: Callable[[], Links],
        tell: Callable[[tuple[UncoveredPod, ...]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._published, self._links, self._tell = published, links, tell
        self._told: tuple[UncoveredPod, ...] = ()
        self._pods: tuple[OwnPod, ...] = ()
        # What no rule covered at the last look, and what of it the API server knows nothing of.
        self._before = self._nobodys = frozenset[Candidate]()
        self._asking, self._refused = Seldom(_LEAST_PAUSE, clock), Once()
        # With other credentials there is another thread, and the last one may not be through.
        self._lock = threading.Lock()

    def run(self, api: Api, node_name: Callable[[], str], stopped: threading.Event) -> None:
        """Looks, and asks by way of `api`, until `stopped`."""
        while not stopped.wait(_LOOK_PERIOD):
            self.turn(api, node_name)

    def turn(self, api: Api, node_name: Callable[[], str]) -> None:
        """Looks once."""
        agent = self._published().agent
        if agent.coverage is None:
            return
        with self._lock:
            links = self._links()
            try:
                beside = neighbours()
            except OSError as error:
                log.debug("cannot read the neighbours of this node: %s", error)
                return
            found = pods.candidates(links, pods.plugins(), beside, agent.node_addresses)
            missed = frozenset(each for each in found if not agent.coverage.covers(each))
            self._look(missed, lambda: own_pods(api, node_name()))
            now = uncovered(self._pods, missed, agent.coverage)
            if now != self._told:
                self._told = now
                self._tell(now)

    def _look(self, missed: frozenset[Candidate], ask: Callable[[], tuple[OwnPod, ...]]) -> None:
        """Asks whose it is that rules missed, if that is in doubt."""
        # A pod that has just started has its address before the API server knows of it.
        lasting, self._before = missed & self._before, missed
        self._nobodys &= missed
        doubtful = _not_of(self._pods, lasting - self._nobodys)
        if not (doubtful and self._asking.due):
            return
        # Also where it fails, as who is overloaded is not to be asked more often.
        self._asking.done()
        try:
            self._pods = ask()
        except (AgentError, OSError, ValueError, RecursionError) as error:
            log.debug("cannot tell whose the addresses without rules are: %s", error)
            # Of an outage, those tell who follow the API server.
            refused = isinstance(error, ApiError) and error.status == 403
            if refused and self._refused.new(str(error)):
                log.warning("cannot tell whether rules cover all pods of this node: %s", error)
            return
        self._refused.new("")
        # Of a subnet, another address may be a pod's the next time.
        self._nobodys |= {each for each in _not_of(self._pods, doubtful) if each.is_single}


def _not_of(pods: Iterable[OwnPod], found: Iterable[Candidate]) -> frozenset[Candidate]:
    known = {address for pod in pods for address in pod.addresses}
    return frozenset(each for each in found if each.address not in known)
