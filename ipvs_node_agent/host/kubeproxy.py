"""kube-proxy's mode, as it reports, and pages that programs of this node serve on loopback.

Whoever has a port there may be anybody: he gets so much time and so many bytes in all, and who he
is can be asked while the connection lasts.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ipvs_node_agent.backoff import seconds_left
from ipvs_node_agent.host.procfs import addresses_listening_on, user_at_the_far_end
from ipvs_node_agent.model.addresses import reached_at

# The port of kube-proxy's metricsBindAddress, by default.
_PORT = 10249
_MODE = re.compile(r"[a-z]{1,20}")
_SECONDS = 2.0
_MOST_BYTES = 1 << 16


def answers() -> set[str]:
    """What root's processes say kube-proxy's mode is, at every address where its port is served.

    Its address is the node's on some nodes, or [::1]. As long as it does not run, every account may
    answer in its place, and may go on answering when it runs. So a word counts from root alone, who
    has to have the other end of the connection over which it came.
    """
    hosts = {reached_at(host) for host in addresses_listening_on(_PORT, user=0)}
    return {said for host in sorted(hosts) if (said := _mode_at(host))}


def _mode_at(host: str) -> str:
    """What root says there; empty where he says nothing."""
    try:
        with _connection((host, _PORT)) as connection:
            ends = connection.getsockname(), connection.getpeername()
            said = connection.page("/proxyMode").strip()
            return said if _MODE.fullmatch(said) and user_at_the_far_end(*ends) == 0 else ""
    except OSError:
        return ""


def page(address: tuple[str, int], path: str) -> str:
    """The beginning of a page; empty where there is none."""
    try:
        with _connection(address) as connection:
            return connection.page(path)
    except OSError:
        return ""


@contextmanager
def _connection(address: tuple[str, int]) -> Iterator[_Connection]:
    """A connection that is open meanwhile, so that one can tell who answers. Raises OSError."""
    family, _, _, _, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    with _Connection(family) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(resolved)
        yield connection


class _Connection(socket.socket):
    """A connection with one limit of time and one of bytes for all that comes over it."""

    def __init__(self, family: int) -> None:
        super().__init__(family)
        self._end, self._room = time.monotonic() + _SECONDS, _MOST_BYTES

    def page(self, path: str) -> str:
        """What comes from `path`, where that is a page; else nothing."""
        try:
            self.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("ascii"))
            with http.client.HTTPResponse(self, method="GET") as response:
                response.begin()
                text = response.read(_MOST_BYTES).decode("ascii", "replace")
                return text if response.status == 200 else ""
        except (OSError, http.client.HTTPException, ValueError):
            return ""

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As any socket's; without room it is as if the peer had come to an end."""
        if not self._room:
            return 0
        self.settimeout(seconds_left(self._end))
        count = super().recv_into(buffer, min(nbytes or len(buffer), self._room), flags)
        self._room -= count
        return count
