"""The command line: usage, the configuration's name, and one line for whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.commands import render
from tests.support.commandline import (
    POD_CIDR,
    RENDER_DUAL_STACK,
    WEB,
    Command,
    run,
    written,
)
from tests.support.places import REPOSITORY, TESTS

# --config, before and after the command.


@pytest.mark.parametrize(
    "arguments",
    [
        "--config config render",
        "render --config config",
        "--config=config render",
        "--config absent render --config config",
    ],
)
def test_the_configuration_is_taken_before_and_after_the_command(
    command: Command, arguments: str
) -> None:
    written("config", {"chains": {"output": "OUT"}})
    web = written("web", WEB)
    result = command(*arguments.split(), "-f", web, "--pod-cidr", POD_CIDR)
    assert (result.status, result.err) == (0, "")
    assert "-I OUTPUT 1 -j OUT\n" in result.out


@pytest.mark.parametrize("name", ["render", "diff", "check", "cleanup", "run", "config"])
@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("missing.yaml", "no such file (name a file that exists, or leave --config out)"),
        ("missing/x.yaml", "no such file (name a file that exists, or leave --config out)"),
        ("folder", "Is a directory"),
        ("pipe", "is not a regular file"),
        ("web/x.yaml", "Not a directory"),
    ],
)
def test_a_configuration_that_is_named_and_no_file_is_an_error_everywhere(
    command: Command, name: str, file: str, why: str
) -> None:
    os.mkdir("folder")
    os.mkfifo("pipe")
    rest = ["-f", str(written("web", WEB)), "--pod-cidr", POD_CIDR] if name == "render" else []
    written("web")
    result = command("--config", file, name, *rest)
    assert (result.status, result.out) == (2, "")
    assert result.complaint == f"configuration {file}: {why}"


# Usage.


def test_the_version_is_told(command: Command) -> None:
    assert command("--version") == (0, f"ipvs-node-agent {__version__}\n", "")


@pytest.mark.parametrize("arguments", ["--help", "render --help", "run -h"])
def test_help_is_given(command: Command, arguments: str) -> None:
    result = command(*arguments.split())
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: ipvs-node-agent")


WITHOUT_LIBRARIES = """
import sys
from ipvs_node_agent.cli import main
try:
    main(["--help"])
finally:
    assert not {"yaml", "urllib3", "kubernetes", "prometheus_client", "sh"} & sys.modules.keys()
"""


def test_help_waits_for_no_library() -> None:
    command = [sys.executable, "-c", WITHOUT_LIBRARIES]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


HINT = "(see ipvs-node-agent --help)"
RENDER_HINT = "(see ipvs-node-agent render --help)"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", f"the following arguments are required: COMMAND {HINT}"),
        ("--nonsense", f"the following arguments are required: COMMAND {HINT}"),
        ("nonsense", "argument COMMAND: invalid choice: 'nonsense'"),
        ("run x", f"unrecognized arguments: x {HINT}"),
        ("run a\nb", f"unrecognized arguments: a\\nb {HINT}"),
        ("--config", f"argument --config: expected one argument {HINT}"),
        ("--log-level loud run", "argument --log-level: invalid choice: 'loud' (choose"),
        ("run --conf x", f"unrecognized arguments: --conf x {HINT}"),
        ("render", f"the following arguments are required: -f/--file {RENDER_HINT}"),
        (
            "render -f x --family ipv4",
            f"argument --family: wanted IPv4 or IPv6, got 'ipv4' {RENDER_HINT}",
        ),
        (
            "render -f x --pod-cidr 10.240.2.129/25",
            "argument --pod-cidr: '10.240.2.129/25' has host bits set"
            f" (did you mean 10.240.2.128/25?) {RENDER_HINT}",
        ),
        (
            "render -f x --pod-cidr ::/0",
            "argument --pod-cidr: '::/0' matches every address, not only this node's pods",
        ),
        *(
            (
                f"render -f x --pod-interface {name}",
                "argument --pod-interface: wanted the name of an interface, or a prefix that"
                f" ends in +, got '{name}' {RENDER_HINT}",
            )
            for name in ("+", "cali++", "sixteen-letters+", "a/b", "x;y")
        ),
    ],
)
def test_bad_usage_is_one_line_with_a_hint(
    command: Command, arguments: str, complaint: str
) -> None:
    result = command(*filter(None, arguments.split(" ")))
    assert (result.status, result.out) == (2, "")
    assert result.complaint.startswith(f"command line: {complaint}")


# Never a traceback.


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """A pipe whose reader has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize(
    "arguments",
    [RENDER_DUAL_STACK, ("--version",), ("--help",), ("render", "--help")],
    ids=["render", "version", "help", "render-help"],
)
def test_what_cannot_be_printed_is_said_in_one_line_unless_its_reader_has_seen_enough(
    arguments: tuple[str, ...], broken_pipe: int
) -> None:
    assert run(*arguments, stdout=broken_pipe) == (0, "", "")
    for redirection, why in (
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
    ):
        result = run(*arguments, redirection=redirection)
        assert result == (3, "", f"ipvs-node-agent: standard output: {why}\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 >/dev/full", "2>&- >&-"])
@pytest.mark.parametrize(
    ("arguments", "status"), [(("nonsense",), 2), ((*RENDER_DUAL_STACK, "-f", "missing"), 2)]
)
def test_a_complaint_that_cannot_be_printed_changes_no_status(
    arguments: tuple[str, ...], status: int, redirection: str
) -> None:
    result = run(*arguments, redirection=redirection)
    assert result.status == status
    if ">&1" not in redirection:
        assert (result.out, result.err) == ("", "")


def test_a_complaint_that_nobody_reads_changes_no_status(broken_pipe: int) -> None:
    assert run("nonsense", stderr=broken_pipe).status == 2


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_standard_error_the_rules_are_all_there(redirection: str) -> None:
    wrong = TESTS / "data/wrong.yaml"
    arguments = ("--log-level", "debug", *RENDER_DUAL_STACK, "-f", wrong)
    assert run(*arguments, redirection=redirection) == (*run(*arguments)[:2], "")


def test_standard_input_that_is_closed_is_a_file_that_cannot_be_read() -> None:
    result = run("render", "-f", "-", "--pod-cidr", POD_CIDR, redirection="<&-")
    assert result == (2, "", "ipvs-node-agent: -: Bad file descriptor\n")


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `render` run into `error`."""

    def load(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(render, "load", load)


REPORT = "(please report it, with what ipvs-node-agent --log-level debug shows)"


@pytest.mark.parametrize(
    ("error", "status", "complaint"),
    [
        (KeyError("a\nb"), 70, f"internal error: KeyError: 'a\\nb' {REPORT}"),
        (RuntimeError("a\nb"), 70, f"internal error: RuntimeError: a\\nb {REPORT}"),
        (MemoryError(), 3, "out of memory"),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=["a bug", "a bug with a message of many lines", "no memory", "an interrupt"],
)
def test_whatever_is_raised_is_one_line_or_quiet(
    error: BaseException,
    status: int,
    complaint: str | None,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raising(error, monkeypatch)
    said = f"ipvs-node-agent: {complaint}\n" if complaint else ""
    assert command.render("-f", "x") == (status, "", said)


def test_a_bug_shows_where_it_is_where_that_is_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(KeyError("x"), monkeypatch)
    assert "Traceback" in command("--log-level", "debug", *RENDER_DUAL_STACK).err
