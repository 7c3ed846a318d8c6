"""When others are done."""

from __future__ import annotations

import math

import pytest

from ipvs_node_agent.iptables.settling import Settling


@pytest.mark.parametrize(
    ("told", "due"),
    [
        pytest.param([(1, 5.0)], 5.03, id="one write"),
        pytest.param([(1, 5.0), (1, 5.02)], 5.03, id="looked at again"),
        pytest.param([(1, 5.0), (2, 5.02), (3, 5.04)], 5.07, id="several"),
        pytest.param([(n, 5 + n / 50) for n in range(100)], 5.9, id="without end"),
        pytest.param([(0, 5.0)], 5.03, id="where nobody numbers them"),
    ],
)
def test_they_are_done_when_they_are_quiet_or_have_gone_on_for_long(
    told: list[tuple[int, float]], due: float
) -> None:
    settling = Settling()
    assert settling.due == math.inf
    for number, now in told:
        settling = settling.seen(number, now)
    assert settling.due == pytest.approx(due)
