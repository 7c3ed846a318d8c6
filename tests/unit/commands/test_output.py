"""Colours: on a terminal that wants them, and nowhere else."""

from __future__ import annotations

import io

import pytest

from ipvs_node_agent.commands.output import takes_colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "term", "no_color", "taken"),
    [
        (Terminal(), "xterm", None, True),
        (Terminal(), "xterm", "", True),
        (Terminal(), "xterm", "1", False),
        (Terminal(), "dumb", None, False),
        (Terminal(), None, None, False),
        (io.StringIO(), "xterm", None, False),
    ],
)
def test_a_terminal_takes_colours_whose_user_wants_them_and_a_pipe_takes_none(
    stream: io.StringIO,
    term: str | None,
    no_color: str | None,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("TERM", term), ("NO_COLOR", no_color)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert takes_colours(stream) is taken
