"""What a node does to the agent's table: chains that come and go, drift, refusals, UDP flows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.iptables.conntrack import Flows
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address, parse_network
from tests.support.agentnode import OTHER, WEB_4, Node, Table, other, running, said, web
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.faketable import FakeTable
from tests.support.tables import EMPTY_MARK_MASQ, MARK_MASQ

EXTERNAL = WEB_4[0]
WITHOUT_MARK = (
    '*nat\n-D POSTROUTING -m comment --comment "kubernetes postrouting" -j KUBE-POSTROUTING\n'
)
WITHOUT_MARK += (
    "-F KUBE-MARK-MASQ\n-F KUBE-POSTROUTING\n-X KUBE-MARK-MASQ\n-X KUBE-POSTROUTING\nCOMMIT\n"
)
OWN_MARK = ["IPVS_MARK_MASQ", "IPVS_POSTROUTING"]


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def chains(made: Node) -> list[str]:
    """The agent's chains in the IPv4 table."""
    return sorted(line[1:].split()[0] for line in made.tables[IPV4].lines if line[:5] == ":IPVS")


def targets(made: Node) -> set[str]:
    """Which chains mark, as the IPv4 rules have it."""
    lines = made.tables[IPV4].lines
    return {line.split()[-1] for line in lines if line.endswith(("-MASQ", "_MASQ"))}


def starting(table: FakeTable, *services: Any) -> Node:
    made = Node()
    made.tables[IPV4]._chains = table._chains
    made.list_node(node(*POD_CIDRS))
    made.list_services(*services)
    made.settle()
    return made


# The chain that marks


def test_a_node_without_the_chain_that_marks_gets_one_of_our_own() -> None:
    made = starting(FakeTable(), web(EXTERNAL))
    assert made.agent.in_sync
    assert set(OWN_MARK) < set(chains(made))
    assert targets(made) == {"IPVS_MARK_MASQ"}
    assert "-A POSTROUTING -j IPVS_POSTROUTING" in made.tables[IPV4].lines


def test_ours_gives_way_in_one_write_as_soon_as_kubernetes_is_there() -> None:
    made = starting(FakeTable(), web(EXTERNAL))
    made.tables[IPV4].restore(MARK_MASQ)
    before = made.tables[IPV4].restores
    made.pass_time(3)
    assert made.tables[IPV4].restores == before + 1
    made.holds(WEB_4)


def test_ours_stays_while_kubernetes_is_there_and_empty() -> None:
    made = starting(FakeTable(), web(EXTERNAL))
    made.tables[IPV4].restore(EMPTY_MARK_MASQ)
    made.pass_time(3)
    assert targets(made) == {"IPVS_MARK_MASQ"}
    made.tables[IPV4].restore(MARK_MASQ)
    made.pass_time(3)
    assert targets(made) == {"KUBE-MARK-MASQ"}


def test_ours_comes_back_in_one_write_when_kubernetes_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It cannot go while rules of ours jump to it, but with a flush of everything it does."""
    made = running(web(EXTERNAL))
    made.tables[IPV4]._chains = FakeTable()._chains
    before = made.tables[IPV4].restores
    made.pass_time(3)
    assert made.tables[IPV4].restores == before + 1
    assert targets(made) == {"IPVS_MARK_MASQ"}
    assert not said(caplog, "cannot")


def test_without_a_service_nothing_marks() -> None:
    made = starting(FakeTable())
    assert chains(made) == ["IPVS_OUTPUT", "IPVS_PREROUTING"]
    made.put(web(EXTERNAL))
    made.settle()
    assert set(OWN_MARK) < set(chains(made))
    made.delete("web")
    made.pass_time(3)
    assert chains(made) == ["IPVS_OUTPUT", "IPVS_PREROUTING"]


def test_a_chain_that_marks_and_goes_before_the_next_write_makes_no_failed_one() -> None:
    made = running()
    made.tables[IPV4].restore(WITHOUT_MARK)
    made.put(web(EXTERNAL))
    made.settle()
    assert made.agent.in_sync
    assert targets(made) == {"IPVS_MARK_MASQ"}


# Drift


@pytest.mark.parametrize(
    ("meddling", "reason"),
    [
        ("-F IPVS_OUTPUT", "a chain was empty"),
        ("-D OUTPUT -j IPVS_OUTPUT", "a jump was gone"),
        ("-I OUTPUT 1 -j IPVS_OUTPUT", "a jump was there more than once"),
        ("-I OUTPUT 1 -j KUBE-POSTROUTING", "a jump was not the first rule"),
        ("-A IPVS_OUTPUT -j RETURN", "a chain's rules were others"),
        (":IPVS_OUTPUT-stray - [0:0]", "there was a chain too many"),
        (
            "-D OUTPUT -j IPVS_OUTPUT\n-F IPVS_OUTPUT\n-X IPVS_OUTPUT",
            "a chain was gone and a jump was gone",
        ),
    ],
)
def test_what_was_repaired_is_said_with_the_reason(
    caplog: pytest.LogCaptureFixture, meddling: str, reason: str
) -> None:
    made = running(web(EXTERNAL))
    made.tables[IPV4].restore(f"*nat\n{meddling}\nCOMMIT\n")
    made.pass_time(2.1)
    assert len(said(caplog, f"IPv4: repaired .* ms: {reason} \\(")) == 1
    assert made.agent.in_sync


def test_a_change_of_our_own_is_no_repair(caplog: pytest.LogCaptureFixture) -> None:
    made = running(web(EXTERNAL))
    made.put(other())
    made.pass_time(600)
    made.delete("web")
    made.pass_time(600)
    assert not said(caplog, "repaired")


def test_who_fights_with_us_is_said_to_do_so_once(caplog: pytest.LogCaptureFixture) -> None:
    made = running(web(EXTERNAL))
    before = made.tables[IPV4].restores
    for _ in range(600):
        made.tables[IPV4]._chains["OUTPUT"] = []
        made.pass_time(0.1)
    assert len(said(caplog, "repaired")) == 1
    # One write of ours each two seconds.
    assert 25 <= made.tables[IPV4].restores - before <= 35
    made.pass_time(100)
    made.tables[IPV4]._chains["OUTPUT"] = []
    made.pass_time(3)
    assert len(said(caplog, "repaired")) == 2


# Services that the kernel refuses


class Choosy(Table):
    """A table that refuses all rules for some addresses, and says or does not say which it was."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.names_it = True
        # External IPs that have rules from now on, after every write.
        self.served: set[str] = set()

    def restore(self, text: str) -> None:
        for number, line in enumerate(text.split("\n"), 1):
            if any(f"-d {address}/32" in line for address in self.refused):
                why = f"line {number}: RULE_APPEND failed"
                blamed = number if self.names_it else None
                raise TableError("iptables-restore", why, line=blamed, by_content=True)
        super().restore(text)
        for chain in ("IPVS_PREROUTING", "IPVS_OUTPUT"):
            translated = {rule.split("-d ")[1].split("/")[0] for rule in self._chains[chain]}
            assert self.served <= translated


