"""Pages of this node's own programs: what is no page is nothing."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from ipvs_node_agent.localpage import page


class Refusing(BaseHTTPRequestHandler):
    """Knows no method, and says so at length."""

    def log_message(self, *_: object) -> None:
        pass


def test_an_error_is_no_page_whatever_it_says_and_neither_is_silence() -> None:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    address = ("127.0.0.1", server.server_port)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert page(address, "/proxyMode") == ""
    thread.join()
    server.server_close()
    assert page(address, "/proxyMode") == ""
