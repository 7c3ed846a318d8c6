"""A small HTTP server for metrics and health.

HTTP is GET and HEAD, a request for each connection. What a request says beyond method and path is
not looked at. Who may be hostile is kept in bounds by what it stands on (`boundedserver`).
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from http import HTTPStatus
from typing import Callable, NamedTuple

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.model.addresses import parse_host_port
from ipvs_node_agent.observe.boundedserver import BACKLOG, BoundedServer

log = logging.getLogger(__name__)

_MAX_REQUEST = 8 << 10
# For the request, and for request and answer together: as long as Prometheus waits by default.
_REQUEST_SECONDS, _SECONDS = 3.0, 10.0
# One page takes long, and is made but once at a time.
_WORKERS = 3
# What the kernel may hold of an answer that nobody takes.
_SEND_BUFFER = 64 << 10
# How often an address that could not be had is tried again.
_RETRY_SECONDS = 5.0
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")


class Page(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Callable[[str], Page]


class _Request(NamedTuple):
    """What is asked for, or why that cannot be told."""

    method: str = ""
    path: str = ""
    error: HTTPStatus | None = None


class WebServer:
    """Serves `pages`, by path, at `address` (HOST:PORT) in threads of its own, until `stop`.

    An address that cannot be had is tried again; `after` is the server whose place it takes.
    """

    def __init__(self, address: str, pages: Pages, after: WebServer | None = None) -> None:
        self.address, self._pages = address, pages
        self._stopped = threading.Event()
        self._after = after
        self._server: BoundedServer[_Request] | None = None
        self._complaint = Once()
        self._failures: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Has it end, soon."""
        self._stopped.set()
        if self._server is not None:
            self._server.stop()

    def join(self) -> None:
        """Waits until it no longer has its address."""
        self._thread.join()

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None  # Or each would keep all before it.
        while not self._stopped.is_set():
            try:
                self._server = self._made()
            except (OSError, UnicodeError) as error:
                why = getattr(error, "strerror", None) or str(error)
                if self._complaint.new(why):
                    log.warning(
                        "cannot serve metrics and health at %s: %s"
                        " (trying again; see metricsBindAddress)",
                        self.address,
                        why,
                    )
                self._stopped.wait(_RETRY_SECONDS)
                continue
            log.info("metrics and health are served at %s", self.address)
            if self._stopped.is_set():
                self._server.stop()
            self._server.serve()

    def _made(self) -> BoundedServer[_Request]:
        """A server at the address. Raises OSError and UnicodeError."""
        listener = _listener(self.address)
        try:
            return BoundedServer(
                listener, _request, self._answer, _REQUEST_SECONDS, _SECONDS, _WORKERS
            )
        except OSError:
            # Or the next try would find the address taken.
            listener.close()
            raise

    def _answer(self, request: _Request) -> bytes:
        page = self._page(request)
        head = (
            f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}\r\n"
            f"Content-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n"
            + ("Allow: GET, HEAD\r\n" if page.status == HTTPStatus.METHOD_NOT_ALLOWED else "")
            + "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if request.method == "HEAD" else page.body)

    def _page(self, request: _Request) -> Page:
        if request.error is not None:
            return _error(request.error)
        try:
            return self._pages(request.path)
        except Exception as error:  # A bug, which must not look like an agent that is down.
            # Said once for each path, which is asked for again and again.
            path, kind, why = request.path, type(error).__name__, one_line(str(error))
            if path not in self._failures:
                log.error("cannot make %s: %s: %s (please report it)", path, kind, why)
            log.debug("cannot make %s", path, exc_info=error)
            # Others choose what they ask for, but only paths that there are can fail.
            self._failures.add(path)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR)


def _listener(address: str) -> socket.socket:
    """What listens at HOST:PORT; no host means all addresses. Raises OSError and UnicodeError."""
    host, port = parse_host_port(address)
    if not host:
        # Without IPv6, the first of what all addresses are.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (as asked for)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, resolved = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Those that it accepts have it as well.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind(resolved)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _request(said: bytes, over: bool) -> _Request | None:
    """What the bytes ask for; None where more have to come."""
    if len(said) > _MAX_REQUEST:
        return _Request(error=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if not _END.search(said):
        return _Request(error=HTTPStatus.REQUEST_TIMEOUT) if over else None
    line = _REQUEST_LINE.match(said)
    if line is None:
        return _Request(error=HTTPStatus.BAD_REQUEST)
    method, path = line[1].decode("ascii"), line[2].decode("ascii").partition("?")[0]
    if method not in ("GET", "HEAD"):
        return _Request(error=HTTPStatus.METHOD_NOT_ALLOWED)
    return _Request(method, path)


def _error(status: HTTPStatus) -> Page:
    return Page(status, f"{status.phrase}\n".encode())
