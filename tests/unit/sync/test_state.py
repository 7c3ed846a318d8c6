"""What others are told of an agent, and whether it does its work, read off that."""

from __future__ import annotations

import pytest

from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.model.events import RESTART_REASONS, Restarted
from ipvs_node_agent.nat.ruleset import DRIFT
from ipvs_node_agent.sync.state import PATIENCE, AgentState, FamilyState, Published, sickness
from tests.support.agentnode import BUSY, EXTERNAL_4, EXTERNAL_6, Node, other, running, web
from tests.support.cluster import node


def sick(made: Node) -> str:
    now = made.clock.now
    return sickness(Published(now, sentence="As it is", agent=made.agent.state()), now)


@pytest.mark.parametrize(
    ("turned", "waiting_since", "words"),
    [
        pytest.param(939, 0, "the main loop has been hanging for 61 s", id="hanging"),
        pytest.param(940, 940, "", id="patience"),
        pytest.param(
            999, 900, "a change has not reached the kernel for 100 s: As it is", id="waiting"
        ),
    ],
)
def test_after_a_minute_it_is_said_what_is_wrong(
    turned: float, waiting_since: float, words: str
) -> None:
    agent = AgentState(waiting_since=waiting_since)
    assert sickness(Published(turned, sentence="As it is", agent=agent), now=1000) == words


def test_a_change_waits_for_the_kernel_from_its_arrival_until_it_is_there() -> None:
    made = running(web(EXTERNAL_4))
    made.pass_time(PATIENCE * 2)
    assert not sick(made)
    made.tables[IPV4].broken = BUSY
    made.put(other())
    made.pass_time(PATIENCE - 5)
    assert not sick(made)
    # A change that came later does not count from the beginning.
    made.put(other("10.19.22.58", "another"))
    made.pass_time(10)
    assert sick(made) == "a change has not reached the kernel for 65 s: As it is"
    made.tables[IPV4].broken = None
    made.pass_time(11)
    assert not sick(made)


def test_two_tables_of_a_family_are_as_far_as_the_one_that_is_behind() -> None:
    nat = FamilyState(5, 20, 4, 1, synced=90, queued=80)
    other = FamilyState(0, 1, 1, 2, synced=70, queued=95, waiting_since=75)
    both = FamilyState(5, 21, 5, 3, synced=70, queued=95, waiting_since=75)
    assert nat.joined(other) == other.joined(nat) == both


def test_a_repair_that_fails_waits_too() -> None:
    made = running(web(EXTERNAL_4))
    made.tables[IPV4].broken = BUSY
    made.pass_time(PATIENCE + 5)
    assert sick(made)


def test_services_wait_for_a_pod_cidr_but_nothing_waits_for_the_api_server() -> None:
    made = Node()
    made.pass_time(PATIENCE + 5)
    assert not sick(made)
    made.list_node(node())
    made.list_services(web(EXTERNAL_4))
    made.pass_time(PATIENCE + 5)
    assert sick(made)


def test_what_is_in_the_kernel_is_counted_by_family() -> None:
    families = running(web(EXTERNAL_4, EXTERNAL_6), other()).agent.state().families.values()
    counts = [(family.services, family.rules, family.chains) for family in families]
    assert counts == [(2, 8, 2), (1, 4, 2)]


def test_a_table_found_right_counts_as_synced() -> None:
    made = running(web(EXTERNAL_4))
    made.pass_time(30)
    family = made.agent.state().families[IPV4]
    # Where the machine is busy a look costs more, and the next one waits up to 4 s.
    assert made.clock.now - family.synced <= 4.1
    assert made.clock.now - family.queued > 29


def test_every_reason_is_there_before_it_happens() -> None:
    made = Node()
    assert made.agent.state().repairs == dict.fromkeys(DRIFT, 0)
    assert made.agent.state().restarts == dict.fromkeys(RESTART_REASONS, 0)
    made.agent.take(Restarted("services", "Expired"))
    made.agent.take(Restarted("nodes", "Expired"))
    assert made.agent.state().restarts == {**dict.fromkeys(RESTART_REASONS, 0), "Expired": 2}


def test_a_refusal_lasts_as_long_as_its_cause() -> None:
    made = running(web("127.0.0.1", "169.254.0.1", EXTERNAL_4))
    reasons = {problem.reason for problem in made.agent.state().refusals}
    assert reasons == {"Loopback", "LinkLocal"}
    made.put(web(EXTERNAL_4))
    made.settle()
    assert made.agent.state().refusals == frozenset()
