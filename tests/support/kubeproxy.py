"""What kube-proxy leaves of itself on a node: its chains, its device and its word on its mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.netns import Namespace

PORT = 10249


@contextmanager
def proxy_mode(namespace: Namespace, mode: str) -> Iterator[None]:
    """A server that tells kube-proxy's mode, as kube-proxy does by default."""

    class Handler(BaseHTTPRequestHandler):
        # Go's server keeps the connection.
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.path == "/proxyMode"
            body = mode.encode() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with namespace.enter():
        server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def add_device(namespace: Namespace) -> None:
    """A device of the name that the IPVS mode binds external IPs to."""
    # Not every kernel that tests run on has dummy devices.
    namespace.run("ip", "link", "add", "kube-ipvs0", "type", "bridge")