def choosy(names_it: bool, *refused: str) -> tuple[Node, Choosy]:
    made, table = Node(), Choosy()
    table.refused, table.names_it = set(refused), names_it
    made.tables[IPV4] = table
    made.agent.reconfigure(made.config, made.programmers())
    made.list_node(node(*POD_CIDRS))
    return made, table


@pytest.mark.parametrize("names_it", [True, False])
def test_one_that_the_kernel_refuses_is_left_out_and_named(
    caplog: pytest.LogCaptureFixture, names_it: bool
) -> None:
    made, _ = choosy(names_it, EXTERNAL)
    made.list_services(web(EXTERNAL), other())
    made.settle()
    made.holds(OTHER)
    assert made.agent.in_sync
    assert len(said(caplog, "^default/web: its IPv4 rules are left out, trying again: ")) == 1
    assert not said(caplog, "default/other.*left out")
    made.put(service("later", ["10.231.7.7"], ["10.19.77.7"]))
    made.settle()
    made.holds(OTHER, ("10.19.77.7", "later", "10.231.7.7"))


@pytest.mark.parametrize("names_it", [True, False])
def test_it_is_tried_again_by_itself_and_said_once(
    caplog: pytest.LogCaptureFixture, names_it: bool
) -> None:
    made, table = choosy(names_it, EXTERNAL)
    made.list_services(web(EXTERNAL), other())
    made.pass_time(40)
    made.holds(OTHER)
    assert len(said(caplog, "left out")) == 1
    table.refused.clear()
    made.pass_time(80)
    made.holds(WEB_4, OTHER)
    assert said(caplog, "takes its") == ["default/web: the kernel takes its IPv4 rules now"]


def test_it_is_tried_again_when_it_changes() -> None:
    made, _ = choosy(True, EXTERNAL)
    made.list_services(web(EXTERNAL), other())
    made.settle()
    made.put(web("10.19.20.202"))
    made.settle()
    made.holds(("10.19.20.202", "web", WEB_4[2]), OTHER)


def test_one_that_is_refused_can_be_deleted() -> None:
    made, _ = choosy(True, EXTERNAL)
    made.list_services(web(EXTERNAL), other())
    made.settle()
    made.delete("web")
    made.pass_time(40)
    made.holds(OTHER)


