"""Connection tracking's entries: of flows to an address, and those that rules no longer agree with.

A flow that connection tracking knows never meets a nat rule again, and a UDP client that goes on
sending from one port keeps its flow for ever. So UDP entries are deleted: where a rule is made,
changed or removed, what is known of the flows that it is about has to go; kube-proxy does the same
for its own. A flow that was right already only loses its entry, and gets the same one with its next
packet.

How many flows there are is up to whoever sends, and to look for them takes the kernel long. So it
is done in a thread of its own, with one deletion for all flows of a rule, and within bounds; where
they are reached, that is said.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from typing import Callable, NamedTuple, Protocol

from ipvs_node_agent.backoff import Once
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import (
    Address,
    Family,
    contains,
    parse_address,
    show_address,
    show_network,
)
from ipvs_node_agent.nat.flows import Flows
from ipvs_node_agent.processes.launcher import Launcher

log = logging.getLogger(__name__)

# What one round may take: so many deletions and, with all of them, so many seconds.
_MOST_DELETIONS, _PATIENCE, _TIME_LIMIT = 64, 20.0, 10.0
# So many seconds the end of the program waits for it.
_LAST_PATIENCE = 5.0
# So many flows are kept in mind meanwhile, and so many addresses are looked for one by one.
_MOST_FLOWS, _FEW = 1 << 16, 4
_FLOW = re.compile(r"udp .*? src=(\S+) dst=(\S+) sport=\d+ dport=(\d+) ")
# What is read of a listing, in bytes: some 100,000 flows.
_MOST_LISTED = 16 << 20
# As it comes, and as it is to be answered.
_BOTH_WAYS = re.compile(
    r"([a-z][a-z0-9-]*) +\d+ .*?src=(\S+) dst=(\S+) sport=\d+ dport=(\d+) .*?src=(\S+) dst="
)


class Flow(NamedTuple):
    """A flow with ports, and whose answers it waits for: who is behind the `destination`."""

    protocol: str
    source: Address
    destination: Address
    port: int
    answered_by: Address


def flows_to(address: Address) -> tuple[Flow, ...] | None:
    """What connection tracking knows of flows to `address`; None where it cannot be read."""
    arguments = ["-L", "-f", f"ipv{address.version}", "--orig-dst", show_address(address)]
    try:
        with closing(command.launch()) as launcher:
            listing = command.start(
                launcher, "conntrack", arguments, limit=_TIME_LIMIT, package="conntrack"
            )
            return both_ways(listing.result(_MOST_LISTED))
    except TableError:
        return None


def both_ways(listing: str) -> tuple[Flow, ...]:
    """The flows in a listing (conntrack -L)."""
    found = []
    # The last line is cut off where there are too many.
    for entry in map(_BOTH_WAYS.match, listing.splitlines()):
        if entry is not None:
            protocol, source, destination, port, answering = entry.groups()
            with suppress(ValueError):
                ends = parse_address(source), parse_address(destination), int(port)
                found.append(Flow(protocol, *ends, parse_address(answering)))
    return tuple(found)


class Forgetter(Protocol):
    """Deletes connection tracking's entries."""

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        """Deletes the entries of UDP `flows`; `hosts` are the addresses of this host."""


class Deletion(NamedTuple):
    """Entries that one command deletes: from `source` to `address`, to any UDP port or to one.

    An empty `source` is anybody.
    """

    source: str
    address: Address
    port: int | None


