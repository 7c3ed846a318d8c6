"""Commands whose output nobody can have: they do their work, and their status tells of it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.once("debian12"),
    pytest.mark.parametrize("backend", ["nft"]),
]

# Those that print something on a node without an agent, and their status.
COMMANDS = {"diff": 1, "check": 1, "cleanup": 0}


@pytest.fixture
def out_of_sync(bed: Bed) -> Bed:
    """A node with rules of an agent that is gone, and a Service that has none."""
    bed.put(WEB)
    bed.agent.start()
    bed.expect(WEB)
    bed.agent.stop()
    bed.put(OTHER)
    return bed


def call(bed: Bed, redirection: str, command: str, **options: Any) -> tuple[int, list[str]]:
    """The exit status, and the complaints on standard error."""
    with bed.namespace.enter():
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *bed.agent.command(command)],
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=bed.agent.environment,
            **options,
        )
    complaints = [line for line in done.stderr.splitlines() if " WARNING " not in line]
    return done.returncode, complaints


def test_a_reader_that_has_seen_enough_changes_no_status(out_of_sync: Bed) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for command, status in COMMANDS.items():
        assert call(out_of_sync, "", command, stdout=writing) == (status, [])
    os.close(writing)


@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_what_cannot_be_printed_is_said_when_the_work_is_done(
    out_of_sync: Bed, redirection: str, why: str
) -> None:
    for command in COMMANDS:
        said = call(out_of_sync, redirection, command)
        assert said == (3, [f"ipvs-node-agent: standard output: {why}"])
    assert not out_of_sync.ours(IPV4)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_an_agent_whose_log_nobody_can_have_does_its_work(
    out_of_sync: Bed, redirection: str
) -> None:
    agent = out_of_sync.agent
    agent.wrapper = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    agent.start(wait=False)
    out_of_sync.expect(WEB, OTHER)
    eventually(lambda: agent.call("status").returncode == 0)
    for redirected, status in ((">/dev/full", 3), (">&-", 3), ("2>&-", 0)):
        found, _ = call(out_of_sync, redirected, "status", stdout=subprocess.DEVNULL)
        assert found == status
    assert agent.stop() == 0
