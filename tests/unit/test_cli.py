"""The command line: `render` from end to end, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ipvs_node_agent import __version__, cli
from ipvs_node_agent.cli import main
from tests.support.cluster import node, service
from tests.support.places import REPOSITORY, TESTS

TWO_SERVICES, DUAL_STACK = TESTS / "data/two-services.yaml", TESTS / "data/dual-stack.yaml"
POD_CIDR, POD_CIDR_6 = "10.240.2.128/25", "fd00:10:240:2::/64"
NO_RULES = """\
*nat
:IPVS_OUTPUT - [0:0]
:IPVS_PREROUTING - [0:0]
-I OUTPUT 1 -j IPVS_OUTPUT
-I PREROUTING 1 -j IPVS_PREROUTING
COMMIT
"""
WEB = service("web", ["10.231.0.1"], ["10.19.0.1"])


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error, less the program's name."""
        match = re.fullmatch(r"ipvs-node-agent: (.*)\n", self.err)
        assert match, f"wanted one line: {self.err!r}"
        return match[1]

    @property
    def notes(self) -> list[str]:
        """The lines on standard error, less the program's name."""
        lines = self.err.splitlines()
        assert all(line.startswith("ipvs-node-agent: ") for line in lines), self.err
        return [line.partition(": ")[2] for line in lines]

    @property
    def ips(self) -> list[str]:
        """The external IPs that have rules."""
        return sorted(set(re.findall(r" -d (\S+)/(?:32|128) ", self.out)))


class Command:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse ends --help and --version in this way.
            status = int(end.code or 0)
        return Result(status, *self._capsys.readouterr())

    def render(self, *arguments: str | Path) -> Result:
        """`render` with the usual pod CIDR."""
        return self("render", "--pod-cidr", POD_CIDR, *arguments)


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Command lines on a machine without the default configuration file."""
    monkeypatch.setattr("ipvs_node_agent.config.file.DEFAULT_PATH", tmp_path / "absent.yaml")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Command(capsys)
    root.handlers[:], root.level = before


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives text to the command as its standard input."""

    def give(data: str | bytes) -> None:
        raw = data.encode() if isinstance(data, str) else data
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return give


def written(path: Path, *documents: Any) -> Path:
    """`path` with `documents` as YAML."""
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return path


def golden(name: str) -> str:
    return (TESTS / "golden" / name).read_text(encoding="utf-8")


# What is rendered.


def test_the_two_services_give_the_golden_rules(command: Command) -> None:
    result = command("render", "-f", TWO_SERVICES, "--node", written(Path("node"), node(POD_CIDR)))
    assert (result.status, result.out) == (0, golden("two-services.IPv4.rules"))
    skipped = f"{TWO_SERVICES}: skipped an object: wanted a Service, got 'Node'"
    assert result.complaint == skipped


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_dual_stack_cluster_gives_the_golden_rules(command: Command, family: str) -> None:
    arguments = ("--pod-cidr", POD_CIDR_6, "--family", family, "-f", DUAL_STACK)
    assert command.render(*arguments) == (0, golden(f"dual-stack.{family}.rules"), "")


