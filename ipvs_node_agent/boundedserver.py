"""Servers that answer in threads, of which there are only so many; whoever comes later waits."""

from __future__ import annotations

import logging
import socketserver
import threading
from typing import Any

log = logging.getLogger(__name__)

# How soon the end of a server is noticed.
POLL_SECONDS = 0.2


class BoundedServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """To be put before a server of `socketserver`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    timeout = POLL_SECONDS
    at_once = 16

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(self.at_once)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread, once there are not too many."""
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # No thread is to be had; the next request may be luckier.
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers, and makes room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is its client's business."""
        log.debug("a request failed", exc_info=True)
