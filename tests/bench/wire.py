"""What a new connection costs: UDP packets from a pod's namespace through a node's to a sink.

A packet is worked off by the kernel before the call that sends it returns, so the time of many
sends is the time that their way through the node takes: veth, routing, connection tracking and nat.
Each packet has a destination port of its own, and so is a new connection. The sink drops them all.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.netns import Namespace, link, namespaces
from tests.support.waiting import eventually

POD = {4: "10.240.2.130", 6: "fd00:10:240:2::130"}
_GATEWAY = {4: "10.240.2.129", 6: "fd00:10:240:2::1"}
_OUT = {4: "10.200.0.1", 6: "fd00:10:200::1"}
_SINK = {4: "10.200.0.2", 6: "fd00:10:200::2"}
_LENGTH = {4: (25, 24), 6: (64, 64)}

_BATCH = 512
_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Wire:
    """The three namespaces, and how to send through them."""

    def __init__(self, pod: Namespace, node: Namespace, sink: Namespace) -> None:
        self._pod, self.node, self._sink = pod, node, sink

    def cost(self, address: str, connections: int) -> float:
        """Microseconds that a new connection from the pod to `address` takes, over so many."""
        self.node.run("conntrack", "-F")
        first = 1024
        messages = [
            _messages(address, range(first + at, first + min(at + _BATCH, connections)))
            for at in range(0, connections, _BATCH)
        ]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self._pod.enter():
            sock = socket.socket(family, socket.SOCK_DGRAM)
        with sock:
            sock.bind(("", 0))
            before = self._arrived()
            descriptor = sock.fileno()
            started = time.perf_counter()
            for batch, _keep in messages:
                sent = _libc.sendmmsg(descriptor, batch, len(batch), 0)
                if sent != len(batch):
                    raise OSError(ctypes.get_errno(), f"sent {sent} of {len(batch)}")
            took = time.perf_counter() - started
        eventually(lambda: self._arrived() - before >= connections, "all packets at the sink")
        return took / connections * 1e6

    def _arrived(self) -> int:
        with self._sink.enter():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.strip().startswith("eth0:"))


def _messages(address: str, ports: range) -> tuple[ctypes.Array[_Message], list[object]]:
    """A batch for sendmmsg(2), a message for each port, and what it refers to."""
    payload = ctypes.create_string_buffer(b"x" * 16)
    vector = _Vector(ctypes.addressof(payload), 16)
    keep: list[object] = [payload, vector]
    batch = (_Message * len(ports))()
    for index, port in enumerate(ports):
        if ":" in address:
            packed = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
            packed += socket.inet_pton(socket.AF_INET6, address) + struct.pack("=I", 0)
        else:
            packed = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port)
            packed += socket.inet_pton(socket.AF_INET, address) + bytes(8)
        name = ctypes.create_string_buffer(packed, len(packed))
        keep.append(name)
        header = batch[index].header
        header.name, header.name_length = ctypes.addressof(name), len(packed)
        header.vectors, header.vector_count = ctypes.addressof(vector), 1
    return batch, keep


@contextmanager
def wire() -> Iterator[Wire]:
    """The namespaces, wired up, with nothing in their tables."""
    with namespaces("pod", "node", "sink") as (pod, node, sink):
        link(node, pod, "to-pod", "eth0")
        link(node, sink, "to-sink", "eth0")
        node.forward()
        for version, (inside, outside) in _LENGTH.items():
            node.add_address("to-pod", f"{_GATEWAY[version]}/{inside}")
            pod.add_address("eth0", f"{POD[version]}/{inside}")
            node.add_address("to-sink", f"{_OUT[version]}/{outside}")
            sink.add_address("eth0", f"{_SINK[version]}/{outside}")
            default = "default" if version == 4 else "::/0"
            pod.add_route(default, _GATEWAY[version])
            node.add_route(default, _SINK[version])
            # Neighbours that are asked for in the middle of a measurement would be part of it.
            _know(pod, "eth0", _GATEWAY[version], node, "to-pod")
            _know(node, "to-sink", _SINK[version], sink, "eth0")
        yield Wire(pod, node, sink)


def _know(here: Namespace, device: str, address: str, there: Namespace, its: str) -> None:
    (shown,) = json.loads(there.run("ip", "-json", "link", "show", "dev", its))
    ethernet = shown["address"]
    here.run("ip", "neighbour", "replace", address, "lladdr", ethernet, "dev", device)


@contextmanager
def pinned() -> Iterator[None]:
    """This process stays on one core meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
