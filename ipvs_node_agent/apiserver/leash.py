"""Where this node reaches the API server: addresses and ports that no rule may ever take.

A rule that did would cut the agent off from the one who could tell it better. Three know of them:
the kubeconfig (its server and proxy, whatever their names stand for), our own connections, and the
Endpoints of the API server's own Service, which any node may get. The last is what counts where the
kubeconfig names a proxy of this node's own, as those of kubespray, k3s and RKE2 do.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable
from urllib.parse import urlsplit

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.model.addresses import Address, parse_address

log = logging.getLogger(__name__)

Places = frozenset[tuple[Address, int]]

# How long until all of it is looked up again, and at least between two looks, in seconds.
_PERIOD, _LEAST = 240.0, 2.0
_PATH = "/api/v1/namespaces/default/endpoints/kubernetes"
_TIMEOUT = 10.0
_MOST_BYTES = 1 << 20
# More of them than any control plane has are none of ours.
_MOST = 256


class Leash:
    """Tells where the API server is reached: at the start, after each reconnect, and now and then.

    `tell` is given what is known, and whether that is all.
    """

    def __init__(self, api: Api, tell: Callable[[Places, bool], None]) -> None:
        self._api, self._tell = api, tell
        self._wake, self._stopped = threading.Event(), threading.Event()

    def run(self) -> None:
        """Tells until `stop`."""
        backoff = Backoff()
        while not self._stopped.is_set():
            self._wake.clear()
            places, complete = look(self._api)
            if not self._stopped.is_set():
                self._tell(places, complete)
            if complete:
                backoff.reset()
            self._stopped.wait(_LEAST if complete else _LEAST + backoff.next())
            if complete:
                self._wake.wait(_PERIOD)

    def hurry(self) -> None:
        """Has it looked up soon."""
        self._wake.set()

    def stop(self) -> None:
        """Has `run` end, and tell nothing any more."""
        self._stopped.set()
        self._wake.set()


def look(api: Api) -> tuple[Places, bool]:
    """Where the API server is reached, as far as that is known, and whether that is all."""
    # The Endpoints first: who has asked for them has a peer.
    found, complete = set[tuple[Address, int]](), True
    for part in (_endpoints, _named):
        try:
            found.update(part(api))
        except (AgentError, Superseded, OSError, ValueError, RecursionError) as error:
            complete = False
            log.debug("where the API server is reached is not known: %s", error)
    return frozenset([*api.peers, *sorted(found, key=str)][:_MOST]), complete


def _named(api: Api) -> Iterable[tuple[Address, int]]:
    credentials = api.credentials()
    server = urlsplit(credentials.server)
    port = server.port or (443 if server.scheme == "https" else 80)
    places = {credentials.address, (server.hostname or "", port)}
    return [place for host, port in places for place in _resolved(host, port)]


def _endpoints(api: Api) -> Iterable[tuple[Address, int]]:
    body = bytearray()
    with api.get(_PATH, {}, "get endpoints kubernetes", _TIMEOUT, once=True) as answer:
        for piece in answer.pieces():
            body += piece
            if len(body) > _MOST_BYTES:
                raise ValueError("the Endpoints of the API server are too large")
    return list(endpoints(json.loads(body)))


def endpoints(raw: Any) -> Iterator[tuple[Address, int]]:
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


def _resolved(host: str, port: int) -> Iterator[tuple[Address, int]]:
    """Where `host` is. Raises OSError."""
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        # A link-local address of IPv6 has its interface behind it.
        yield parse_address(str(address[0]).partition("%")[0]), port


def _items(raw: Any, key: str) -> list[Any]:
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, list) else []
