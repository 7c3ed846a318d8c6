"""Runs in the machine: servers that tell each client its address, and clients in its namespaces.

    traffic.py serve NAMESPACE             answers on the port PORT
    traffic.py watch LOG                   connections again and again; each result is a line of LOG

Connections come from standard input. One is [namespace, address, port]; the namespace "host" is the
machine's own. A result is the address that the server saw, or the error.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

PORT = 8080
_SECONDS = 3.0
# More of them would leave the emulated processor no time for anything else.
_PAUSE = 0.5
_CLONE_NEWNET = 0x40000000
_TCP_INFO_TOTAL_RETRANS = 100
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    """The calling thread is in a namespace from now on."""
    if namespace == "host":
        return
    with open(f"/run/netns/{namespace}") as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def serve(namespace: str) -> None:
    """Answers each connection with its client's address."""
    enter(namespace)
    with socket.create_server(
        ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
    ) as listener:
        while True:
            connection, peer = listener.accept()
            with connection:
                connection.sendall(peer[0].replace("::ffff:", "").encode())


def connect(address: str, port: int) -> tuple[str, int]:
    """Who the server saw, or the error; and how many packets had to be sent twice."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SECONDS)
        try:
            sock.connect((address, port))
            saw = sock.recv(100).decode() or "nothing"
        except OSError as error:
            return type(error).__name__, 0
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return saw, struct.unpack_from("I", info, _TCP_INFO_TOTAL_RETRANS)[0]


def ask(wanted: list[list[Any]]) -> list[str]:
    """Makes each connection once, all at the same time; who the server saw, or the error."""
    found = [""] * len(wanted)

    def one(index: int, namespace: str, address: str, port: int) -> None:
        enter(namespace)
        found[index] = connect(address, port)[0]

    _join(threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(wanted))
    return found


def watch(wanted: list[list[Any]], log: str) -> None:
    """Writes of each: which it was, when it began and ended since the boot, and its result."""
    with open(log, "w", buffering=1) as file:

        def one(index: int, namespace: str, address: str, port: int) -> None:
            enter(namespace)
            while True:
                began = time.monotonic()
                result = connect(address, port)
                file.write(json.dumps([index, began, time.monotonic(), *result]) + "\n")
                time.sleep(_PAUSE)

        _join(threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(wanted))


def _join(threads: Iterable[threading.Thread]) -> None:
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        watch(json.load(sys.stdin), sys.argv[2])
