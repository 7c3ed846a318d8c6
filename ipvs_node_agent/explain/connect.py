"""Real connections to an external IP, from the host and from a pod of this node.

A pod's are made in its network namespace, by a process of its own without any rights: this one
never leaves its namespace. Nothing is sent on a connection, and nothing that comes is read.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Any, NamedTuple

from ipvs_node_agent.errors import one_line
from ipvs_node_agent.host import podspaces
from ipvs_node_agent.host.links import Links
from ipvs_node_agent.host.podspaces import End
from ipvs_node_agent.model.addresses import (
    Address,
    contains,
    parse_address,
    parse_network,
    show_address,
    show_network,
)
from ipvs_node_agent.processes import isolated
from ipvs_node_agent.processes.isolated import Child
from ipvs_node_agent.rules.coverage import Coverage
from ipvs_node_agent.rules.policy import is_one_of

MOST_PORTS = 16
SECONDS = 3.0
# For a Python to start as well, on a busy node.
_PATIENCE = 30.0
# Of so many pods one has to be fit: others may have no address of the family.
_MOST_PODS = 32
_CLONE_NEWNET = 0x40000000
# Whoever the pods' own firewalls (a service mesh's) take for any program. No capability is left.
_NOBODY = 65534
_SOME_PORT = 9

_WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: "no answer",
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "no route, or the last router does not know the host",
    errno.EACCES: "prohibited, as by a route of that type",
    errno.EADDRNOTAVAIL: "no address or port to connect from",
}


class Attempt(NamedTuple):
    """A connection that was tried, from the `origin`: host, or pod and its name or address."""

    origin: str
    port: int
    ok: bool
    text: str


def connections(
    address: Address,
    ports: Sequence[int],
    known: Coverage,
    links: Links,
    names: Mapping[Address, str] | None = None,
) -> tuple[Attempt, ...]:
    """Connects to the first TCP `ports` of `address`, from the host and from one of the pods.

    A pod is who is `known` for one; `names` are those of pods by their addresses. Without one that
    can be entered and has an address of this family, there are the host's connections alone.
    """
    with suppress(OSError), ExitStack() as stack:
        wanted = {end.space for end in pods_ends(podspaces.ends(), known, links)}
        spaces = stack.enter_context(podspaces.opened(wanted, _MOST_PODS))
        sources = [] if known.interfaces else list(map(show_network, known.cidrs))
        asked = {"address": show_address(address), "ports": list(ports[:MOST_PORTS])}
        pod = {**asked, "spaces": spaces, "sources": sources}
        # Both at the same time.
        children = [
            stack.enter_context(Child(__name__, json.dumps(task), descriptors=spaces))
            for task in ([asked, pod] if spaces else [asked])
        ]
        end = time.monotonic() + _PATIENCE
        return tuple(
            attempt
            for child, is_pod in zip(children, (False, True))
            for attempt in _attempts(child, is_pod, end, names or {})
        )
    return ()


def pods_ends(ends: Sequence[End], known: Coverage, links: Links) -> list[End]:
    """Those of `ends` that lead to pods.

    By pod CIDR, these are the interfaces that have an address inside or a route to one; where there
    are none, as a network plugin may do without, whoever has such an address may be a pod.
    """
    if known.interfaces:
        return [each for each in ends if _is_among(each, known.interfaces)]
    near = [*links.addresses, *((r.interface, r.destination.network_address) for r in links.routes)]
    names = {name for name, address in near if any(contains(cidr, address) for cidr in known.cidrs)}
    return [each for each in ends if _is_among(each, tuple(names))] or list(ends)


def _is_among(end: End, interfaces: Sequence[str]) -> bool:
    return is_one_of(end.name, interfaces) or bool(end.bridge and is_one_of(end.bridge, interfaces))


def _attempts(
    child: Child, is_pod: bool, end: float, names: Mapping[Address, str]
) -> Iterator[Attempt]:
    try:
        said = json.loads(child.said(max(0.0, end - time.monotonic())))
        source = parse_address(said["source"])
        origin = f"pod {one_line(names.get(source, show_address(source)))}" if is_pod else "host"
        for port, ok, text in said["attempts"]:
            yield Attempt(origin, int(port), bool(ok), one_line(str(text)))
    except (OSError, ValueError, KeyError, TypeError):
        # It ended, or found nobody: then there is nothing to tell.
        return


def main(leash: str, task: str) -> None:
    """In the child: prints what becomes of connections, from a namespace that is fit for them."""
    isolated.follow(leash)
    asked = json.loads(task)
    address = asked["address"]
    source = _entered(asked) if "spaces" in asked else address
    if source is None:
        return
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    results = _connect(address, asked["ports"])
    attempts = [[port, not why, why or "connected"] for port, why in results]
    print(json.dumps({"source": source, "attempts": attempts}))


def _entered(asked: Any) -> str | None:
    """The own address in the first namespace that has a fit one; this process is in there then."""
    library = ctypes.CDLL(None, use_errno=True)
    cidrs = [parse_network(cidr) for cidr in asked["sources"]]
    for descriptor in asked["spaces"]:
        if library.setns(descriptor, _CLONE_NEWNET) == 0:
            source = _source(asked["address"])
            if source is not None and (
                not cidrs or any(contains(cidr, parse_address(source)) for cidr in cidrs)
            ):
                return source
    return None


def _source(address: str) -> str | None:
    """The address that a connection there would come from; None without a fit one."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.connect((address, _SOME_PORT))
            source = str(sock.getsockname()[0])
            own = ip_address(source)
            is_unfit = own.is_link_local or own.is_loopback or source == address
            return None if is_unfit else source
    except (OSError, ValueError):
        return None


def _connect(address: str, ports: Sequence[int]) -> list[tuple[int, str]]:
    """What was in the way of each connection, all at the same time; empty where it came about."""
    end = time.monotonic() + SECONDS
    with ExitStack() as files:
        found: dict[int, str] = {}
        waiting, pending = select.poll(), {}
        for port in ports:
            sock = files.enter_context(socket.socket(_family(address), socket.SOCK_STREAM))
            sock.setblocking(False)
            number = sock.connect_ex((address, port))
            if number == errno.EINPROGRESS:
                pending[sock.fileno()] = port, sock
                waiting.register(sock, select.POLLOUT)
            else:
                found[port] = _words(number)
        while pending:
            ready = waiting.poll(max(0.0, end - time.monotonic()) * 1000)
            if not ready:
                break
            for descriptor, _ in ready:
                waiting.unregister(descriptor)
                port, sock = pending.pop(descriptor)
                found[port] = _words(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        late = f"no answer within {SECONDS:g} s"
        return [(port, found.get(port, late)) for port in ports]


def _words(number: int) -> str:
    return _WORDS.get(number, os.strerror(number)) if number else ""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