def deletions(
    listing: str, wanted: Iterable[Flows], hosts: Iterable[Address]
) -> frozenset[Deletion]:
    """What deletes those of `wanted` that are in `listing` (conntrack -L); a CIDR is one source."""
    meant: dict[tuple[Address, int | None], list[Flows]] = {}
    for flows in wanted:
        meant.setdefault((flows.address, flows.port), []).append(flows)
    local = frozenset(hosts)
    found = set()
    for line in listing.splitlines():
        entry = _FLOW.match(line)
        if entry is None:
            continue
        try:
            source, address = parse_address(entry[1]), parse_address(entry[2])
        except ValueError:
            continue
        for port in (None, int(entry[3])):
            for flows in meant.get((address, port), ()):
                if flows.source is not None:
                    if contains(flows.source, source):
                        found.add(Deletion(show_network(flows.source), address, port))
                elif not flows.local:
                    # No entry tells by which interface its flow came.
                    found.add(Deletion("", address, port))
                # The kernel takes an IP on kube-ipvs0 as the source of what the host sends to it.
                elif source in local or source == address:
                    found.add(Deletion(show_address(source), address, port))
    if len(found) > _MOST_DELETIONS:
        # With the flows to other ports of the address, which get their entries back.
        found = {deletion._replace(port=None) for deletion in found}
    return frozenset(found)


class Conntrack:
    """Deletes in the thread of `run`, with what `launch` gives while there is something to do."""

    def __init__(
        self, launch: Callable[[], Launcher], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._launch, self._clock = launch, clock
        self._changed = threading.Condition()
        self._wanted: dict[Family, set[Flows]] = {}
        self._hosts: tuple[Address, ...] = ()
        self._dropped = 0
        self._stopped, self._is_busy = False, False
        self._fault = Once()

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        """See `Forgetter`; only takes note of it."""
        with self._changed:
            wanted = self._wanted.setdefault(family, set())
            for each in flows:
                if len(wanted) >= _MOST_FLOWS:
                    self._dropped += 1
                else:
                    wanted.add(each)
            self._hosts = tuple(hosts)
            self._changed.notify_all()

    def run(self) -> None:
        """Deletes what it is told to, until `stop`."""
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted or self._stopped)
                if not self._wanted:
                    return
                self._is_busy = True
            self.turn()

    def stop(self) -> None:
        """Has `run` end, and waits a while for what it was told to delete.

        Whoever starts next writes nothing, and so does not delete it.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._wanted or self._is_busy), _LAST_PATIENCE)

    def turn(self) -> None:
        """Deletes what was noted. What fails is said once, and leaves a flow where it was."""
        with self._changed:
            wanted, self._wanted = self._wanted, {}
            dropped, self._dropped = self._dropped, 0
        fault = f"too many changes at once, {dropped} left" if dropped else ""
        with closing(self._launch()) as launcher:
            for family, flows in wanted.items():
                try:
                    fault = self._delete(launcher, family, flows) or fault
                except TableError as error:
                    fault = str(error)
        if self._fault.new(fault):
            log.warning("existing UDP flows may not follow a change of rules: %s", fault)

    def _delete(self, launcher: Launcher, family: Family, flows: AbstractSet[Flows]) -> str:
        """Deletes the entries of `flows`; gives what it had to leave. Raises TableError."""
        end = self._clock() + _PATIENCE
        # With few addresses the command picks the lines out, which are then few as well.
        addresses = {each.address for each in flows}
        picks = [["--orig-dst", show_address(address)] for address in addresses]
        found: set[Deletion] = set()
        for pick in picks if len(picks) <= _FEW else [[]]:
            found |= deletions(self._command(launcher, family, "-L", *pick), flows, self._hosts)
        left = sorted(found, key=str)
        for count, deletion in enumerate(left):
            if count >= _MOST_DELETIONS or self._clock() > end:
                shown = show_address(deletion.address)
                return f"gave up after {count} deletions, {len(left) - count} left, such as {shown}"
            port = [] if deletion.port is None else ["--orig-port-dst", str(deletion.port)]
            source = ["--orig-src", deletion.source] if deletion.source else []
            to = ["--orig-dst", show_address(deletion.address), *port]
            self._command(launcher, family, "-D", *source, *to)
        return ""

    def _command(self, launcher: Launcher, family: Family, action: str, *arguments: str) -> str:
        return command.start(
            launcher,
            "conntrack",
            # Options of a protocol come after it.
            [action, "-f", f"ipv{family.version}", "-p", "udp", *arguments],
            limit=_TIME_LIMIT,
            package="conntrack",
            good=(0, 1),  # 1 where there was nothing to delete.
        ).result()
