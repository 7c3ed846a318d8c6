"""What all processes of the service take does not grow with changes, questions and trouble."""

from __future__ import annotations

import pytest

from tests.bench.soak import Scale, soak, thirds

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]


def test_nothing_grows() -> None:
    figures = soak(Scale(services=100, seconds=6, changes=1_500, points=3, settle=2.0))
    more = {what: last - first for what, (first, last) in thirds(figures).items()}
    assert more["memory"] < 4, figures
    # A thread that asks, and one that counts packets, may come and go.
    assert more["threads"] <= 2, figures
    assert more["files"] <= 8, figures
