"""What the kernel did not tell of is found, and no table is read to prove that there is nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.model.addresses import IPV4
from ipvs_node_agent.sync.agent import Agent
from tests.support.clock import Clock
from tests.support.kernelagent import commands_started, kernel_agent
from tests.support.netns import Namespace
from tests.support.tables import restore, saved

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12", "debian13")]

FIVE_MINUTES, AN_HOUR = 300, 3600
DRIFT = "*nat\n-F IPVS_PREROUTING\nCOMMIT\n"
# As kube-proxy writes its own chain anew.
A_SYNC = "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\nCOMMIT\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that the agent started."""
    return commands_started(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def agent(namespace: Namespace, clock: Clock, started: list[str]) -> Iterator[Agent]:
    """One that is in sync, and that nothing has happened to for a while."""
    with kernel_agent(namespace, NFT, clock) as agent:
        # To write the rules took no time on this clock.
        clock.now += 2 * FIVE_MINUTES
        agent.tick()
        started.clear()
        yield agent


def rules(namespace: Namespace) -> list[str]:
    return sorted(line for line in saved(namespace, IPV4, NFT) if line.startswith("-A IPVS"))


def deafen(agent: Agent) -> None:
    """Takes away all that the kernel told, as if it had not."""
    for number in agent.told_by:
        with socket.socket(fileno=os.dup(number)) as stolen, suppress(BlockingIOError):
            while stolen.recv(1 << 16):
                pass


def test_no_command_runs_while_nothing_happens_to_our_rules(
    agent: Agent, clock: Clock, started: list[str], namespace: Namespace
) -> None:
    for _ in range(9):
        restore(namespace, IPV4, NFT, A_SYNC)
        clock.now += FIVE_MINUTES
        assert clock.now < agent.tick() <= clock.now + FIVE_MINUTES
        assert agent.in_sync
    assert not started
    clock.now += AN_HOUR
    agent.tick()
    assert {name for name in started if name.endswith("-save")} == {
        "iptables-nft-save",
        "ip6tables-nft-save",
    }


def test_drift_that_was_not_told_is_repaired_within_five_minutes(
    agent: Agent, clock: Clock, namespace: Namespace
) -> None:
    wanted = rules(namespace)
    restore(namespace, IPV4, NFT, DRIFT)
    deafen(agent)
    clock.now += FIVE_MINUTES - 1
    agent.tick()
    assert rules(namespace) != wanted
    clock.now += 1
    agent.tick()
    assert rules(namespace) == wanted


def test_drift_that_was_not_told_is_repaired_with_whatever_is_told_next(
    agent: Agent, clock: Clock, namespace: Namespace
) -> None:
    wanted = rules(namespace)
    restore(namespace, IPV4, NFT, DRIFT)
    deafen(agent)
    restore(namespace, IPV4, NFT, A_SYNC)
    due = agent.tick()
    assert rules(namespace) != wanted
    # As for all drift, others may not be done yet.
    assert due < clock.now + 1
    clock.now = due
    agent.tick()
    assert rules(namespace) == wanted
