"""How long to wait, and what is done seldom or said once."""

from __future__ import annotations

import time

import pytest

from ipvs_node_agent.backoff import Backoff, Once, Seldom, between, seconds_left
from tests.support.clock import Clock


def delays(backoff: Backoff, times: int) -> list[float]:
    return [backoff.next() for _ in range(times)]


@pytest.mark.parametrize(
    ("chance", "wanted"),
    [
        (0.0, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]),
        (1.0, [1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]),
    ],
)
def test_delays_double_up_to_half_a_minute_and_jitter_at_most_doubles_them(
    chance: float, wanted: list[float]
) -> None:
    assert delays(Backoff(Clock(), chance=lambda: chance), 8) == wanted


def test_jitter_spreads_the_delays() -> None:
    firsts = [Backoff().next() for _ in range(200)]
    assert all(0.8 <= delay <= 1.6 for delay in firsts)
    assert max(firsts) - min(firsts) > 0.4


@pytest.mark.parametrize(("quiet", "delay"), [(119.0, 3.2), (121.0, 0.8)])
def test_delays_start_over_after_two_minutes_without_a_failure(quiet: float, delay: float) -> None:
    clock = Clock()
    backoff = Backoff(clock, chance=lambda: 0.0)
    delays(backoff, 2)
    clock.now += quiet
    assert backoff.next() == delay


def test_waiting_the_longest_delay_does_not_start_over() -> None:
    clock = Clock()
    backoff = Backoff(clock, chance=lambda: 1.0)
    for _ in range(20):
        clock.now += backoff.next()
    assert backoff.next() == 60.0


def test_seldom_is_once_in_a_while() -> None:
    clock = Clock()
    seldom = Seldom(30.0, clock)
    assert seldom.due
    seldom.done()
    for seconds, due in ((0.0, False), (29.9, False), (0.1, True)):
        clock.now += seconds
        assert seldom.due is due


def test_what_is_past_has_no_time_left() -> None:
    assert 9 < seconds_left(time.monotonic() + 10) <= 10
    with pytest.raises(TimeoutError):
        seconds_left(time.monotonic())


def test_what_lasts_is_said_once_and_again_when_it_is_back_or_another_one() -> None:
    once = Once()
    said = [once.new(text) for text in ("", "a", "a", "b", "a", "", "", "a", "a")]
    assert said == [False, True, False, True, True, False, False, True, False]


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 240.0), (0.5, 360.0), (1.0, 480.0)])
def test_a_time_between_two_is_spread_evenly(chance: float, seconds: float) -> None:
    assert between(240.0, 480.0, lambda: chance) == seconds
    assert 240.0 <= between(240.0, 480.0) <= 480.0
