"""What the package is made of: versions, conffiles, man pages, completion and the unit.

What a package manager and systemd make of it is tests/packaging's and tests/node's business.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Callable

import pytest

from ipvs_node_agent import __version__, cli
from ipvs_node_agent.commands import output
from ipvs_node_agent.config import file as config
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.host.systemd import _SILENCE
from ipvs_node_agent.iptables.command import TIME_LIMIT
from ipvs_node_agent.unitarguments import value, words
from tests.support.places import PACKAGING, REPOSITORY

PLACES = ("ipvs_node_agent/__init__.py", "CHANGELOG.md", "debian/changelog")


def needs(there: object, package: str) -> None:
    """Passes over a test whose tool is missing; packaging/build/deb-test has them all."""
    if not there:
        pytest.skip(f"the package {package} is not installed")


# 1. Versions


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that say a version, and what checks them, to be changed."""
    for name in (*PLACES, "packaging/build/check-versions"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def check_versions(tree: Path) -> tuple[int, str]:
    command = ["python3", str(tree / "packaging" / "build" / "check-versions")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("place", PLACES)
def test_a_version_that_differs_is_one_line_and_fails_the_build(place: str, tree: Path) -> None:
    assert check_versions(tree) == (0, "")
    path = tree / place
    path.write_text(path.read_text().replace(__version__, "9.9.9", 1))
    status, said = check_versions(tree)
    assert (status, said.count("\n")) == (1, 1)
    assert f"9.9.9 in {place}" in said
    assert "check-versions" in (REPOSITORY / "debian" / "rules").read_text()


@pytest.mark.parametrize("suffix", ["+test1", "~bpo12+1"])
def test_a_package_built_anew_may_have_a_suffix(suffix: str, tree: Path) -> None:
    path = tree / "debian" / "changelog"
    path.write_text(path.read_text().replace(")", f"{suffix})", 1))
    assert check_versions(tree) == (0, "")


def test_setup_takes_the_codes_version() -> None:
    assert "version=VERSION[1]" in (REPOSITORY / "setup.py").read_text()


def test_the_deb_depends_on_the_versions_that_setup_asks_for() -> None:
    setup = (REPOSITORY / "setup.py").read_text()
    asked = re.findall(r'"([\w-]+)>=([\d.]+)"', setup)
    asked += [("", lowest) for lowest in re.findall(r'python_requires=">=([\d.]+)"', setup)]
    control = (REPOSITORY / "debian" / "control").read_text()
    depends = re.findall(r"^ python3-?([\w-]*) \(>= ([\d.]+)\),$", control, re.MULTILINE)
    assert len(asked) == 7
    assert sorted((name.replace("PyYAML", "yaml"), lowest) for name, lowest in asked) == depends


# 2. What the command line offers, as it knows itself


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and under "" what comes before it."""
    main = vars(cli)["_parser"]()
    found = {"": main}
    for action in main._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def options(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a command, short and long."""
    return [option for action in parser._actions for option in action.option_strings]


def keys() -> Iterator[str]:
    """Every key of the configuration with its section."""
    shown = (REPOSITORY / "packaging" / "config.yaml").read_text()
    section = ""
    for line in shown.splitlines():
        match = re.fullmatch(r"#(  )?(\w+):.*", line)
        if match and match[1]:
            yield f"{section}.{match[2]}"
        elif match:
            section = match[2]
            if section not in ("chains", "services", "iptables", "apiVersion", "kind"):
                yield section


# 3. Man pages


def groff(*arguments: str) -> tuple[str, str]:
    """What groff makes of a man page, and what it says about it."""
    needs(shutil.which("groff"), "groff")
    command = ["groff", "-man", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=PACKAGING / "man"
    )
    return done.stdout, done.stderr


def page(name: str) -> str:
    """A man page as one reads it."""
    return groff("-Tascii", "-P-cbou", name)[0]


@pytest.mark.parametrize("name", ["ipvs-node-agent.8", "ipvs-node-agent.yaml.5"])
def test_groff_has_nothing_to_say_about_a_page(name: str) -> None:
    assert groff("-ww", "-z", "-Tutf8", name)[1] == ""


@pytest.mark.parametrize("name", ["ipvs-node-agent.8", "ipvs-node-agent.yaml.5"])
def test_mandoc_has_nothing_to_say_about_a_page(name: str) -> None:
    needs(shutil.which("mandoc"), "mandoc")
    command = ["mandoc", "-T", "lint", "-W", "style", str(PACKAGING / "man" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    # Lines of the source may be as long as others here.
    assert [line for line in done.stdout.splitlines() if "longer than 80 bytes" not in line] == []


@pytest.mark.parametrize("name", ["ipvs-node-agent.8", "ipvs-node-agent.yaml.5"])
def test_a_page_has_the_date_of_the_package(name: str) -> None:
    changelog = (REPOSITORY / "debian" / "changelog").read_text()
    (date, *_) = re.findall(r"^ -- .*>  (.*)$", changelog, re.MULTILINE)
    (shown,) = re.findall(r"^\.TH \S+ \d (\S+) ", (PACKAGING / "man" / name).read_text(), re.M)
    assert shown == f"{parsedate_to_datetime(date):%Y-%m-%d}"


def test_the_page_has_every_command_option_and_exit_status() -> None:
    text = page("ipvs-node-agent.8")
    for command, parser in parsers().items():
        if command:
            assert re.search(rf"^ +ipvs-node-agent .*\b{command}\b", text, re.MULTILINE)
            assert re.search(rf"^ {{7}}{command}\b", text, re.MULTILINE), command
        for option in options(parser):
            assert re.search(rf"^ {{7}}(-\w, )?{option}\b", text, re.MULTILINE), option
    statuses = text.partition("EXIT STATUS")[2]
    for status in (output.OK, output.PENDING, 2, 3, output.INTERNAL_ERROR):
        assert re.search(rf"^ {{7}}{status}\b", statuses, re.MULTILINE), status


def test_the_page_has_every_key_with_its_default() -> None:
    text = " ".join(page("ipvs-node-agent.yaml.5").split())
    shown = (PACKAGING / "config.yaml").read_text()
    names = list(keys())
    assert len(names) == 19
    assert "apiVersion (default ipvs-node-agent/v1), kind (default Configuration)" in text
    assert {name.partition(".")[0] for name in names} == set(vars(config)["_KEYS"])
    for name in names:
        (default,) = re.findall(rf"^#\s*{name.rpartition('.')[2]}: (.+)$", shown, re.MULTILINE)
        assert f"{name} (default {default})" in text


# 4. Completion


def test_the_parser_decides_what_is_completed() -> None:
    """After a change of the command line: packaging/build/make-completion."""
    made = runpy.run_path(str(PACKAGING / "build" / "make-completion"))["texts"]()
    assert made == {name: (PACKAGING / name).read_text() for name in made}
    installed = (REPOSITORY / "debian" / "ipvs-node-agent.install").read_text()
    for name in made:
        assert f"packaging/{name} " in installed


def output_of(*command: str, directory: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=directory,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    assert not done.stderr
    return done.stdout.splitlines()


def in_bash(line: str, directory: Path, home: Path) -> list[str]:
    needs(Path("/usr/share/bash-completion/bash_completion").exists(), "bash-completion")
    words = " ".join(shlex.quote(word) for word in re.split(r"( |=)", line) if word != " ")
    script = f"""
        . /usr/share/bash-completion/bash_completion
        . {PACKAGING}/bash-completion/ipvs-node-agent
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({words})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_TYPE=9 COMP_KEY=9
        _ipvs_node_agent ipvs-node-agent
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return output_of("bash", "--norc", "-c", script, directory=directory)


def in_zsh(line: str, directory: Path, home: Path) -> list[str]:
    needs(shutil.which("zsh"), "zsh")
    # What is offered is noted as well, unless it is only counted.
    (home / ".zshrc").write_text(f"""
        fpath=({PACKAGING}/zsh-completion $fpath)
        autoload -Uz compinit && compinit -u -D
        compadd() {{
            local -a found
            if (( ! ${{@[(I)-[OAD]*]}} )); then
                builtin compadd -O found "$@"
                print -rl -- $found >>{home}/found
            fi
            builtin compadd "$@"
        }}
        zle-line-init() {{ BUFFER='{line}'; CURSOR=$#BUFFER; zle list-choices; exit 0 }}
        zle -N zle-line-init
    """)
    (home / "found").write_text("")
    # Only on a terminal there is a line to complete.
    output_of("script", "-qec", "zsh -i", "/dev/null", directory=directory, ZDOTDIR=str(home))
    return (home / "found").read_text().splitlines()


def in_fish(line: str, directory: Path, home: Path) -> list[str]:
    needs(shutil.which("fish"), "fish")
    script = f"source {PACKAGING}/fish-completion/ipvs-node-agent.fish; complete -C '{line}'"
    command = ("fish", "--no-config", "-c", script)
    found = output_of(*command, directory=directory, HOME=str(home))
    return [each.partition("\t")[0].rpartition("=")[2] for each in found]


@pytest.fixture(params=[in_bash, in_zsh, in_fish])
def completions(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[str]]:
    """What a shell completes the last of the words to, after ipvs-node-agent."""
    (directory := tmp_path / "here").mkdir()
    (directory / "services.yaml").touch()
    (home := tmp_path / "home").mkdir()

    def complete(*words: str) -> list[str]:
        found = request.param(" ".join(("ipvs-node-agent", *words)), directory, home)
        return sorted({each for each in found if each})

    return complete


def test_commands_and_their_options_are_completed(completions: Callable[..., list[str]]) -> None:
    for command, parser in parsers().items():
        wanted = {option for option in options(parser) if option.startswith("--")}
        assert set(completions(*command.split(), "--")) == wanted, command
    commands = {command for command in parsers() if command}
    assert {word for word in completions("") if not word.startswith("-")} == commands
    assert completions("ren") == ["render"]
    assert completions("--log-level", "debug", "ren") == ["render"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--log-level", ""], ["debug", "error", "info", "warning"]),
        (["check", "--log-level", ""], ["debug", "error", "info", "warning"]),
        (["render", "--family", "IPv"], ["IPv4", "IPv6"]),
        (["check", "-o", ""], ["json", "text"]),
        (["check", "--output="], ["json", "text"]),
        (["status", "--output=j"], ["json"]),
        (["--config", "ser"], ["services.yaml"]),
        (["check", "--config=ser"], ["services.yaml"]),
        (["render", "-f", "ser"], ["services.yaml"]),
        (["render", "--file", "ser"], ["services.yaml"]),
        (["render", "--node", "ser"], ["services.yaml"]),
        (["config", "ser"], ["services.yaml"]),
        (["render", "--pod-cidr", ""], []),
        (["run", ""], []),
    ],
    ids=" ".join,
)
def test_values_are_completed(
    completions: Callable[..., list[str]], words: list[str], wanted: list[str]
) -> None:
    assert [word for word in completions(*words) if not word.startswith("-")] == wanted


# 5. The unit


def test_the_watchdog_waits_for_longer_than_any_command_may_take() -> None:
    longest = TIME_LIMIT + 60  # lockWaitSeconds' upper bound
    unit = (REPOSITORY / "systemd" / "ipvs-node-agent.service").read_text()
    assert "WatchdogSec=2min\n" in unit
    # A sign of life may be as late as a quarter of the time before the command began.
    assert longest <= _SILENCE * 3 / 4


UNIT_LINES = (REPOSITORY / "systemd" / "ipvs-node-agent.service").read_text().splitlines()
ARGUMENTS = (
    "",
    "--config /etc/x.yaml",
    "--config '/etc/my x.yaml' --log-level=debug",
    "-o json",
    "--family IPv4",
    "--nonsense",
    "--config",
)


@pytest.mark.parametrize("text", ARGUMENTS)
def test_a_reload_looks_first_at_the_configuration_that_the_service_has(text: str) -> None:
    """Whatever is in IPVS_NODE_AGENT_ARGS, it is taken or refused as the start does."""
    (start,) = (line for line in UNIT_LINES if line.startswith("ExecStart="))
    reload, kill = (line for line in UNIT_LINES if line.startswith("ExecReload="))
    assert kill == "ExecReload=/bin/kill -HUP $MAINPID"
    found: list[object] = []
    for line, command in ((start, "run"), (reload, "config --quiet")):
        program, _, rest = line.partition("=")[2].partition(" ")
        assert (program, rest) == (
            "/usr/bin/ipvs-node-agent",
            f"{command} $IPVS_NODE_AGENT_ARGS",
        )
        try:
            options = vars(cli)["_parser"]().parse_args([*command.split(), *words(text)])
            found.append((options.config, options.log_level))
        except UsageError:
            found.append(None)
    assert found[0] == found[1]


# 6. Files of the operator's


def test_a_systemd_that_does_not_answer_leaves_no_package_half_configured() -> None:
    postinst = (REPOSITORY / "debian" / "ipvs-node-agent.postinst").read_text()
    start = re.search(r"^start\(\) \{\n.*?^\}$", postinst, re.MULTILINE | re.DOTALL)
    assert start is not None
    # As where process 1 hangs: the restart takes too long, and nothing else is told either.
    script = f"set -e\ntimeout() {{ return 124; }}\nsystemctl() {{ return 1; }}\n{start[0]}\nstart"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "not ready yet. See systemctl status" in done.stdout


def test_what_the_first_installation_makes_says_nothing_yet() -> None:
    postinst = (REPOSITORY / "debian" / "ipvs-node-agent.postinst").read_text()
    made = dict(re.findall(r"^    make (\S+) <<'END'\n(.*?)^END$", postinst, re.M | re.S))
    assert list(made) == [str(config.DEFAULT_PATH), "/etc/default/ipvs-node-agent"]
    configuration, default = made.values()
    assert all(line.startswith("# ") for line in configuration.splitlines())
    assert value(default, "IPVS_NODE_AGENT_ARGS") == ""
    for name in re.findall(r"/usr/share/doc/ipvs-node-agent/examples/(\S+)", configuration):
        assert f"packaging/{name}\n" in (REPOSITORY / "debian/ipvs-node-agent.examples").read_text()


def test_a_conffile_never_changes() -> None:
    """dpkg would ask about one that an operator has edited, and an upgrade at night would fail."""
    installed = (REPOSITORY / "debian" / "ipvs-node-agent.install").read_text().splitlines()
    conffiles = [line.split()[0] for line in installed if line.split()[1].startswith("etc")]
    digests = {
        name: sha256((REPOSITORY / name).read_bytes()).hexdigest()[:16] for name in conffiles
    }
    assert digests == {
        "packaging/needrestart/ipvs-node-agent.service": "217f5be5c5958452",
    }
    named = {path.name for path in (REPOSITORY / "debian").glob("ipvs-node-agent.*")}
    assert not named & {f"ipvs-node-agent.{kind}" for kind in ("default", "init", "cron.d", "pam")}


def test_needrestart_does_not_wait_for_the_service(tmp_path: Path) -> None:
    script = PACKAGING / "needrestart" / "ipvs-node-agent.service"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$@"\n')
    systemctl.chmod(0o755)
    command = subprocess.run([script], env={"PATH": f"{tmp_path}:/bin"}, capture_output=True)
    assert command.stdout == b"--no-block restart ipvs-node-agent.service\n"


# 7. Scripts


def scripts() -> Iterator[Path]:
    """The shell scripts of the repository."""
    for path in REPOSITORY.rglob("*"):
        inside = path.relative_to(REPOSITORY).parts
        if not {".git", ".pybuild", "dist"} & {*inside} and path.is_file():
            with path.open("rb") as file:
                first = file.readline(100)
            if re.match(rb"#!.*[/ ](ba|da)?sh\b", first):
                yield path


def test_no_script_has_a_gate_that_never_fails() -> None:
    found = list(scripts())
    assert REPOSITORY / "packaging" / "build" / "deb-test" in found
    # The shell goes on after a command with a "!", whatever becomes of it.
    gates = re.compile(r"^\s*! ", re.MULTILINE)
    assert not [path for path in found if gates.search(path.read_text(encoding="utf-8"))]


def test_no_script_of_the_package_runs_the_environment_file() -> None:
    for script in (REPOSITORY / "debian").glob("ipvs-node-agent.p*"):
        for line in script.read_text().splitlines():
            assert not re.search(r"(^|\s)(\.|source|eval)\s", line), line
