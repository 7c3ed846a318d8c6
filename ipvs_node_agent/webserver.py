"""A small HTTP server for metrics and health: GET and HEAD, a request for each connection.

Whoever can reach its address may be hostile. So a request has to be short and to come in time, an
answer has to be taken in time, and few are served at once; the others wait. What a request says
beyond method and path is not looked at.
"""

from __future__ import annotations

import logging
import re
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from typing import Any, Callable, NamedTuple

from ipvs_node_agent.boundedserver import BoundedServer
from ipvs_node_agent.errors import one_line

log = logging.getLogger(__name__)

_MAX_REQUEST = 8 << 10
_REQUEST_SECONDS, _ANSWER_SECONDS = 3.0, 10.0
# How often an address that could not be had is tried again.
_RETRY_SECONDS = 5.0
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]\r?\n")


class Page(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Callable[[str], Page]


class WebServer:
    """Serves `pages`, by path, at `address` (HOST:PORT) in threads of its own, until `stop`.

    An address that cannot be had is tried again; `after` is the server whose place it takes.
    """

    def __init__(self, address: str, pages: Pages, after: WebServer | None = None) -> None:
        self.address, self._pages = address, pages
        self._stopped = threading.Event()
        self._after = after
        self._said = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Has it end, soon."""
        self._stopped.set()

    def join(self) -> None:
        """Waits until it no longer has its address."""
        self._thread.join()

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        while not self._stopped.is_set():
            try:
                server = _Server(_resolved(self.address), self._pages)
            except (OSError, UnicodeError) as error:
                self._complain(getattr(error, "strerror", None) or str(error))
                self._stopped.wait(_RETRY_SECONDS)
                continue
            with server:
                log.info("metrics and health are served at %s", self.address)
                while not self._stopped.is_set():
                    server.handle_request()

    def _complain(self, why: str) -> None:
        if why != self._said:
            log.warning(
                "cannot serve metrics and health at %s: %s (trying again; see metricsBindAddress)",
                self.address,
                why,
            )
        self._said = why


def _resolved(address: str) -> tuple[int, Any]:
    """The address family and the socket address of HOST:PORT; no host means all addresses."""
    host, _, port = address.rpartition(":")
    if not host:
        # Without IPv6, the first of what all addresses are.
        every = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (as asked for)
        host = every
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


class _Server(BoundedServer, socketserver.TCPServer):
    allow_reuse_address = True

    def __init__(self, resolved: tuple[int, Any], pages: Pages) -> None:
        self.address_family, address = resolved
        self.pages = pages
        self._failures: set[str] = set()
        super().__init__(address, _Handler)

    def failed(self, path: str, error: Exception) -> None:
        """Says once for each path that its page cannot be made: it is asked for again and again."""
        if path not in self._failures:
            why = one_line(str(error))
            log.error("cannot make %s: %s: %s (please report it)", path, type(error).__name__, why)
        log.debug("cannot make %s", path, exc_info=error)
        # Others choose what they ask for, but only paths that there are can fail.
        self._failures.add(path)

    def server_bind(self) -> None:
        """Binds; to an IPv6 address that means all of them for IPv4's as well."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Reads a request and answers it."""
        method, page = self._answer(self._read())
        head = (
            f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}\r\n"
            f"Content-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n"
            + ("Allow: GET, HEAD\r\n" if page.status == HTTPStatus.METHOD_NOT_ALLOWED else "")
            + "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.request.settimeout(_ANSWER_SECONDS)
        # The time limit is for all of it.
        self.request.sendall(head.encode() + (b"" if method == b"HEAD" else page.body))

    def _read(self) -> bytes:
        """The request up to the empty line, or what there is of it when time or room runs out."""
        end, said = time.monotonic() + _REQUEST_SECONDS, b""
        while not re.search(rb"\r?\n\r?\n", said) and len(said) <= _MAX_REQUEST:
            left = end - time.monotonic()
            if left <= 0:
                break
            self.request.settimeout(left)
            try:
                more = self.request.recv(_MAX_REQUEST)
            except OSError:  # Too late, or gone.
                break
            if not more:
                break
            said += more
        return said

    def _answer(self, request: bytes) -> tuple[bytes, Page]:
        line = _REQUEST_LINE.match(request)
        if len(request) > _MAX_REQUEST:
            return b"", _error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if not re.search(rb"\r?\n\r?\n", request):
            return b"", _error(HTTPStatus.REQUEST_TIMEOUT)
        if line is None:
            return b"", _error(HTTPStatus.BAD_REQUEST)
        if line[1] not in (b"GET", b"HEAD"):
            return line[1], _error(HTTPStatus.METHOD_NOT_ALLOWED)
        path = line[2].decode("ascii").partition("?")[0]
        try:
            return line[1], self.server.pages(path)
        except Exception as error:  # A bug, which must not look like an agent that is down.
            self.server.failed(path, error)
            return line[1], _error(HTTPStatus.INTERNAL_SERVER_ERROR)


def _error(status: HTTPStatus) -> Page:
    return Page(status, f"{status.phrase}\n".encode())
