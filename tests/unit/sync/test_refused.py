"""Services whose rules the kernel refuses: who they are, and what becomes of all others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.nat.ruleset import Found, Ruleset
from ipvs_node_agent.rules.render import MARK_CHAINS
from ipvs_node_agent.sync.refused import probe, refused_of, services_in
from tests.support.agentnode import (
    OTHER,
    WEB_4,
    Log,
    Node,
    Table,
    ipv4_node,
    other,
    running,
    web,
)
from tests.support.cluster import POD_CIDRS, expected_rules, service

# 1. What the kernel refuses is left out, and nothing else

EXTERNAL = WEB_4[0]
LATER = ("10.19.77.7", "later", "10.231.7.7")
LATER_RAW = service("later", ["10.231.7.7"], ["10.19.77.7"])


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
    """A node with `web` and `other`, and a table that refuses the rules for these addresses."""
    made, table = Node(), Choosy()
    table.refused, table.names_it = set(refused), names_it
    made.tables[IPV4] = table
    made.reload()
    made.list_all(web(EXTERNAL), other())
    made.settle()
    return made, table


def test_a_refusal_where_nothing_is_wanted_is_nobodys_fault() -> None:
    """Nor is there a chain to try anything in, which once ended the process."""
    made = Node()
    made.list_services(other())
    made.list_node(ipv4_node())
    error = TableError("ip6tables-nft-save", "Failed to initialize nft", by_content=True)
    made.tables[IPV6].fail_next(error)
    made.settle()
    assert made.rules(IPV4) == expected_rules([OTHER], POD_CIDRS[:1])
    assert made.rules(IPV6) == []
    assert made.agent.in_sync


@pytest.mark.parametrize("names_it", [True, False])
def test_one_that_the_kernel_refuses_is_left_out_named_and_tried_again(
    log: Log, names_it: bool
) -> None:
    made, table = choosy(names_it, EXTERNAL)
    made.holds(OTHER)
    assert made.agent.in_sync
    made.put(LATER_RAW)
    made.pass_time(40)
    made.holds(OTHER, LATER)
    assert len(log.said("left out")) == 1
    assert len(log.said("^default/web: its IPv4 rules are left out, trying again: ")) == 1
    table.refused.clear()
    made.pass_time(80)
    made.holds(WEB_4, OTHER, LATER)
    assert log.said("takes its") == ["default/web: the kernel takes its IPv4 rules now"]


def test_it_is_tried_again_when_it_changes_and_can_be_deleted() -> None:
    made, _ = choosy(True, EXTERNAL)
    made.put(web("10.19.20.202"))
    made.settle()
    made.holds(("10.19.20.202", "web", WEB_4[2]), OTHER)
    made.put(web(EXTERNAL))
    made.settle()
    made.delete("web")
    made.pass_time(40)
    made.holds(OTHER)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"by_content": True}, id="no line is named"),
        pytest.param({"line": 4}, id="a line is named where memory is short"),
    ],
)
def test_a_failure_that_is_nobodys_in_particular_is_no_services(
    error: dict[str, Any], log: Log
) -> None:
    made = running(web(EXTERNAL))
    made.tables[IPV4].broken = TableError("iptables-restore", "no", **error)
    made.put(other())
    made.pass_time(30)
    assert not log.said("left out")
    assert len(log.said("cannot program the kernel")) == 1
    made.tables[IPV4].broken = None
    made.pass_time(11)
    made.holds(WEB_4, OTHER)


def test_one_whose_rules_the_kernel_takes_no_more_does_not_hold_up_the_others(log: Log) -> None:
    """Its rules are in the chain that has to be written for another one."""
    made, table = choosy(False)
    table.refused.add(EXTERNAL)
    made.put(LATER_RAW)
    made.settle()
    assert len(log.said("default/web: its IPv4 rules are left out")) == 1
    made.holds(OTHER, LATER)


@pytest.mark.parametrize(
    ("names_it", "count"),
    [
        pytest.param(False, 1, id="one"),
        # It takes several rounds to find out who they are.
        pytest.param(True, 60, id="many that are named"),
        pytest.param(False, 60, id="many"),
    ],
)
def test_while_the_kernel_is_asked_whose_rules_it_refuses_all_others_stay(
    names_it: bool, count: int
) -> None:
    """Every rule is new, as Kubernetes' chain that marks is gone."""
    made, table = choosy(names_it)
    table.served = {EXTERNAL, OTHER[0]}
    bad = [f"10.19.{66 + number // 200}.{number % 200}" for number in range(count)]
    table.refused = set(bad)
    made.put(*(service(f"bad-{n}", ["10.231.6.6"], [ip]) for n, ip in enumerate(bad)))
    table._chains["KUBE-MARK-MASQ"] = []
    made.pass_time(30)
    assert made.agent.in_sync
    lines = "\n".join(table.lines)
    assert "-j IPVS_MARK_MASQ" in lines
    gone = ("-j KUBE-MARK-MASQ", "-probe", *(f" {address}/" for address in bad))
    assert not [word for word in gone if word in lines]
    refused = {p.service for p in made.agent.view().problems if p.reason == "KernelRefused"}
    assert refused == {f"default/bad-{number}" for number in range(count)}


