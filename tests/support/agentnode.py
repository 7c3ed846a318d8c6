"""An agent on a node in memory: its clock, tables and API server are the test's."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.conntrack import Forgetter
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6, Family, parse_network
from ipvs_node_agent.model.events import NODES, SERVICES, Changed, Deleted, Listed
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.sync.agent import Agent
from ipvs_node_agent.sync.state import Meter
from tests.support.clock import Clock
from tests.support.cluster import POD_CIDRS, by_chain, expected_rules, node, service
from tests.support.faketable import FakeTable
from tests.support.tables import MARK_MASQ, foreign, ours

CLUSTER_4, CLUSTER_6 = "10.231.42.164", "fd00:10:231::a4"
EXTERNAL_4, EXTERNAL_6 = "10.19.20.201", "fd00:10:19::c9"
NAMES = frozenset(
    f"IPVS_{part}" for part in ("PREROUTING", "OUTPUT", "MARK_MASQ", "POSTROUTING")
) | {"NEW_PREROUTING", "NEW_OUTPUT"}
BUSY = TableError("iptables-nft-restore", "Resource temporarily unavailable")

Entry = tuple[str, str, str]


class Table(FakeTable):
    """A table that can be broken for longer than once, and that counts how often it is read."""

    def __init__(self, content: str = MARK_MASQ, name: str = "nat") -> None:
        super().__init__(content, name)
        self.broken: TableError | None = None
        self.tries = 0

    def save(self) -> str:
        self.tries += 1
        if self.broken is not None:
            raise self.broken
        return super().save()

    def restore(self, text: str) -> None:
        if self.broken is not None:
            raise self.broken
        super().restore(text)

    def meddle(self, *lines: str) -> None:
        """Somebody else changes the table."""
        count = self.restores
        self.restore("\n".join([f"*{self.name}", *lines, "COMMIT", ""]))
        self.restores = count

    @property
    def lines(self) -> list[str]:
        """The table's lines, without counters."""
        return [re.sub(r" \[0:0\]$", "", line) for line in self.save().splitlines()]


class CheapProgrammer(Programmer):
    """One whose looks cost the same on a busy machine."""

    check_seconds: float = 0.0


