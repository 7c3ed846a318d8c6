"""Runs in the machine: servers that tell each client its address, and clients in its namespaces.

    traffic.py serve NAMESPACE             answers on the port PORT
    traffic.py stream STARTED STOP         connections again and again, until the file STOP is there
    traffic.py watch LOG                   the same without an end; each result is a line of LOG

Connections come from standard input. One is [namespace, address, port]; the namespace "host" is the
machine's own. What is printed for it is the address that the server saw, or the error.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PORT = 8080
_ASK_SECONDS = 3.0
# A connection of a stream that takes so long has failed.
_STREAM_SECONDS = 10.0
_WATCH_SECONDS = 3.0
# More of them would leave the emulated processor no time for anything else.
_PAUSE, _WATCH_PAUSE = 0.5, 0.5
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


def connect(address: str, port: int, timeout: float) -> tuple[str, int]:
    """Who the server saw, or the error; and how many packets had to be sent twice."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
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
        found[index] = connect(address, port, _ASK_SECONDS)[0]

    _join(threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(wanted))
    return found


def stream(wanted: list[list[Any]], started: Path, stop: Path) -> None:
    """Makes the connections again and again; what became of them is printed at the end."""
    results = [{"good": 0, "bad": [], "twice": 0, "slowest": 0.0, "saw": []} for _ in wanted]

    def one(result: dict[str, Any], namespace: str, address: str, port: int) -> None:
        enter(namespace)
        while not stop.exists():
            began = time.monotonic()
            saw, twice = connect(address, port, _STREAM_SECONDS)
            result["slowest"] = max(result["slowest"], time.monotonic() - began)
            result["twice"] += twice
            if ":" in saw or "." in saw:
                result["good"] += 1
            else:
                result["bad"].append(saw)
            if saw not in result["saw"]:
                result["saw"].append(saw)
            if all(each["good"] for each in results):
                started.touch()
            time.sleep(_PAUSE)

    _join(threading.Thread(target=one, args=(r, *each)) for r, each in zip(results, wanted))
    print(json.dumps(results))


def watch(wanted: list[list[Any]], log: Path) -> None:
    """Writes a line for each connection: when it began and ended since the boot, and its result."""
    with log.open("w", buffering=1) as file:

        def one(index: int, namespace: str, address: str, port: int) -> None:
            enter(namespace)
            while True:
                began = time.monotonic()
                saw = connect(address, port, _WATCH_SECONDS)[0]
                file.write(json.dumps([index, began, time.monotonic(), saw]) + "\n")
                time.sleep(_WATCH_PAUSE)

        _join(threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(wanted))


def _join(threads: Iterable[threading.Thread]) -> None:
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def main(what: str, *arguments: str) -> None:
    """Does what the command line says."""
    if what == "serve":
        serve(*arguments)
        return
    wanted = json.load(sys.stdin)
    if what == "stream":
        stream(wanted, *map(Path, arguments))
    else:
        watch(wanted, *map(Path, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
