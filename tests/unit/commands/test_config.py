"""`config`: what `run` would go by, and the sentence with which a reload fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from tests.support.commandline import Command, run, written
from tests.support.places import REPOSITORY


@pytest.mark.parametrize(
    "arguments", ["config FILE", "config --config FILE", "--config FILE config"]
)
def test_what_is_in_effect_is_printed_with_where_it_is_from(
    command: Command, arguments: str
) -> None:
    written("FILE", {"masquerade": "HostOnly"})
    result = command(*arguments.split())
    assert (result.status, result.err) == (0, "")
    lines = dict(line.split("  # ") for line in result.out.splitlines() if "  # " in line)
    origins = {key.strip(): origin for key, origin in lines.items()}
    assert origins["masquerade: HostOnly"] == "from the file"
    assert origins["driftCheckPeriod: 2s"] == "default"
    assert command(*arguments.split(), "--quiet") == (0, "", "")


def test_the_file_named_after_it_counts(command: Command) -> None:
    bad, good = written("bad", {"masquerade": 1}), written("good", {"masquerade": "HostOnly"})
    result = command("config", "--config", bad, good)
    assert yaml.safe_load(result.out)["masquerade"] == "HostOnly"


def test_without_a_file_the_defaults_are_printed(command: Command) -> None:
    result = command("config")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[0].endswith("absent.yaml is not there: these are the defaults")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, ": no such file (name a file that exists, or leave --config out)"),
        ("masquerade: Some", ' line 1: masquerade: wanted All or HostOnly, got "Some"'),
        ("a: [", " line 1: is not YAML: "),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(
    command: Command, quiet: list[str], text: str | None, why: str
) -> None:
    if text is not None:
        written("file").write_text(text)
    result = command("config", *quiet, "file")
    assert (result.status, result.out) == (2, "")
    assert result.complaint.startswith(f"configuration file{why}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_root_is_needed() -> None:
    try:
        result = run("config", user=65534, env={})
    except PermissionError:
        pytest.skip("this Python is out of other users' reach")
    assert (result.status, result.err) == (0, "")


WITHOUT_LIBRARIES = """
import sys
from ipvs_node_agent.cli import main
assert main(["config", "--quiet"]) == 0
assert not {"urllib3", "kubernetes", "prometheus_client", "sh", "cryptography"} & sys.modules.keys()
"""


def test_a_reload_waits_for_no_library_of_the_agents() -> None:
    command = [sys.executable, "-c", WITHOUT_LIBRARIES]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