class Node:
    """A node with an agent on it, whose clock and tables are the test's."""

    def __init__(
        self,
        config: Config | None = None,
        before: Node | None = None,
        conntrack: Forgetter | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.clock = Clock()
        self.config = config or Config()
        self.tables: dict[Family, Table] = before.tables if before else self.new_tables()
        self.filters: dict[Family, Table] = (
            before.filters if before else {f: Table("", "filter") for f in FAMILIES}
        )
        self.agent = Agent(
            self.config,
            self.programmers(),
            self.clock,
            conntrack,
            meter,
            filters=self.filter_programmers(),
        )

    @staticmethod
    def new_tables() -> dict[Family, Table]:
        return {family: Table() for family in FAMILIES}

    def programmers(self) -> dict[Family, Programmer]:
        return {f: CheapProgrammer(table, owner(NAMES), str(f)) for f, table in self.tables.items()}

    def filter_programmers(self) -> dict[Family, Programmer]:
        owns = owner(frozenset({"IPVS_INPUT"}))
        return {f: CheapProgrammer(table, owns, f"{f} filter") for f, table in self.filters.items()}

    # What the API server tells

    def list_services(self, *services: Mapping[str, Any]) -> None:
        items = tuple(read_service(raw) for raw in services)
        self.agent.take(Listed(SERVICES, items, self.clock.now))

    def list_node(self, *nodes: Mapping[str, Any]) -> None:
        self.agent.take(Listed(NODES, tuple(read_node(raw) for raw in nodes), self.clock.now))

    def list_all(self, *services: Mapping[str, Any]) -> None:
        self.list_node(node(*POD_CIDRS))
        self.list_services(*services)

    def put(self, *services: Mapping[str, Any]) -> None:
        for raw in services:
            self.agent.take(Changed(SERVICES, read_service(raw), self.clock.now))

    def delete(self, *names: str) -> None:
        for name in names:
            self.agent.take(Deleted(SERVICES, f"default/{name}", self.clock.now))

    def put_node(self, raw: Mapping[str, Any]) -> None:
        self.agent.take(Changed(NODES, read_node(raw), self.clock.now))

    def reload(self, **changes: Any) -> None:
        """Goes on with these changes of the configuration, on the tables that there are."""
        config = replace(self.config, **changes)
        self.agent.reconfigure(config, self.programmers(), self.filter_programmers())

    # Time

    def tick(self) -> float:
        """One tick, which must not ask for another one at the same time."""
        due = self.agent.tick()
        assert due > self.clock.now
        return due

    def pass_time(self, seconds: float) -> int:
        """Lets time pass and ticks as asked for; gives the number of ticks."""
        end, ticks = self.clock.now + seconds, 0
        while self.clock.now <= end:
            due = self.tick()
            ticks += 1
            assert ticks < 100 + 20 * seconds, "ticks without end"
            self.clock.now = due
        self.clock.now = end
        return ticks

    def settle(self) -> None:
        """Ticks until nothing is left to do, which takes less than the time between two checks."""
        self.pass_time(self.config.drift_check_period / 4)

    # What has become of it

    @property
    def restores(self) -> dict[Family, int]:
        return {family: table.restores for family, table in self.tables.items()}

    def written(self, family: Family) -> list[str]:
        """The chains that the last restore wrote."""
        return re.findall(r"^:(\S+)", self.tables[family].last_input, re.MULTILINE)

    def rules(self, family: Family) -> list[str]:
        """The agent's lines in a table."""
        return by_chain(ours(self.tables[family].lines))

    def holds(self, *entries: Entry, cidrs: Sequence[str] = POD_CIDRS) -> None:
        """Asserts that the tables hold exactly the rules for `entries`, and what was foreign."""
        for family in FAMILIES:
            wanted = expected_rules(
                _sorted(e for e in entries if _family(e[0]) is family),
                [cidr for cidr in cidrs if _family(cidr) is family],
            )
            assert self.rules(family) == wanted
            assert foreign(self.tables[family].lines) == foreign(Table().lines)

    def holds_nothing(self) -> None:
        """Asserts that nothing was ever written."""
        assert self.restores == {IPV4: 0, IPV6: 0}
        assert not self.rules(IPV4)
        assert not self.rules(IPV6)


def _family(text: str) -> Family:
    return IPV6 if ":" in text else IPV4


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: parse_network(f"{entry[0]}/{_family(entry[0]).bits}"))


def web(
    *external_ips: str, cluster_ips: Sequence[str] = (CLUSTER_4, CLUSTER_6), **fields: Any
) -> dict[str, Any]:
    """The Service `web` with these external IPs."""
    return service("web", cluster_ips, external_ips, **fields)


def other(external_ip: str = "10.19.22.57", name: str = "other") -> dict[str, Any]:
    return service(name, ["10.231.2.62"], [external_ip])


def ipv4_node() -> dict[str, Any]:
    """A Node that does not speak IPv6."""
    raw = node(POD_CIDRS[0])
    addresses = [{"type": "InternalIP", "address": "192.168.7.11"}]
    return {**raw, "status": {"addresses": addresses}}


def with_metadata(raw: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**raw, "metadata": {**raw["metadata"], **fields}}


def with_ingress(raw: dict[str, Any], *points: Mapping[str, str]) -> dict[str, Any]:
    return {**raw, "status": {"loadBalancer": {"ingress": list(points)}}}


WEB_4: Entry = (EXTERNAL_4, "web", CLUSTER_4)
WEB_6: Entry = (EXTERNAL_6, "web", CLUSTER_6)
OTHER: Entry = ("10.19.22.57", "other", "10.231.2.62")


def running(*services: Mapping[str, Any], config: Config | None = None) -> Node:
    """A node whose agent holds the rules for `services`."""
    made = Node(config)
    made.list_all(*services)
    made.settle()
    assert made.agent.in_sync
    return made


class Log:
    """What the agent logs from INFO on."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.clear = caplog.clear
        self._caplog = caplog

    def said(self, pattern: str = "") -> list[str]:
        """The messages so far that match `pattern`."""
        return [m for m in self._caplog.messages if re.search(pattern, m)]
