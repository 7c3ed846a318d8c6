"""Answers of the API server that are made of bytes, without any connection."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from ipvs_node_agent.apiserver.client import Api
from ipvs_node_agent.kubeconfig.credentials import Credentials


class Response:
    """A response as urllib3 gives one; what it is not asked for here is missing."""

    reason = "Whatever"
    length = None

    def __init__(
        self,
        status: int,
        pieces: Iterable[bytes],
        breaks: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.status, self._pieces, self._breaks = status, [*pieces], breaks
        self.headers = headers
        self.sock = socket.socket()
        # In urllib3's response is http.client's.
        self._original_response = self

    def read1(self, _: int) -> bytes:
        while self._pieces:
            piece = self._pieces.pop(0)
            # A real one has no empty pieces.
            if piece:
                return piece
        if self._breaks:
            raise http.client.IncompleteRead(b"")
        return b""

    def read(self, amount: int, **_: Any) -> bytes:
        return b"".join(self._pieces)[:amount]

    def release_conn(self) -> None:
        pass

    def close(self) -> None:
        self.sock.close()


class Pool(Protocol):
    """In the place of urllib3's."""

    def request(self, method: str, url: str, **_: Any) -> Response:
        """The answer to a request."""


class WiredApi(Api):
    """The API server behind `wire`, which nobody takes connections for."""

    def __init__(self, wire: Pool, user: str | None = None) -> None:
        super().__init__(Path("/nonexistent/kubeconfig"))
        pool: Any = wire
        address = ("127.0.0.1", 1)
        self._known = Credentials("http://api", user, dict, pool, address, "", short_lived=False)

    def credentials(self) -> Credentials:
        return self._known

    def answers(self) -> bool:
        return False