# 2. Whose rules they are

RULE = '-d 10.19.0.1/32 -m comment --comment "default/{}" -j DNAT --to-destination 10.231.0.1'
GOOD, BAD = RULE.format("good"), RULE.format("bad")
PODS, HOST = "IPVS_PREROUTING", "IPVS_OUTPUT"
JUMPS = {"PREROUTING": PODS, "OUTPUT": HOST}
HOOKED = {"PREROUTING": ((1, PODS),), "OUTPUT": ((2, HOST),)}
WANTED = Ruleset(
    {
        PODS: ("-d 10.19.0.0/24 -j IPVS_PREROUTING-x",),
        "IPVS_PREROUTING-x": (GOOD, BAD),
        HOST: (BAD,),
    },
    JUMPS,
)
JUMP = "-d 0.0.0.0/32 -j IPVS_{}-probe"


def test_suspected_is_who_has_a_rule_in_a_written_chain() -> None:
    written = {"A": (RULE.format("old"), RULE.format("new")), "B": ("-j A",)}
    assert services_in(written) == {"default/new", "default/old"}


@settings(max_examples=200)
@given(st.sets(st.integers(0, 300)), st.data())
def test_who_is_refused_is_found_and_nobody_else(everybody: set[int], data: st.DataObject) -> None:
    refused = (
        st.sets(st.sampled_from(sorted(everybody)), max_size=3) if everybody else st.just(set())
    )
    names = frozenset(str(number) for number in data.draw(refused))
    again = {str(number) for number in everybody if number % 7 == 0}
    groups = [again, {*map(str, everybody)} - again]
    assert refused_of(groups, lambda keys: not names & keys) == (names, frozenset())


def test_where_not_even_the_rules_of_none_are_taken_it_is_nobodys_fault() -> None:
    asked = []

    def takes(keys: frozenset[str]) -> bool:
        asked.append(keys)
        return False

    assert refused_of([["a", "b"]], takes) == (frozenset(), frozenset())
    assert asked == [frozenset()]


def test_who_is_not_asked_about_in_time_is_not_known() -> None:
    """A hundred refused ones of two hundred would take hundreds of tries."""
    everybody = {str(number) for number in range(200)}
    bad = frozenset(str(number) for number in range(0, 200, 2))
    tries = []

    def takes(keys: frozenset[str]) -> bool:
        tries.append(keys)
        return not bad & keys

    refused, unknown = refused_of([everybody], takes)
    assert refused
    assert refused <= bad <= refused | unknown
    assert len(tries) == 65


# 3. The question, and what it leaves


def test_the_rules_asked_about_are_where_no_packet_comes() -> None:
    found = Found({PODS: (GOOD,), HOST: ()}, HOOKED)
    change, after = probe(IPV4, WANTED, found, frozenset({"default/bad"}))
    assert change.written == {f"{PODS}-probe": (BAD,), f"{HOST}-probe": (BAD,)}
    assert change.appended == {PODS: (JUMP.format("PREROUTING"),), HOST: (JUMP.format("OUTPUT"),)}
    assert (change.hooked, change.unhooked, change.dropped) == ((), (), ())
    assert after.chains == {
        PODS: (GOOD, JUMP.format("PREROUTING")),
        HOST: (JUMP.format("OUTPUT"),),
        **change.written,
    }
    # The next question only writes other rules.
    change, _ = probe(IPV4, WANTED, after, frozenset({"default/good"}))
    assert change.written == {f"{PODS}-probe": (GOOD,), f"{HOST}-probe": ()}
    assert not change.appended


@pytest.mark.parametrize("jumps", [{}, {"PREROUTING": ((1, PODS),)}])
def test_what_is_not_there_yet_is_made_and_led_to(
    jumps: dict[str, tuple[tuple[int, str], ...]],
) -> None:
    wanted = Ruleset({**WANTED.chains, **MARK_CHAINS}, JUMPS)
    change, after = probe(IPV4, wanted, Found({}, jumps), frozenset())
    assert change.written[PODS] == (JUMP.format("PREROUTING"),)
    assert MARK_CHAINS.items() <= change.written.items()
    assert {(at, top) for at, _, top in change.hooked} == {
        pair for pair in JUMPS.items() if pair[0] not in jumps
    }
    assert after.jumps == {"PREROUTING": ((1, PODS),), "OUTPUT": ((1, HOST),)}


def test_a_jump_that_is_there_moves_behind_ours() -> None:
    found = Found({"OLD": ()}, {"OUTPUT": ((1, "OLD"),)})
    _, after = probe(IPV4, WANTED, found, frozenset())
    assert after.jumps["OUTPUT"] == ((1, HOST), (2, "OLD"))
