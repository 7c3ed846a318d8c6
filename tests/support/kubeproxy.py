"""What kube-proxy leaves of itself on a node: its chains, its device and its word on its mode."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ipvs_node_agent.model.addresses import IPV4
from tests.support.netns import Namespace
from tests.support.tables import restore

PORT = 10249


@contextmanager
def proxy_mode(namespace: Namespace, mode: str, address: str = "127.0.0.1") -> Iterator[None]:
    """A server that tells kube-proxy's mode, as kube-proxy does; by default at that address."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

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
        server = Server((address, PORT), Handler)
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


def add_tables(namespace: Namespace, mode: str, backend: str = "nft") -> None:
    """What kube-proxy makes in a mode in which external IPs work without the agent."""
    if mode == "nftables":
        namespace.run("nft", "add", "table", "ip", "kube-proxy")
        return
    rules = (
        "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y"
    )
    chains = ":KUBE-SERVICES - [0:0]\n:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]"
    restore(namespace, IPV4, backend, f"*nat\n{chains}\n{rules}\nCOMMIT\n")


def remove_tables(namespace: Namespace, mode: str, backend: str = "nft") -> None:
    """Takes away what `add_tables` made."""
    if mode == "nftables":
        namespace.run("nft", "delete", "table", "ip", "kube-proxy")
        return
    restore(namespace, IPV4, backend, "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n")
