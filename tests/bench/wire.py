"""What a new connection costs: UDP packets from a pod's namespace through a node's to a sink.

A packet is worked off by the kernel before the call that sends it returns, so the time of many
sends is the time that their way through the node takes: veth, routing, connection tracking and nat.
Each packet has a destination port of its own, and so is a new connection. The sink, the topology's
backend, drops them all.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.netns import Namespace
from tests.support.topology import BACKEND, POD, POD_GATEWAY, Topology, topology
from tests.support.waiting import eventually

_BATCH = 512
_FIRST_PORT = 1024
_PAYLOAD = b"x" * 16
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


def cost(wired: Topology, address: str, connections: int, port: int = 0) -> float:
    """Microseconds that a new connection from the pod to `address` takes, over so many.

    Each goes to a port of its own, or all to `port` from ports of their own, which is for IPv4.
    """
    wired.node.run("conntrack", "-F")
    ports = range(_FIRST_PORT, _FIRST_PORT + connections)
    make = partial(_messages, address) if not port else partial(_packets, address, port)
    batches = [make(ports[at : at + _BATCH]) for at in range(0, connections, _BATCH)]
    with wired.pod.enter():
        kind = (socket.SOCK_RAW, socket.IPPROTO_RAW) if port else (socket.SOCK_DGRAM,)
        sock = socket.socket(_socket_family(address), *kind)
    with sock:
        if not port:
            sock.bind(("", 0))
        before = _arrived(wired)
        descriptor = sock.fileno()
        started = time.perf_counter()
        for batch, _keep in batches:
            sent = _libc.sendmmsg(descriptor, batch, len(batch), 0)
            if sent != len(batch):
                raise OSError(ctypes.get_errno(), f"sent {sent} of {len(batch)}")
        took = time.perf_counter() - started
    eventually(lambda: _arrived(wired) - before >= connections, "all packets at the sink")
    return took / connections * 1e6


def _arrived(wired: Topology) -> int:
    with wired.backend.enter():
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split()[2]) for line in lines if line.strip().startswith("eth0:"))


_Batch = tuple[Any, list[object]]


def _messages(address: str, ports: range) -> _Batch:
    """A batch for sendmmsg(2), a message for each port, and what it refers to."""
    return _batch(address, [(port, _PAYLOAD) for port in ports])


def _packets(address: str, to: int, ports: range) -> _Batch:
    """A batch of whole packets to one port, from each of `ports`; UDP has no checksum."""
    source, there = map(socket.inet_aton, (POD[4], address))
    length = 8 + len(_PAYLOAD)
    # The kernel fills in length, number and checksum of the first header.
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, source, there)
    packets = [ip + struct.pack("!HHHH", port, to, length, 0) + _PAYLOAD for port in ports]
    return _batch(address, [(0, packet) for packet in packets])


def _batch(address: str, sent: Sequence[tuple[int, bytes]]) -> _Batch:
    """A batch of messages to these ports of `address`, and what it refers to."""
    keep: list[object] = []
    batch = (_Message * len(sent))()
    family = _socket_family(address)
    # Between port and address IPv6 has the flow, and behind them the scope.
    flow, behind = (bytes(4), bytes(4)) if family == socket.AF_INET6 else (b"", bytes(8))
    packed = flow + socket.inet_pton(family, address) + behind
    for message, (port, data) in zip(batch, sent):
        start = struct.pack("=H", family) + struct.pack("!H", port)
        name = ctypes.create_string_buffer(start + packed, len(start + packed))
        payload = ctypes.create_string_buffer(data, len(data))
        vector = _Vector(ctypes.addressof(payload), len(data))
        keep += (name, payload, vector)
        header = message.header
        header.name, header.name_length = ctypes.addressof(name), len(name)
        header.vectors, header.vector_count = ctypes.addressof(vector), 1
    return batch, keep


def _socket_family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def wire() -> Iterator[Topology]:
    """A node that sends to the sink whatever it knows no other way for."""
    with topology() as wired:
        for version, default in ((4, "default"), (6, "::/0")):
            wired.node.add_route(default, BACKEND[version])
            # Neighbours that are asked for in the middle of a measurement would be part of it.
            _know(wired.pod, "eth0", POD_GATEWAY[version], wired.node, "to-pod")
            _know(wired.node, "to-backend", BACKEND[version], wired.backend, "eth0")
        yield wired


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
