"""What follows from the end of an attempt: most of all, how long the next one waits."""

from __future__ import annotations

import pytest

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.outcome import FOLLOWS, Ending, Outcome, Pace, failed
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.model.events import RESTART_REASONS
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(Backoff(clock, chance=lambda: 0.0), clock)


def waits(pace: Pace, outcome: Outcome) -> list[float]:
    return [pace.after(outcome) for _ in range(3)]


def test_every_ending_has_a_row_with_a_reason_that_is_explained() -> None:
    assert set(FOLLOWS) == set(Ending) == {ending for ending, *_ in PACES}
    assert {follows.reason for follows in FOLLOWS.values()} == {"", *RESTART_REASONS}


NONE, BACKOFF, SELDOM_NONE = [0.0, 0.0, 0.0], [0.8, 1.6, 3.2], [0.0, 0.8, 1.6]
# How long is waited after an attempt that came to nothing, and after one that went on for a while.
PACES = [
    (Ending.LISTED, NONE, NONE),
    (Ending.ENDED, BACKOFF, NONE),
    (Ending.OTHER_WAY, NONE, NONE),
    (Ending.EXPIRED, SELDOM_NONE, SELDOM_NONE),
    (Ending.SUPERSEDED, SELDOM_NONE, SELDOM_NONE),
    (Ending.UNREADABLE, BACKOFF, NONE),
    # As behind a load balancer that resets what is idle for a minute.
    (Ending.UNREACHABLE, BACKOFF, NONE),
    (Ending.PASSING, BACKOFF, BACKOFF),
    (Ending.REFUSED, BACKOFF, BACKOFF),
    (Ending.NO_CREDENTIALS, BACKOFF, BACKOFF),
]


@pytest.mark.parametrize(("ending", "short", "lived"), PACES)
def test_the_waits_after_an_ending_that_comes_again_and_again(
    ending: Ending, short: list[float], lived: list[float], clock: Clock
) -> None:
    for outlived, expected in ((False, short), (True, lived)):
        pace = Pace(Backoff(clock, chance=lambda: 0.0), clock)
        assert waits(pace, Outcome(ending, lived=outlived)) == expected


def test_what_is_nobodys_fault_needs_no_wait_once_in_half_a_minute(
    pace: Pace, clock: Clock
) -> None:
    outcome = Outcome(Ending.EXPIRED)
    assert waits(pace, outcome) == [0.0, 0.8, 1.6]
    clock.now += 29.0
    assert pace.after(outcome) == 3.2
    clock.now += 1.0
    assert waits(pace, outcome) == [0.0, 6.4, 12.8]


def test_the_wait_is_at_least_as_long_as_the_server_asks_for(pace: Pace) -> None:
    busy = ApiError("API server", "refused", "", 429, retry_after=2.0)
    assert waits(pace, Outcome(Ending.PASSING, busy)) == [2.0, 2.0, 3.2]


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (0, Ending.UNREACHABLE),
        (410, Ending.EXPIRED),
        *((status, Ending.PASSING) for status in (401, 403, 429, 503)),
        *((status, Ending.REFUSED) for status in (302, 400, 404, 500)),
    ],
)
def test_an_error_of_the_server_is_an_ending(status: int, ending: Ending) -> None:
    assert failed(ApiError("API server", "x", "", status)) is ending
