"""Connections to the API server: given up when it vanishes, and never without their socket.

http.client takes the socket from a connection that is to close behind its answer (`Connection:
close`, HTTP/1.0), so that neither it nor urllib3 could say by which one the body comes. So these
connections have responses that keep it.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from ipvs_node_agent.kubeconfig.reader import Settings

# A connection whose peer vanished is given up within 45 s, so that its watch is replaced within 60.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 25),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 45_000),
]


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.sock = sock


class _Connection(HTTPConnection):
    response_class = _Response


class _TlsConnection(HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def pool(settings: Settings, context: ssl.SSLContext) -> urllib3.PoolManager:
    """What opens connections to the API server, by its proxy where it has one."""
    options: dict[str, Any] = {
        "maxsize": 4,
        "retries": False,
        "ssl_context": context,
        # Debian's urllib3 1.26 would set it to required in the context otherwise.
        "cert_reqs": context.verify_mode,
        "socket_options": _SOCKET_OPTIONS,
    }
    # A connection without TLS takes no such option.
    if settings.server_name and settings.server.lower().startswith("https:"):
        options["server_hostname"] = settings.server_name
    opened = urllib3.PoolManager(**options)
    if settings.proxy:
        authorization = settings.proxy_authorization
        headers = {"proxy-authorization": authorization} if authorization else None
        opened = urllib3.ProxyManager(settings.proxy, proxy_headers=headers, **options)
    opened.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return opened