def run(*arguments: str | Path, **options: Any) -> Result:
    """Runs the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ipvs_node_agent", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        **{"stdout": subprocess.PIPE, "cwd": REPOSITORY, **options},
    )
    return Result(done.returncode, done.stdout or "", done.stderr)


RENDER_DUAL_STACK = ("render", "-f", DUAL_STACK, "--pod-cidr", POD_CIDR)


def test_a_process_of_its_own_gives_the_golden_rules() -> None:
    assert run(*RENDER_DUAL_STACK) == (0, golden("dual-stack.IPv4.rules"), "")


def test_no_environment_is_needed() -> None:
    assert run(*RENDER_DUAL_STACK, env={}) == (0, golden("dual-stack.IPv4.rules"), "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_root_is_needed() -> None:
    try:
        result = run(*RENDER_DUAL_STACK, user=65534)
    except PermissionError:
        pytest.skip("this Python is out of other users' reach")
    assert result == (0, golden("dual-stack.IPv4.rules"), "")


@pytest.mark.parametrize("form", ["YAML-documents", "YAML-list", "JSON-list", "JSON"])
def test_every_form_of_kubectls_output_is_read(command: Command, form: str) -> None:
    path, listed = Path("services"), {"apiVersion": "v1", "kind": "List", "items": [WEB]}
    text = {
        "YAML-documents": yaml.safe_dump_all([WEB, WEB]),
        "YAML-list": yaml.safe_dump(listed),
        "JSON-list": json.dumps(listed, indent=4),
        "JSON": json.dumps(WEB),
    }[form]
    path.write_text(text, encoding="utf-8")
    result = command.render("-f", path)
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.1"], "")


def test_no_services_give_empty_chains(command: Command) -> None:
    assert command.render("-f", written(Path("none"))) == (0, NO_RULES, "")


def test_files_can_be_several(command: Command) -> None:
    more = written(Path("more"), service("more", ["10.231.0.2"], ["10.19.0.2"]))
    result = command.render("-f", written(Path("web"), WEB), "--file", more)
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.1", "10.19.0.2"], "")


def test_of_a_service_that_is_there_twice_the_last_one_counts(command: Command) -> None:
    again = service("web", ["10.231.0.1"], ["10.19.0.9"])
    result = command.render("-f", written(Path("a"), WEB), "-f", written(Path("b"), again))
    assert result.ips == ["10.19.0.9"]


def test_a_dash_is_standard_input(command: Command, stdin: Any) -> None:
    stdin(yaml.safe_dump(WEB))
    result = command.render("-f", "-")
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.1"], "")


def test_standard_input_that_is_no_utf_8_is_said(command: Command, stdin: Any) -> None:
    stdin(b"kind: \xff")
    result = command.render("-f", "-")
    assert (result.status, result.complaint) == (2, "-: is no UTF-8 text")


def test_standard_input_can_be_read_once_only(command: Command, stdin: Any) -> None:
    stdin(yaml.safe_dump(node(POD_CIDR)))
    result = command("render", "--node", "-", "-f", "-")
    assert result.status == 2
    assert "standard input" in result.complaint


@pytest.mark.parametrize("arguments", [["--pod-cidr", "10.99.0.0/24"], ["--config", "config"]])
def test_a_pod_cidr_that_is_given_counts_more_than_the_nodes(
    command: Command, arguments: list[str]
) -> None:
    written(Path("config"), {"podCIDRs": ["10.99.0.0/24"]}).chmod(0o600)
    files = ("-f", written(Path("web"), WEB), "--node", written(Path("node"), node(POD_CIDR)))
    result = command("render", *files, *arguments)
    assert set(re.findall(r"-s (\S+)", result.out)) == {"10.99.0.0/24"}


def test_a_pod_cidr_of_the_command_line_counts_more_than_the_configurations(
    command: Command,
) -> None:
    written(Path("config"), {"podCIDRs": ["10.99.0.0/24"]}).chmod(0o600)
    result = command.render("-f", written(Path("web"), WEB), "--config", "config")
    assert set(re.findall(r"-s (\S+)", result.out)) == {POD_CIDR}


# --config, before and after the command.


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--config", "config", "render"], id="before"),
        pytest.param(["render", "--config", "config"], id="after"),
        pytest.param(["--config=config", "render"], id="with-an-equals-sign"),
        pytest.param(["--config", "absent", "render", "--config", "config"], id="both"),
    ],
)
def test_the_configuration_is_taken_before_and_after_the_command(
    command: Command, arguments: list[str]
) -> None:
    written(Path("config"), {"chains": {"output": "OUT"}}).chmod(0o600)
    web = written(Path("web"), WEB)
    result = command(*arguments, "-f", web, "--pod-cidr", POD_CIDR)
    assert (result.status, result.err) == (0, "")
    assert "-I OUTPUT 1 -j OUT\n" in result.out


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["render", "diff", "check", "cleanup", "run"])
def test_a_configuration_that_is_named_and_missing_is_an_error_everywhere(
    command: Command, name: str, before: bool
) -> None:
    rest = ["-f", "x", "--pod-cidr", POD_CIDR] if name == "render" else []
    config = ["--config", "missing.yaml"]
    result = command(*config, name, *rest) if before else command(name, *rest, *config)
    assert (result.status, result.out) == (2, "")
    assert result.complaint == (
        "configuration missing.yaml: no such file (name a file that exists, or leave --config out)"
    )


def test_what_is_wrong_with_the_configuration_is_said_with_file_line_and_key(
    command: Command,
) -> None:
    Path("config").write_text("\nmasquerade: Some\n")
    Path("config").chmod(0o600)
    result = command.render("-f", "x", "--config", "config")
    assert (result.status, result.complaint) == (
        2,
        'configuration config line 2: masquerade: wanted All or HostOnly, got "Some"',
    )


# Bad input: reported, and the rest rendered.


def test_broken_yaml_is_said_with_its_line_and_what_came_before_is_rendered(
    command: Command,
) -> None:
    path = written(Path("services"), WEB)
    lines = path.read_text().count("\n")
    path.write_text(path.read_text() + "---\nkind: [Service\n")
    result = command.render("-f", path)
    assert (result.status, result.ips) == (2, ["10.19.0.1"])
    assert result.complaint.startswith(f"services: is no YAML in line {lines + 3}: ")
    assert result.complaint.endswith(" (the objects before it are used)")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (node(POD_CIDR), "wanted a Service, got 'Node'"),
        ({"kind": "Pod\nx"}, "wanted a Service, got 'Pod\\nx'"),
        ("text", "wanted a Service, got 'str'"),
        ([WEB], "wanted a Service, got 'list'"),
        ({"kind": "List", "items": [None]}, "wanted a Service, got 'NoneType'"),
        ({"kind": "List", "items": [{"items": [WEB]}]}, "a Service's name cannot be None"),
        (
            service('x" -j ACCEPT\n-A OUTPUT -j ACCEPT #', ["10.231.0.9"], ["10.19.0.9"]),
            "a Service's name cannot be 'x\" -j ACCEPT\\n-A OUTPUT -j ACCEPT #'",
        ),
    ],
)
def test_what_is_no_service_is_skipped_with_a_note(
    command: Command, document: Any, complaint: str
) -> None:
    result = command.render("-f", written(Path("services"), document, WEB))
    assert (result.status, result.ips) == (0, ["10.19.0.1"])
    assert result.complaint == f"services: skipped an object: {complaint}"


@pytest.mark.parametrize(
    ("ip", "complaint"),
    [
        ("010.19.0.9", "'010.19.0.9' has leading zeros, which some programs read as octal"),
        (
            "::ffff:10.19.0.9",
            "'::ffff:10.19.0.9' is an IPv4-mapped IPv6 address; write it as IPv4",
        ),
        ("lb.example.com", "'lb.example.com' is no IP address"),
        ("10.19.0.9 -j ACCEPT\n-F", "'10.19.0.9 -j ACCEPT\\n-F' is no IP address"),
        ("10.19.0.9/24", "'10.19.0.9/24' is no IP address"),
    ],
)
def test_an_ip_that_is_none_is_reported_and_the_others_are_rendered(
    command: Command, ip: str, complaint: str
) -> None:
    bad = service("bad", ["10.231.0.2"], [ip, "10.19.0.2"])
    result = command.render("-f", written(Path("services"), bad, WEB))
    assert (result.status, result.ips) == (0, ["10.19.0.1", "10.19.0.2"])
    assert result.complaint == f"default/bad: status.loadBalancer.ingress[0] {complaint}"


def test_a_refused_ip_is_reported(command: Command) -> None:
    bad = service("bad", ["10.231.0.2"], ["127.0.0.1"])
    result = command.render("-f", written(Path("services"), bad))
    assert (result.status, result.out) == (0, NO_RULES)
    assert result.complaint == "default/bad: 127.0.0.1 is refused: it is a loopback address"


def test_nothing_of_labels_and_annotations_reaches_the_rules(command: Command) -> None:
    nasty = '" -j ACCEPT\nCOMMIT\n*filter\n-F\n'
    marked = {**WEB, "metadata": {**WEB["metadata"], "labels": {nasty: nasty}}}
    marked["metadata"]["annotations"] = {nasty: nasty}
    plain = command.render("-f", written(Path("plain"), WEB))
    assert command.render("-f", written(Path("marked"), marked)) == plain


def test_a_line_break_in_a_files_name_is_escaped(command: Command) -> None:
    path = Path("a\nb")
    path.write_text("a: b: c")
    result = command.render("-f", path)
    assert result.complaint.startswith("a\\nb: is no YAML in line 1: ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "missing: No such file or directory"),
        (".", ".: Is a directory"),
        ("missing/x\ny", "missing/x\\ny: No such file or directory"),
        ("latin1", "latin1: is no UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(command: Command, name: str, why: str) -> None:
    Path("latin1").write_bytes(b"caf\xe9")
    result = command.render("-f", written(Path("web"), WEB), "-f", name)
    assert result == (2, "", f"ipvs-node-agent: {why}\n")


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ([], "wanted one Node, got 0"),
        ([node(POD_CIDR), node(POD_CIDR)], "wanted one Node, got 2"),
        (
            [WEB],
            "wanted a Node, got 'Service' (kubectl get node NAME -o yaml prints one)",
        ),
    ],
)
def test_the_nodes_file_holds_one_node(command: Command, documents: list[Any], why: str) -> None:
    result = command("render", "-f", "x", "--node", written(Path("node"), *documents))
    assert result == (2, "", f"ipvs-node-agent: node: {why}\n")


@pytest.mark.parametrize("arguments", [[], ["--node", "node"]])
def test_without_a_pod_cidr_nothing_is_rendered(command: Command, arguments: list[str]) -> None:
    written(Path("node"), node())
    result = command("render", "-f", written(Path("web"), WEB), *arguments)
    hint = "(give --pod-cidr CIDR, --node FILE, or podCIDRs in --config)"
    assert result == (2, "", f"ipvs-node-agent: render: no pod CIDR {hint}\n")


# Usage.


def test_the_version_is_told(command: Command) -> None:
    assert command("--version") == (0, f"ipvs-node-agent {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["render", "--help"], ["run", "-h"]])
def test_help_is_given(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: ipvs-node-agent")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND (see ipvs-node-agent --help)"),
        (["--nonsense"], "the following arguments are required: COMMAND (see ipvs-node-agent"),
        (["nonsense"], "argument COMMAND: invalid choice: 'nonsense'"),
        (["run", "x"], "unrecognized arguments: x (see ipvs-node-agent --help)"),
        (["run", "a\nb"], "unrecognized arguments: a\\nb (see ipvs-node-agent --help)"),
        (["--config"], "argument --config: expected one argument (see ipvs-node-agent --help)"),
        (["--log-level", "loud", "run"], "argument --log-level: invalid choice: 'loud' (choose"),
        (["run", "--conf", "x"], "unrecognized arguments: --conf x (see ipvs-node-agent --help)"),
        (
            ["render"],
            "the following arguments are required: -f/--file (see ipvs-node-agent render --help)",
        ),
        (
            ["render", "-f", "x", "--family", "ipv4"],
            "argument --family: wanted IPv4 or IPv6, got 'ipv4' (see ipvs-node-agent render",
        ),
        (
            ["render", "-f", "x", "--pod-cidr", "10.240.2.129/25"],
            "argument --pod-cidr: '10.240.2.129/25' has host bits set (did you mean"
            " 10.240.2.128/25?) (see ipvs-node-agent render --help)",
        ),
        (
            ["render", "-f", "x", "--pod-cidr", "::/0"],
            "argument --pod-cidr: '::/0' is every address, not this node's pods'",
        ),
    ],
)
def test_bad_usage_is_one_line_with_a_hint(
    command: Command, arguments: list[str], complaint: str
) -> None:
    result = command(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.complaint.startswith(f"command line: {complaint}")


# Never a traceback.


RENDER = ("render", "-f", str(DUAL_STACK), "--pod-cidr", POD_CIDR)
TO_STDOUT = pytest.mark.parametrize(
    "arguments", [RENDER, ("--version",), ("--help",), ("render", "--help")], ids=" ".join
)


def redirected(redirection: str, *arguments: str) -> Result:
    """Runs the command with the shell's redirection of one of its streams."""
    command = [sys.executable, "-m", "ipvs_node_agent", *arguments]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """A pipe whose reader has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@TO_STDOUT
def test_a_reader_that_has_seen_enough_is_no_error(
    arguments: tuple[str, ...], broken_pipe: int
) -> None:
    result = run(*arguments, stdout=broken_pipe)
    assert (result.status, result.err) == (0, "")


@TO_STDOUT
@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_what_cannot_be_printed_is_said_in_one_line(
    arguments: tuple[str, ...], redirection: str, why: str
) -> None:
    result = redirected(redirection, *arguments)
    assert result == (3, "", f"ipvs-node-agent: standard output: {why}\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 >/dev/full", "2>&- >&-"])
@pytest.mark.parametrize(
    ("arguments", "status"), [(("nonsense",), 2), ((*RENDER, "-f", "missing"), 2)]
)
def test_a_complaint_that_cannot_be_printed_changes_no_status(
    arguments: tuple[str, ...], status: int, redirection: str
) -> None:
    result = redirected(redirection, *arguments)
    assert result.status == status
    if ">&1" not in redirection:
        assert (result.out, result.err) == ("", "")


def test_a_complaint_that_nobody_reads_changes_no_status(broken_pipe: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipvs_node_agent", "nonsense"],
        stderr=broken_pipe,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 2


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_standard_error_the_rules_are_all_there(redirection: str) -> None:
    arguments = ("--log-level", "debug", *RENDER, "-f", str(TESTS / "data/wrong.yaml"))
    result = redirected(redirection, *arguments)
    assert result == (*run(*arguments)[:2], "")


def test_standard_input_that_is_closed_is_a_file_that_cannot_be_read() -> None:
    result = redirected("<&-", "render", "-f", "-", "--pod-cidr", POD_CIDR)
    assert result == (2, "", "ipvs-node-agent: -: Bad file descriptor\n")


def test_an_interrupt_is_quiet(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert command.render("-f", "x") == (130, "", "")


def test_a_bug_is_one_line_and_asks_to_be_reported(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: Any) -> Any:
        raise KeyError("a\nb")

    monkeypatch.setattr(cli, "load", buggy)
    result = command.render("-f", "x")
    assert result.status == 70
    assert result.complaint == (
        "internal error: KeyError: 'a\\nb' (please report it, with what"
        " ipvs-node-agent --log-level debug shows)"
    )


def test_a_lack_of_memory_is_no_bug(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(cli, "load", greedy)
    result = command.render("-f", "x")
    assert (result.status, result.complaint) == (3, "out of memory")


def test_a_bug_with_a_message_of_many_lines_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: Any) -> Any:
        raise RuntimeError("a\nb")

    monkeypatch.setattr(cli, "load", buggy)
    assert "RuntimeError: a\\nb" in command.render("-f", "x").complaint


def test_a_bug_shows_where_it_is_where_that_is_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(cli, "load", buggy)
    result = command("--log-level", "debug", "render", "-f", "x", "--pod-cidr", POD_CIDR)
    assert "Traceback" in result.err
