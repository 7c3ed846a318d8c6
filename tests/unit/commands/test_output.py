"""Colours and progress: on a terminal that wants them, and nowhere else."""

from __future__ import annotations

import io

import pytest

from ipvs_node_agent.commands.output import Progress, takes_colours


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


@pytest.mark.parametrize(
    ("stream", "term", "shown"),
    [
        (
            Terminal(),
            "xterm",
            ["\r\x1b[Klisting ...", "\r\x1b[K", "\r\x1b[Kplan\\n ...", "\r\x1b[K"],
        ),
        (Terminal(), "dumb", []),
        (io.StringIO(), "xterm", []),
    ],
)
def test_what_takes_long_is_named_on_a_terminal_and_gone_afterwards(
    stream: io.StringIO, term: str, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress()
    progress.clear()
    for text in ("listing", "plan\n"):
        progress.show(text)
        progress.show(text)
        progress.clear()
    progress.clear()
    assert stream.getvalue() == "".join(shown)