def test_a_failure_that_is_nobodys_in_particular_is_no_services(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = running(web(EXTERNAL))
    made.tables[IPV4].broken = TableError("iptables-restore", "no", by_content=True)
    made.put(other())
    made.pass_time(30)
    assert not said(caplog, "left out")
    assert len(said(caplog, "cannot program the kernel")) == 1
    made.tables[IPV4].broken = None
    made.pass_time(11)
    made.holds(WEB_4, OTHER)


def test_one_whose_rules_the_kernel_takes_no_more_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its rules are in the chain that has to be written for another one."""
    made, table = choosy(False)
    made.list_services(web(EXTERNAL))
    made.settle()
    table.refused.add(EXTERNAL)
    made.put(other())
    made.settle()
    assert len(said(caplog, "default/web: its IPv4 rules are left out")) == 1
    made.holds(OTHER)


def test_while_the_kernel_is_asked_whose_rules_it_refuses_all_others_stay() -> None:
    """Every rule is new, as Kubernetes' chain that marks is gone, and one of them is refused."""
    made, table = choosy(False, "10.19.66.66")
    made.list_services(web(EXTERNAL), other())
    made.settle()
    table.served = {EXTERNAL, OTHER[0]}
    made.put(service("bad", ["10.231.6.6"], ["10.19.66.66"]))
    table._chains["KUBE-MARK-MASQ"] = []
    made.pass_time(3)
    assert made.agent.in_sync
    assert targets(made) == {"IPVS_MARK_MASQ"}
    assert not [line for line in table.lines if "10.19.66.66" in line or "probe" in line]


def test_a_line_that_is_named_is_no_services_fault_where_the_kernel_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, table = choosy(True)
    made.list_services(web(EXTERNAL), other())
    made.settle()

    def restore(text: str) -> None:
        raise TableError("iptables-restore", "line 4: Cannot allocate memory", line=4)

    with monkeypatch.context() as short:
        short.setattr(table, "restore", restore)
        made.put(service("later", ["10.231.7.7"], ["10.19.77.7"]))
        made.pass_time(1)
        assert not made.agent.in_sync
    made.pass_time(11)
    made.holds(WEB_4, OTHER, ("10.19.77.7", "later", "10.231.7.7"))


@pytest.mark.parametrize("names_it", [True, False])
def test_many_that_are_refused_take_nothing_from_those_that_have_their_rules(
    names_it: bool,
) -> None:
    """So many that it takes several rounds to find out who they are."""
    made, table = choosy(names_it)
    made.list_services(web(EXTERNAL), other())
    made.settle()
    table.served = {EXTERNAL, OTHER[0]}
    bad = [f"10.19.{66 + number // 200}.{number % 200}" for number in range(60)]
    table.refused = set(bad)
    made.put(*(service(f"bad-{n}", ["10.231.6.6"], [ip]) for n, ip in enumerate(bad)))
    # What every rule depends on becomes another one at the same time.
    table._chains["KUBE-MARK-MASQ"] = []
    made.pass_time(30)
    assert made.agent.in_sync
    assert targets(made) == {"IPVS_MARK_MASQ"}
    refused = {p.service for p in made.agent.view().problems if p.reason == "KernelRefused"}
    assert refused == {f"default/bad-{number}" for number in range(60)}


# UDP flows


class Conntrack:
    """Notes what it is to forget."""

    def __init__(self) -> None:
        self.forgotten: list[Flows] = []

    def forget(self, family: Family, flows: Iterable[Flows], hosts: Iterable[Address]) -> None:
        self.forgotten += flows

    def taken(self) -> set[str]:
        """The addresses of what was to be forgotten since the last call."""
        forgotten, self.forgotten = self.forgotten, []
        assert {each.source for each in forgotten} <= {None, *map(parse_network, POD_CIDRS)}
        return {str(each.address) for each in forgotten}


def udp(external: str, cluster_ip: str = "10.231.5.3", name: str = "dns") -> dict[str, Any]:
    raw = service(name, [cluster_ip], [external])
    raw["spec"]["ports"] = [{"protocol": "UDP", "port": 53}]
    return raw


def test_flows_start_anew_when_their_rule_is_made_changed_or_removed() -> None:
    conntrack = Conntrack()
    made = Node(conntrack=conntrack)
    made.list_node(node(*POD_CIDRS))
    made.list_services(udp("10.19.9.9"), web(EXTERNAL))
    made.settle()
    assert conntrack.taken() == {"10.19.9.9"}
    made.put(udp("10.19.9.9", cluster_ip="10.231.5.4"))
    made.settle()
    assert conntrack.taken() == {"10.19.9.9"}
    made.put(udp("10.19.9.10", cluster_ip="10.231.5.4"))
    made.settle()
    assert conntrack.taken() == {"10.19.9.9", "10.19.9.10"}
    made.delete("dns")
    made.settle()
    assert conntrack.taken() == {"10.19.9.10"}


def test_flows_go_on_over_a_restart_and_beside_changes_of_others() -> None:
    conntrack = Conntrack()
    made = running(udp("10.19.9.9"))
    again = Node(before=made, conntrack=conntrack)
    again.list_node(node(*POD_CIDRS))
    again.list_services(udp("10.19.9.9"))
    again.settle()
    again.put(web(EXTERNAL), udp("10.19.9.10", "10.231.5.5", "more"))
    again.settle()
    assert conntrack.taken() == {"10.19.9.10"}


def test_flows_of_a_rule_that_was_lost_start_anew_when_it_is_back() -> None:
    conntrack = Conntrack()
    made = Node(conntrack=conntrack)
    made.list_node(node(*POD_CIDRS))
    made.list_services(udp("10.19.9.9"))
    made.settle()
    conntrack.taken()
    made.tables[IPV4].restore("*nat\n-F IPVS_OUTPUT\nCOMMIT\n")
    made.pass_time(3)
    assert conntrack.forgotten == [Flows("default/dns", None, parse_address("10.19.9.9"), None)]
