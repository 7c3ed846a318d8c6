"""A command that fails says which way, in fields; nobody has to read its text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.command import FOREIGN_HINT, LOCKED_HINT, TableError, launch, start
from ipvs_node_agent.processes.launcher import Launcher

NAME = "iptables-nft-restore"
ROOT_HINT = "it needs root, or the capabilities CAP_NET_ADMIN and CAP_NET_RAW"


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    made = launch()
    yield made
    made.close()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for the command."""
    monkeypatch.setattr(command, "_search", lambda: str(tmp_path))
    return tmp_path / NAME


def failure(script: Path, does: str, launcher: Launcher, **options: Any) -> TableError:
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o700)
    with pytest.raises(TableError) as raised:
        start(launcher, NAME, [], **options).result()
    return raised.value


def test_a_command_gets_its_input_and_gives_what_it_prints(
    script: Path, launcher: Launcher
) -> None:
    script.write_text('#!/bin/sh\nread line; echo "$1: $line"; exit 1\n')
    script.chmod(0o700)
    assert start(launcher, NAME, ["a b"], stdin="c\n", good=(0, 1)).result() == "a b: c\n"


@pytest.mark.parametrize(
    ("does", "why", "hint", "fields"),
    [
        ("exit 3", "exit status 3", "", {}),
        ("kill -9 $$", "killed by signal 9", "", {}),
        ("echo 'iptables-nft-restore v1.8.9 (nf_tables): no mood' >&2; exit 4", "no mood", "", {}),
        (
            "echo 'iptables-restore: line 7 failed' >&2; echo '# noise' >&2; exit 1",
            "line 7 failed",
            "",
            {"line": 7, "by_content": True},
        ),
        (
            "echo 'line 3: RULE_APPEND failed (Invalid argument)' >&2; exit 4",
            "line 3: RULE_APPEND failed (Invalid argument)",
            "",
            {"line": 3, "by_content": True},
        ),
        (
            "echo 'RULE_APPEND failed (Operation not permitted)' >&2; exit 4",
            "RULE_APPEND failed (Operation not permitted)",
            "",
            {},
        ),
        (
            "echo 'CHAIN_ADD failed (Operation not supported)' >&2; exit 4",
            "CHAIN_ADD failed (Operation not supported)",
            FOREIGN_HINT,
            {},
        ),
        ("echo 'you must be root' >&2; exit 1", "you must be root", ROOT_HINT, {}),
        (
            "echo 'Another app is currently holding the xtables lock.' >&2; exit 4",
            "Another app is currently holding the xtables lock.",
            LOCKED_HINT,
            {"locked": True},
        ),
        # It got the lock in the end.
        (
            "echo 'Another app is currently holding the xtables lock; still 4s' >&2;"
            " echo 'iptables-restore: line 7 failed' >&2; exit 1",
            "Another app is currently holding the xtables lock; still 4s; line 7 failed",
            "",
            {"line": 7, "by_content": True},
        ),
    ],
)
def test_a_failure_says_what_it_is(
    does: str, why: str, hint: str, fields: dict[str, Any], script: Path, launcher: Launcher
) -> None:
    error = failure(script, does, launcher)
    nothing = {"line": None, "by_content": False, "hung": False, "locked": False}
    assert (error.what, error.why, error.hint) == (NAME, why, hint)
    assert {name: getattr(error, name) for name in nothing} == {**nothing, **fields}


def test_what_takes_too_long_is_killed_and_says_so(script: Path, launcher: Launcher) -> None:
    error = failure(script, "exec /bin/sleep 60", launcher, limit=0.2)
    assert (error.why, error.hung) == ("did not end within 0.2 s and was killed", True)


def test_what_is_not_there_says_what_it_comes_with(script: Path, launcher: Launcher) -> None:
    with pytest.raises(TableError, match=r"not found \(apt install iptables\)"):
        start(launcher, NAME, [])


def test_what_cannot_be_started_says_why(script: Path, launcher: Launcher) -> None:
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    with pytest.raises(TableError, match=r"could not be started: .*No such file"):
        start(launcher, NAME, [])
