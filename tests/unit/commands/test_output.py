"""Colours: on a terminal that wants them, and nowhere else."""

from __future__ import annotations

import io

import pytest

from ipvs_node_agent.commands.output import coloured_change, takes_colours

CHANGE = """\
# iptables-nft-restore --noflush
*nat
:IPVS_OUTPUT - [0:0]
-D OUTPUT -j IPVS_OUTPUT
-A IPVS_OUTPUT -d 10.19.20.201/32 -j DNAT --to-destination 10.231.42.164
-I OUTPUT 1 -j IPVS_OUTPUT
-X IPVS_OUTPUT-0a131400/22
COMMIT
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_takes_colours_and_a_pipe_does_not() -> None:
    assert takes_colours(Terminal())
    assert not takes_colours(io.StringIO())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_whose_user_wants_none_gets_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not takes_colours(Terminal())


def test_an_empty_no_color_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert takes_colours(Terminal())


def test_what_goes_is_red_and_what_comes_is_green() -> None:
    shown = coloured_change(CHANGE).splitlines()
    colours = [line[:5] if line.startswith("\x1b") else "" for line in shown]
    red, green = "\x1b[31m", "\x1b[32m"
    assert colours == ["", "", "", red, green, green, red, ""]


def test_without_the_colours_it_is_the_same_input() -> None:
    shown = coloured_change(CHANGE)
    for code in ("\x1b[31m", "\x1b[32m", "\x1b[0m"):
        shown = shown.replace(code, "")
    assert shown == CHANGE
