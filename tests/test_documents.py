"""What the documents show is what happens: every command in README is run, here or by CI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_node_agent import __version__, config
from ipvs_node_agent.config import DEFAULTS, parse

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
EXAMPLES = re.findall(r"^```console\n[#$] (.+)\n((?:.*\n)*?)```$", README, re.MULTILINE)

# Where the commands are run that need root, a cluster, or a machine of their own.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "make bench": ".ci/run",
    "make deb": ".ci/run",
    "ipvs-node-agent diff": "tests/kernel/test_transitions.py",
    "ipvs-node-agent status": "tests/kernel/test_status.py",
    "ipvs-node-agent check": "tests/kernel/test_check.py",
    "ipvs-node-agent cleanup": "tests/kernel/test_transitions.py",
}


def test_every_command_of_the_readme_is_run_somewhere() -> None:
    commands = [command for command, _ in EXAMPLES]
    assert len(commands) == README.count("```console")
    shown = [command for command in commands if not command.startswith("ipvs-node-agent ")]
    assert set(shown) <= set(ELSEWHERE)


@pytest.mark.parametrize(("command", "place"), ELSEWHERE.items())
def test_the_place_that_runs_a_command_names_it(command: str, place: str) -> None:
    text = (REPOSITORY / place).read_text()
    for word in command.split()[-1:]:
        assert word in text


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (command, output)
        for command, output in EXAMPLES
        if command.startswith("ipvs-node-agent ") and output and command not in ELSEWHERE
    ],
    ids=lambda value: value.split("\n")[0][:60],
)
def test_a_command_prints_what_the_readme_shows(command: str, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipvs_node_agent", *command.split()[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        check=False,
        timeout=60,
    )
    assert done.stdout == output


def test_the_shown_configuration_is_the_default_one() -> None:
    text = (REPOSITORY / "packaging" / "config.yaml").read_text()
    # Prose has one space behind its #; a key has none, or its indentation of two.
    keys = re.sub(r"^#(?=\S|  )", "", text, flags=re.MULTILINE)
    assert parse(text, "config.yaml") == DEFAULTS
    assert parse(keys, "config.yaml") == DEFAULTS
    for key in all_keys():
        assert re.search(rf"^\s*{key}:", keys, re.MULTILINE), key


def all_keys() -> list[str]:
    shown = vars(config)["_KEYS"]
    return [*shown, "prerouting", "output", "markMasquerade", "servicesPerChain", "externalIPs"]


def test_the_changelog_has_this_version_on_top() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == __version__


def test_the_readme_table_has_every_key() -> None:
    for key in all_keys():
        assert f"{key}`" in README or f".{key}`" in README or f"`{key}." in README, key
