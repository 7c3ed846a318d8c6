"""An answer of the API server whose body still arrives, and how it is cut short."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from typing import Any, Callable

from ipvs_node_agent.model.addresses import Address, address_met

_CHUNK = 64 << 10


class Superseded(Exception):
    """The request was ended by us, since the credentials it was made with have been replaced."""


class Answer:
    """A response of urllib3's that has begun, of a pool of `kubeconfig.connections`.

    `peer` is the address and port that it came from, None where nobody knows; `heard` is called
    with each piece of the body.
    """

    def __init__(self, response: Any, heard: Callable[[], None] = lambda: None) -> None:
        self._response, self._heard = response, heard
        # The same in all versions of urllib3, and the only way to read what is there (1.26).
        self._body: Any = response._original_response
        self.ended = False
        self.peer = _peer(response)

    def pieces(self) -> Iterator[bytes]:
        """The body's bytes, as they come. Raises Superseded after `end`, OSError, HTTPException."""
        while True:
            piece = self._body.read1(_CHUNK)
            if self.ended:
                raise Superseded
            if not piece:
                break
            self._heard()
            yield piece
        if self._body.length:
            raise http.client.IncompleteRead(b"", self._body.length)
        # Read to its end, its connection may serve another request.
        self._body.close()
        self._response.release_conn()

    def be_patient(self, seconds: float) -> None:
        """Lets the rest of the body pause for up to `seconds`."""
        try:
            self._body.sock.settimeout(seconds)
        except OSError:
            pass  # Nothing more comes: it is closed already.

    def end(self) -> None:
        """Ends it, from whichever thread, so that who reads it gets Superseded."""
        self.ended = True
        try:
            # The plain method: TLS's own would change the object under its reader's feet.
            socket.socket.shutdown(self._body.sock, socket.SHUT_RDWR)
        except OSError:
            pass  # It has just ended by itself.

    def close(self) -> None:
        """Gives the connection up, unless the body was read to its end."""
        self._response.close()


def _peer(response: Any) -> tuple[Address, int] | None:
    try:
        # Where the connection is not kept, only what reads the body has it still.
        host, port = response._original_response.fp.raw._sock.getpeername()[:2]
        return address_met(host), port
    except (AttributeError, OSError, ValueError, TypeError):
        return None
