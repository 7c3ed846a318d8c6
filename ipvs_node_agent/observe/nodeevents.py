"""Events on the Node, for whoever looks at it with `kubectl describe node`.

What is told: that changes do not reach the kernel, that external IPs are refused, that pods have no
rules, and that kube-proxy's mode needs no agent. A node may create Events (the Node authorizer),
and nothing else is ever written to the API server. `conditions` says what there is to tell,
`Schedule` when it is due, and `EventRecorder` is the thread that tells it.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.rules.coverage import described, remedy
from ipvs_node_agent.rules.policy import unneeded_in
from ipvs_node_agent.sync.state import Published, sickness

log = logging.getLogger(__name__)

PROGRAMMING_FAILED, REFUSED, NOT_NEEDED = "ProgrammingFailed", "ExternalIPRefused", "NotNeeded"
UNCOVERED = "PodsUncovered"

_LOOK_PERIOD = 10.0
# The least time between two Events of the same reason.
_LEAST_PAUSE = 300.0
# The API server forgets an Event after an hour (its --event-ttl).
_TOLD_FOR = 3600.0
_AFTER_FAILURE = 60.0
_READ_TIMEOUT = 10.0
_PATH = "/api/v1/namespaces/default/events"
_MOST_REFUSALS = 5
# What the API server takes.
_MOST_BYTES = 1024


@dataclass(frozen=True)
class Condition:
    """Something that an operator should know of this node; `reason` is one word."""

    reason: str
    message: str


def conditions(published: Published, now: float) -> Iterator[Condition]:
    """What there is to tell at the monotonic time `now`, at most one of each reason."""
    if sickness(published, now):
        yield Condition(PROGRAMMING_FAILED, f"no change reaches the kernel: {published.sentence}")
    agent = published.agent
    if unneeded_in(agent.proxy_mode):
        text = f"kube-proxy is in {agent.proxy_mode} mode, which does not need ipvs-node-agent"
        yield Condition(NOT_NEEDED, text)
    if agent.refusals:
        shown = [str(problem) for problem in heapq.nsmallest(_MOST_REFUSALS, agent.refusals)]
        if len(agent.refusals) > _MOST_REFUSALS:
            shown.append(f"and {len(agent.refusals) - _MOST_REFUSALS} more")
        yield Condition(REFUSED, "; ".join(shown))
    if agent.uncovered and agent.coverage is not None:
        text = f"{described(agent.uncovered)}; set {remedy(agent.uncovered, agent.coverage)}"
        yield Condition(UNCOVERED, text)


class Schedule:
    """When a condition is due to be told: when it is new or has changed, and hourly while it lasts.

    Never twice within five minutes, however often it comes and goes.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, str]] = {}

    def due(self, found: Iterable[Condition], now: float) -> list[Condition]:
        """Those of the conditions, which are all there are, that are to be told now."""
        there = {condition.reason: condition for condition in found}
        for reason in self._told.keys() - there.keys():
            # When it comes back it is new.
            self._told[reason] = (self._told[reason][0], "")
        return [condition for condition in there.values() if self._is_due(condition, now)]

    def _is_due(self, condition: Condition, now: float) -> bool:
        when, message = self._told.get(condition.reason, (-math.inf, ""))
        return now - when >= (_TOLD_FOR if message == condition.message else _LEAST_PAUSE)

    def tell(self, condition: Condition, now: float) -> None:
        """It was told."""
        self._told[condition.reason] = (now, condition.message)


def event(
    node: str, reason: str, message: str, clock: Callable[[], int] = time.time_ns
) -> dict[str, Any]:
    """An Event as `kubectl describe node` shows it; `clock` gives nanoseconds since the epoch."""
    now = clock()
    moment = datetime.fromtimestamp(now // 10**9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # As client-go names them.
        "metadata": {"name": f"{node}.{now:x}", "namespace": "default"},
        # As with the kubelet's own, the UID is the name: that is what kubectl looks for.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": "Warning",
        "reason": reason,
        "message": message.encode()[:_MOST_BYTES].decode(errors="ignore"),
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": "ipvs-node-agent", "host": node},
        "reportingComponent": "ipvs-node-agent",
        "reportingInstance": node,
    }


class EventRecorder:
    """Tells of what is `published`, in Events on the Node."""

    def __init__(
        self, published: Callable[[], Published], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._published, self._clock = published, clock
        self._schedule = Schedule()
        self._fault = Once()
        # With other credentials there is another thread, and the last one may not be through.
        self._lock = threading.Lock()

    def run(self, api: Api, node_name: Callable[[], str], stopped: threading.Event) -> None:
        """Looks, and tells by way of `api`, until `stopped`."""
        pause = _LOOK_PERIOD
        while not stopped.wait(pause):
            pause = _LOOK_PERIOD if self.turn(api, node_name) else _AFTER_FAILURE

    def turn(self, api: Api, node_name: Callable[[], str]) -> bool:
        """Tells what is due; False where it could not, which is said once."""
        fault = ""
        with self._lock:
            now = self._clock()
            try:
                for condition in self._schedule.due(conditions(self._published(), now), now):
                    body = event(node_name(), condition.reason, condition.message)
                    api.post(_PATH, body, "create Events", _READ_TIMEOUT)
                    self._schedule.tell(condition, now)
            except AgentError as error:
                fault = str(error)
            if self._fault.new(fault):
                log.warning("cannot write an Event on the Node, will retry: %s", fault)
        return not fault
