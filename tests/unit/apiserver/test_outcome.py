"""What follows from the end of an attempt: most of all, how long the next one waits."""

from __future__ import annotations

import pytest

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.apiserver.outcome import FOLLOWS, Ending, Outcome, Pace, failed
from ipvs_node_agent.backoff import Backoff
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.model.events import RESTART_REASONS
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(Backoff(clock, chance=lambda: 0.0), clock)


def waits(pace: Pace, outcome: Outcome, times: int = 3) -> list[float]:
    return [pace.after(outcome) for _ in range(times)]


def test_every_ending_has_a_row_with_a_reason_that_is_explained() -> None:
    assert set(FOLLOWS) == set(Ending)
    assert {follows.reason for follows in FOLLOWS.values()} == {"", *RESTART_REASONS}


@pytest.mark.parametrize("ending", [Ending.LISTED, Ending.OTHER_WAY])
def test_what_cannot_come_again_and_again_needs_no_wait(ending: Ending, pace: Pace) -> None:
    assert waits(pace, Outcome(ending)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "ending", [each for each in Ending if each not in (Ending.LISTED, Ending.OTHER_WAY)]
)
def test_whatever_comes_again_and_again_is_backed_off(ending: Ending, pace: Pace) -> None:
    assert waits(pace, Outcome(ending), 4)[1:] in ([0.8, 1.6, 3.2], [1.6, 3.2, 6.4])


@pytest.mark.parametrize("ending", [Ending.EXPIRED, Ending.SUPERSEDED])
@pytest.mark.parametrize("lived", [True, False])
def test_what_is_nobodys_fault_needs_no_wait_once_in_half_a_minute(
    ending: Ending, lived: bool, pace: Pace, clock: Clock
) -> None:
    outcome = Outcome(ending, lived=lived)
    assert waits(pace, outcome) == [0.0, 0.8, 1.6]
    clock.now += 29.0
    assert waits(pace, outcome, 1) == [3.2]
    clock.now += 1.0
    assert waits(pace, outcome) == [0.0, 6.4, 12.8]


@pytest.mark.parametrize(
    ("ending", "at_once"),
    [
        (Ending.ENDED, True),
        (Ending.UNREADABLE, True),
        # As behind a load balancer that resets what is idle for a minute.
        (Ending.UNREACHABLE, True),
        (Ending.PASSING, False),
        (Ending.REFUSED, False),
        (Ending.NO_CREDENTIALS, False),
    ],
)
def test_what_lived_for_a_while_is_gone_on_with_at_once_unless_it_was_refused(
    ending: Ending, at_once: bool, pace: Pace
) -> None:
    expected = [0.0, 0.0, 0.0] if at_once else [0.8, 1.6, 3.2]
    assert waits(pace, Outcome(ending, lived=True)) == expected


def test_the_wait_is_at_least_as_long_as_the_server_asks_for(pace: Pace) -> None:
    busy = ApiError("API server", "refused", "", 429, retry_after=2.0)
    assert waits(pace, Outcome(Ending.PASSING, busy)) == [2.0, 2.0, 3.2]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ApiError("API server", "cannot be reached"), Ending.UNREACHABLE),
        (ApiError("API server", "refused", "", 410), Ending.EXPIRED),
        *((ApiError("API server", "x", "", code), Ending.PASSING) for code in (401, 403, 429, 503)),
        *((ApiError("API server", "x", "", code), Ending.REFUSED) for code in (302, 400, 404, 500)),
        (RefusedError("kubeconfig", "No such file"), Ending.NO_CREDENTIALS),
    ],
)
def test_an_error_is_an_ending(error: RefusedError, ending: Ending) -> None:
    assert failed(error) is ending
