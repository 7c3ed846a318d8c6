"""The service's arguments, as systemd makes them of its environment file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_node_agent import __version__, unitarguments
from ipvs_node_agent.unitarguments import value, words

# Each was shown to systemd's own reader, in an os-release file.
VALUES = [
    ("", ""),
    ("A=", ""),
    ("A", ""),
    ("B=b", ""),
    ("A=--config /x.yaml", "--config /x.yaml"),
    ("A=a\nA=b\n", "b"),
    ("A=a\nA\n", "a"),
    ("\n  A \t=  a b\t\r\n", "a b"),
    ("#A=a\n;A=b\nA=c # d", "c # d"),
    ("A=$(touch x) `touch y` $HOME; touch z", "$(touch x) `touch y` $HOME; touch z"),
    ("touch x\nA=a", "a"),
    ("export A=a", ""),
    # Not quoted
    ("A=a\\\nb", "ab"),
    ('A=a\\ \\\\\\n\\"  ', 'a \\n"'),
    ("A=a\\  ", "a "),
    ("A=a'b' \"c\"", "a'b' \"c\""),
    ("A=a\\", "a"),
    # Quoted
    ("A='a\nb\\n\"$x'\n", 'a\nb\\n"$x'),
    ("A='a' \"b\" c", "abc"),
    ('A="a\\"b\\\\ \\$x \\` \\n \\\nc"', 'a"b\\ $x ` \\n c'),
    ('A="a\n#b"\nB=c', "a\n#b"),
    ("A='' ", ""),
    ("A='a", "a"),
    ('A="a', "a"),
    ("B='\nA=a\n'\n", ""),
    ("A=b'\nA=a\n'\n", "a"),
    ('A="\n\\', "\n"),
    ("=\\\nA=a", "a"),
]


@pytest.mark.parametrize(("text", "wanted"), VALUES)
def test_a_value_is_what_systemd_takes_for_it(text: str, wanted: str) -> None:
    assert value(text, "A") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (" \t", []),
        ("--config /x.yaml", ["--config", "/x.yaml"]),
        ("  a\tb\n c ", ["a", "b", "c"]),
        ("--config '/my x.yaml'", ["--config", "/my x.yaml"]),
        ("--config=\"/my x.yaml\"'y'", ["--config=/my x.yamly"]),
        ("a\\ b '\\'' \"\\\"\"", ["a b", "'", '"']),
        ("'' a", ["", "a"]),
        ("* $HOME $(x) ~", ["*", "$HOME", "$(x)", "~"]),
        ("'a b", ["a b"]),
        ("a\\", ["a"]),
    ],
)
def test_a_value_is_split_where_systemd_splits_it(text: str, wanted: list[str]) -> None:
    assert list(words(text)) == wanted


@pytest.mark.parametrize("text", ["A=" + "a " * 50_000, "A=" + "'a' " * 20_000, "\\\n" * 50_000])
def test_a_long_file_is_read_at_once(text: str) -> None:
    value(text, "A")


def test_a_command_gets_the_arguments_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, file = tmp_path / "ran", tmp_path / "default"
    file.write_text(f"touch {ran}\nB=$(touch {ran})\nIPVS_NODE_AGENT_ARGS=--config /x.yaml\n")
    monkeypatch.setattr(unitarguments, "_PATH", file)
    assert unitarguments.main("cleanup") == 2
    assert "configuration /x.yaml: no such file" in capsys.readouterr().err
    assert not ran.exists()


def test_without_the_file_there_are_no_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipvs_node_agent.unitarguments", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"ipvs-node-agent {__version__}\n", "")
