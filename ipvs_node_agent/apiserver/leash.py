"""Where this node reaches the API server: addresses and ports that no rule may ever take.

A rule that did would cut the agent off from the one who could tell it better. Three know of them:
the kubeconfig (its server and proxy, whatever their names stand for), the Endpoints of the API
server's own Service, which any node may get, and our own connections. The Endpoints are what counts
where the kubeconfig names a proxy of this node's own, as those of kubespray, k3s and RKE2 do.

Of what cannot be told at the moment, the last that was known stays.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from time import monotonic
from typing import Any, Callable

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.backoff import Backoff, between, seconds_left
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.kubeconfig import urls
from ipvs_node_agent.model.addresses import Address, address_met, parse_address

log = logging.getLogger(__name__)

Place = tuple[Address, int]
Places = frozenset[Place]
# What one part of all that is known was last; a part that is not in it was never known.
Known = Mapping[str, Places]
# What tells one part.
Part = Callable[[Api], Iterable[Place]]

# All in seconds: the least between two looks, and between an answer and a question in passing.
_LEAST, _PASSING = 1.0, 240.0
# How long until the next question where nobody passed by: longer than a watch lasts, and spread so
# that nodes that started together do not ask together.
_PERIOD = (660.0, 900.0)
# So long the Endpoints are waited for before there are any rules.
_PATIENCE = 30.0
_PATH = "/api/v1/namespaces/default/endpoints/kubernetes"
# As the API server's cache has them, at no cost for etcd.
_CACHED = {"resourceVersion": "0"}
_TIMEOUT, _PASSING_TIMEOUT = 10.0, 2.0
_MOST_BYTES = 1 << 20
# More of them than any control plane has are none of ours.
_MOST = 256


class Leash:
    """Tells where the API server is reached: at the start, after each outage, and now and then.

    `tell` is given what is known, and whether each part of it has been known once.
    """

    def __init__(self, api: Api, tell: Callable[[Places, bool], None]) -> None:
        self._api, self._tell = api, tell
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._reached = threading.Event()
        # When the Endpoints may be asked for in passing, and what came of it.
        self._passing_due = 0.0
        self._passed: deque[Places] = deque(maxlen=1)

    def run(self) -> None:
        """Tells until `stop`."""
        backoff, began, ask_due = Backoff(), monotonic(), 0.0
        known: Known = {}
        while True:
            # Before `stopped` is looked at, as `stop` wakes it too.
            self._wake.clear()
            if self._stopped.is_set():
                return
            # Who reaches it from here on has another look.
            was_reached, is_answered = self._reached.is_set(), True
            if was_reached:
                self._reached.clear()
            asks = was_reached or monotonic() >= ask_due
            passed = self._told_in_passing()
            endpoints = _endpoints if asks else passed
            # Told after each part, as the next one may hang for want of what this one gives.
            for now_known, is_told in look(self._api, known, endpoints):
                known = now_known
                is_answered &= is_told
                if not self._stopped.is_set():
                    self._tell(*summed_up(known))
            if endpoints is not None and is_answered:
                backoff.reset()
                self._passing_due = monotonic() + _PASSING
                ask_due = monotonic() + between(*_PERIOD)
            elif endpoints is not None:
                ask_due = monotonic() + backoff.next()
                if self._is_without(known, monotonic() - began):
                    known = {**known, "Endpoints": frozenset()}
                    self._tell(*summed_up(known))
            self._stopped.wait(_LEAST)
            self._wake.wait(max(ask_due - monotonic(), 0.0))

    def hurry(self, reached: bool = False) -> None:
        """Has it looked up soon.

        The API server is asked as seldom as ever, unless it was just `reached` again.
        """
        if reached:
            self._reached.set()
        self._wake.set()

    def ask_in_passing(self) -> None:
        """Asks for the Endpoints here and now, if the last answer is some minutes old.

        Where a connection is idle, that costs the API server a fraction of what it costs with one
        of its own. What fails is left to the next question.
        """
        if monotonic() < self._passing_due:
            return
        self._passing_due = monotonic() + _PASSING
        keeping = partial(_endpoints, timeout=_PASSING_TIMEOUT, once=False)
        found, is_told = _asked(keeping, self._api)
        if is_told:
            self._passed.append(found)
            self._wake.set()

    def _told_in_passing(self) -> Part | None:
        if not self._passed:
            return None
        found = self._passed.pop()
        return lambda _: found

    def _is_without(self, known: Known, seconds: float) -> bool:
        """Whether the API server answers, and does not tell its Endpoints after so many seconds."""
        if "Endpoints" in known or "kubeconfig" not in known:
            return False
        is_over = bool(self._api.peers) and seconds >= _PATIENCE and not self._stopped.is_set()
        if is_over:
            log.warning(
                "cannot read the API server's own addresses (Endpoints default/kubernetes), using"
                " the kubeconfig's alone"
            )
        return is_over

    def stop(self) -> None:
        """Has `run` end, and tell nothing any more."""
        self._stopped.set()
        self._wake.set()


def ask(api: Api) -> tuple[Places, bool]:
    """Where the API server is reached, as far as that is known, and whether that is all."""
    *_, (known, _) = look(api, {}, _endpoints)
    return summed_up(known)


def look(api: Api, known: Known, endpoints: Part | None) -> Iterator[tuple[Known, bool]]:
    """What is known after each part was looked up, `known` before, and whether it was told.

    `endpoints` gives the Endpoints; without it, nothing is requested of the API server.
    """
    # The kubeconfig first: where it has just changed, all else hangs on it. The last are there only
    # where somebody was asked.
    parts = {"kubeconfig": _named, "Endpoints": endpoints, "connections": _connections}
    for name, part in parts.items():
        if part is None:
            continue
        now, is_told = _asked(part, api)
        if is_told:
            now = now or known.get(name) or frozenset()
            known = {**known, name: now}
        yield known, is_told


def summed_up(known: Known) -> tuple[Places, bool]:
    """All that is `known`, and whether each part is."""
    # Our own connections first, and last what another one wrote.
    names = ("connections", "kubeconfig", "Endpoints")
    parts = (known.get(name, frozenset()) for name in names)
    found = dict.fromkeys(chain.from_iterable(sorted(part, key=str) for part in parts))
    return frozenset(islice(found, _MOST)), len(known) == len(names)


def _asked(part: Part, api: Api) -> tuple[Places, bool]:
    """What one part is, and whether that was told; what is refused for good is nothing."""
    try:
        return frozenset(islice(part(api), _MOST)), True
    except (AgentError, Superseded, OSError, ValueError, RecursionError) as error:
        log.debug("cannot tell where this node reaches the API server: %s", error)
        # Another answer is not to be had by asking again.
        refused = isinstance(error, ApiError) and error.status in (403, 404)
        return frozenset(), refused or isinstance(error, (ValueError, RecursionError))


def _named(api: Api) -> Iterator[Place]:
    credentials = api.credentials()
    yield from _resolved(*credentials.address)
    # Behind a proxy, nobody here need know the server's name.
    with suppress(OSError, UnicodeError):
        yield from _resolved(*urls.parse(credentials.server, "https", "http").address)


def _endpoints(api: Api, timeout: float = _TIMEOUT, once: bool = True) -> Iterable[Place]:
    body, end = bytearray(), monotonic() + timeout
    with api.get(_PATH, _CACHED, "get endpoints kubernetes", timeout, once) as answer:
        for piece in answer.pieces():
            seconds_left(end)
            body += piece
            if len(body) > _MOST_BYTES:
                raise ValueError("the Endpoints of the API server are too large")
    return endpoints(json.loads(body))


def _connections(api: Api) -> Iterable[Place]:
    return api.peers


def endpoints(raw: Any) -> Iterator[Place]:
    """The addresses and TCP ports in a raw Endpoints object; what cannot be read is left out."""
    for subset in _items(raw, "subsets"):
        ports = [
            port["port"]
            for port in _items(subset, "ports")
            if isinstance(port, dict)
            and port.get("protocol", "TCP") == "TCP"
            and type(port.get("port")) is int
        ]
        for entry in (*_items(subset, "addresses"), *_items(subset, "notReadyAddresses")):
            text = entry.get("ip") if isinstance(entry, dict) else None
            try:
                address = parse_address(text if isinstance(text, str) else "")
            except ValueError:
                continue
            yield from ((address, port) for port in ports)


def _resolved(host: str, port: int) -> Iterator[Place]:
    """Where `host` is. Raises OSError."""
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield address_met(str(address[0])), port


def _items(raw: Any, key: str) -> list[Any]:
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, list) else []
