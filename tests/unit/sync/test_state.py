"""Whether an agent does its work, read off what it last published."""

from __future__ import annotations

import pytest

from ipvs_node_agent.sync.state import AgentState, Published, sickness


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
