"""Traffic beside a single TCP connection: streams of connections, UDP flows, SCTP packets."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from tests.support.meanwhile import meanwhile
from tests.support.netns import Namespace
from tests.support.topology import EXTERNAL_IP, PORT, Topology, ask_here
from tests.support.waiting import eventually

_IPPROTO_SCTP = 132
_SCTP_INIT = 1


class Stream:
    """New connections from one namespace, one after the other; each says what it got."""

    def __init__(
        self, client: Namespace, addresses: tuple[str, ...], pause: float, most: int
    ) -> None:
        self._client, self._addresses = client, addresses
        self._pause, self._most = pause, most
        self._stopped = threading.Event()
        self._rounds = 0
        self._lock = threading.Lock()
        # By the address asked: what was said since the last look.
        self._answers: dict[str, set[str]] = {address: set() for address in addresses}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._client.enter():
            while self._rounds < self._most and not self._stopped.wait(self._pause):
                for address in self._addresses:
                    answer = ask_here(address)
                    with self._lock:
                        self._answers[address].add(answer)
                self._rounds += 1

    def expect(self, *answers: Mapping[int, str]) -> None:
        """Waits for some more; since the last look each connection got one of `answers`.

        These are given by the version of IP.
        """
        wanted = self._rounds + 20
        eventually(lambda: self._rounds >= wanted, "20 connections", timeout=60)
        with self._lock:
            seen, self._answers = self._answers, {address: set() for address in self._addresses}
        for address, said in seen.items():
            assert said, address
            assert said <= {answer[6 if ":" in address else 4] for answer in answers}, address

    @property
    def made(self) -> int:
        """How many connections it has made."""
        return self._rounds * len(self._addresses)

    def stop(self) -> None:
        """Ends it."""
        self._stopped.set()
        self._thread.join(60)


@contextmanager
def streaming(
    client: Namespace, *addresses: str, pause: float = 0.004, most: int = 10_000
) -> Iterator[Stream]:
    """A stream of new connections to `addresses`, of at most `most` rounds."""
    stream = Stream(client, addresses, pause, most)
    try:
        yield stream
    finally:
        stream.stop()


class Streams(NamedTuple):
    """New connections of the pod and of the host to the external IPs."""

    pod: Stream
    host: Stream

    def expect(self, *answers: Mapping[int, str]) -> None:
        """`Stream.expect` of both."""
        for stream in self:
            stream.expect(*answers)


@contextmanager
def streams(wired: Topology, **options: Any) -> Iterator[Streams]:
    """Both of them meanwhile."""
    external = EXTERNAL_IP.values()
    with (
        streaming(wired.pod, *external, **options) as pod,
        streaming(wired.node, *external, **options) as host,
    ):
        yield Streams(pod, host)


@contextmanager
def serving_udp(namespace: Namespace, *addresses: str, port: int = PORT) -> Iterator[None]:
    """A UDP server in `namespace` that tells each client the address that it has itself."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(_socket(namespace, a, socket.SOCK_DGRAM)) for a in addresses]
        for sock, address in zip(sockets, addresses):
            sock.bind((address, port))

        def answer() -> None:
            for sock in select.select(sockets, [], [], 0.05)[0]:
                _, client = sock.recvfrom(100)
                sock.sendto(sock.getsockname()[0].encode(), client)

        with meanwhile(answer):
            yield


def ask_udp(client: Namespace, address: str, port: int = PORT, timeout: float = 2.0) -> str:
    """Sends a packet of a new flow from `client`; what came back, or the name of the error."""
    with _socket(client, address, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
            sock.send(b"?")
            return sock.recv(100).decode()
        except OSError as error:
            return type(error).__name__


def ask_sctp(client: Namespace, address: str, port: int, server: Namespace, *servers: str) -> str:
    """Sends an SCTP INIT from `client` to `address`; which of `servers` it got to, or nothing.

    The packet is made by hand, since a kernel without SCTP sockets still matches and translates it.
    """
    with ExitStack() as stack:
        listening = {}
        for each in servers:
            sock = stack.enter_context(_socket(server, each, socket.SOCK_RAW, _IPPROTO_SCTP))
            sock.bind((each, 0))
            listening[sock] = each
        raw = stack.enter_context(_socket(client, address, socket.SOCK_RAW, _IPPROTO_SCTP))
        sent = _sctp_init(port)
        raw.sendto(sent, (address, 0))
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for sock in select.select(list(listening), [], [], 0.1)[0]:
                # An INIT has its tag and its port; a raw socket of IPv4 gets the IP header too.
                if sock.recv(2000)[-len(sent) + 2 : -len(sent) + 4] == sent[2:4]:
                    return listening[sock]
        return "nothing"


def _socket(
    namespace: Namespace, address: str, kind: socket.SocketKind, protocol: int = 0
) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        return socket.socket(family, kind, protocol)


def _sctp_init(port: int) -> bytes:
    """The common header and an INIT chunk (RFC 9260), with its checksum."""
    # A tag, a window, a stream each way, and the first sequence number.
    chunk = struct.pack("!BBHIIHHI", _SCTP_INIT, 0, 20, 0x1234, 65536, 1, 1, 1)
    ports = struct.pack("!HHI", 40000 + port, port, 0)
    checksum = struct.pack("<I", _crc32c(ports + bytes(4) + chunk))
    return ports + checksum + chunk


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
