"""docs/operations.md is complete: every metric, alert, reason and message, and none that is not."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Callable

import pytest
import yaml

from ipvs_node_agent.commands.output import PROGRAM
from ipvs_node_agent.model import events
from ipvs_node_agent.nat.ruleset import DRIFT
from ipvs_node_agent.observe import nodeevents
from tests.support.documents import OPERATIONS, first_code
from tests.support.exposed import text
from tests.support.loglines import log_calls, text_of, trees
from tests.support.places import PACKAGING, REPOSITORY
from tests.support.promlint import read
from tests.support.promql import unknown
from tests.support.promtool import check_queries, need_prometheus, promtool

RULES = REPOSITORY / "packaging" / "prometheus" / "ipvs-node-agent.rules.yaml"


# 1. Metrics, alerts and Events


def test_every_metric_has_a_row_with_its_type_and_labels() -> None:
    exposed = {}
    for name, metric in read(text()).items():
        labels = {label for _, found in metric.samples for label, _ in found}
        exposed[name] = (metric.kind, labels - {"le"})
    shown = {
        first_code(row[0]): (row[1], set(re.findall(r"`(\w+)`", row[2])))
        for row in OPERATIONS.table("Metrics")
        if len(row) == 5
    }
    assert shown == exposed


def test_every_reason_of_a_metric_has_a_row() -> None:
    rows = [first_code(row[0]) for row in OPERATIONS.table("Metrics") if len(row) == 2]
    assert sorted(rows) == sorted([*DRIFT, *events.RESTART_REASONS])


def alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def reasons_of_events() -> list[str]:
    of_pods = [nodeevents.UNCOVERED]
    return [nodeevents.NOT_NEEDED, nodeevents.PROGRAMMING_FAILED, nodeevents.REFUSED, *of_pods]


def queries() -> list[str]:
    (block,) = re.findall(r"^```promql\n((?:.*\n)*?)```$", OPERATIONS.text, re.MULTILINE)
    return [line for line in block.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("query", queries())
def test_a_query_is_on_what_the_agent_exposes(query: str) -> None:
    assert not unknown(query)


def test_prometheus_takes_the_queries(tmp_path: Path) -> None:
    check_queries(queries(), tmp_path)


def test_the_scrape_configuration_is_the_one_that_ships() -> None:
    shipped = (RULES.parent / "ipvs-node-agent.scrape.yaml").read_text()
    assert shipped.endswith(OPERATIONS.block_of_yaml("scrape_configs"))


def test_prometheus_takes_the_scrape_configuration(tmp_path: Path) -> None:
    need_prometheus()
    # Debian's own has no Kubernetes in it.
    found = yaml.safe_load(OPERATIONS.block_of_yaml("scrape_configs"))
    assert found["scrape_configs"][0].pop("kubernetes_sd_configs") == [{"role": "node"}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(found))
    status, said = promtool("check", "config", "prometheus.yaml", directory=tmp_path)
    assert status == 0, said


# 2. Messages

# Only a command prints errors that are made in these modules.
_OF_COMMANDS = {
    "commands/diff",
    "commands/explain",
    "commands/render",
    "explain/target",
    "observe/counters",
    "observe/statussocket",
}
# Their reason is the second argument, or the only one.
_TWO = {"AgentError", "ApiError", "RefusedError", "TableError", "UsageError", "refused"}
_ONE = {"BadUrl", "BrokenList", "BrokenStream", "LaunchError", "NotYaml", "Unfit"}


def as_shown(text: str) -> str:
    """A message as the document shows it, with ... for whatever is filled in."""
    shown = re.sub(r"%(\.0f|[sd])", "...", text)
    return re.sub(r"(\.\.\.)+", "...", shown).replace("...line ...", "... line ...")


def function(module: str, name: str) -> ast.FunctionDef:
    """A function or method of the package."""
    functions = [node for node in ast.walk(trees()[module]) if isinstance(node, ast.FunctionDef)]
    (found,) = (node for node in functions if node.name == name)
    return found


def calls(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    """The calls of functions and methods with these names in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = str(getattr(node.func, "id", getattr(node.func, "attr", "")))
            if name in names:
                yield name, node


def assigned(module: str) -> dict[str, set[str]]:
    """The texts that a module gives to plain names."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, set()).add(text_of(node.value))
    return found


def strings(node: ast.AST) -> Iterator[str]:
    """The texts in `node`, a whole f-string as one."""
    if isinstance(node, (ast.JoinedStr, ast.Constant)):
        if text_of(node) != "...":
            yield text_of(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from strings(child)


def returned(module: str, name: str) -> set[str]:
    """The texts that a function may return, without empty ones."""
    found = set()
    for node in ast.walk(function(module, name)):
        if isinstance(node, ast.Return) and node.value is not None:
            whole = text_of(node.value)
            found |= {whole} if whole.strip(".") else set(strings(node.value))
    return {as_shown(text) for text in found if text}


def told_by_cli() -> set[str]:
    """What ends the program without an error of its own kind."""
    fails = calls(function("cli", "_run_command"), {"_fail"})
    texts = {text_of(call.args[0]) for _, call in fails}
    # The program's own name is filled in, too.
    return {as_shown(text).replace("... --log", f"{PROGRAM} --log") for text in texts - {"..."}}


def messages() -> dict[str, str]:
    """Every message of a level above info, as the document shows it, and its level."""
    found: dict[str, str] = {}
    for call in log_calls():
        if call.level not in ("warning", "error", "exception", "critical"):
            continue
        if (call.module, call.text) == ("apiserver/client", "%s"):
            # Its words are made where the kubeconfig is read.
            danger = "an attacker on the network path can steer this node's traffic"
            for text in returned("kubeconfig/credentials", "_warning"):
                found[text.removesuffix("...") + danger] = call.level
        elif (call.module, call.text) == ("sync/log", "%s (%s)"):
            found["SERVICE: ... (REASON)"] = call.level
        else:
            found[as_shown(call.text)] = call.level
    return {**found, **dict.fromkeys(told_by_cli(), "error")}


def test_no_message_is_without_words() -> None:
    """Else it would have no entry here, and could not be found in the source."""
    wordless = {
        (call.module, call.text)
        for call in log_calls()
        if call.level in ("warning", "error") and not re.search(r"\w", call.text.replace("%s", ""))
    }
    assert wordless == {("sync/log", "%s (%s)"), ("apiserver/client", "%s")}


def test_every_message_has_an_entry_with_its_level_and_no_other_entry_has_one() -> None:
    shown = [
        (code, level)
        for level in ("warning", "error")
        for entry in OPERATIONS.entries(level)
        for code in entry.codes
    ]
    assert sorted(shown) == sorted(messages().items())


def reasons_of_problems() -> set[str]:
    """The words that a Problem may have."""
    made = [call for tree in trees().values() for _, call in calls(tree, {"Problem"})]
    found = {text_of(argument) for call in made for argument in call.args[1:2]}
    # Of the addresses that are refused, each word stands in front of why.
    for module in ("rules/policy", "rules/claims"):
        for node in ast.walk(trees()[module]):
            if isinstance(node, ast.Tuple) and len(node.elts) > 1:
                found.add(text_of(node.elts[0]))
    return {word for word in found if re.fullmatch(r"[A-Z][A-Za-z]+", word)}


def reasons_of_errors() -> set[str]:
    """Why something failed, of all errors that can get into a message."""
    found: set[str] = set()
    for module in trees().keys() - _OF_COMMANDS:
        for name, call in calls(trees()[module], _ONE | _TWO):
            place = 0 if name in _ONE else 1
            for argument in call.args[place : place + 1]:
                if isinstance(argument, ast.Name):
                    found |= assigned(module).get(argument.id, set())
                else:
                    found.add(text_of(argument))
    # What a command that failed leaves, and the hints that say more than its own words.
    found |= {text for text in strings(function("iptables/command", "_failure")) if " " in text}
    found |= returned("iptables/command", "_hint")
    found |= assigned("iptables/command")["FOREIGN_HINT"]
    found |= assigned("iptables/command")["LOCKED_HINT"]
    found |= returned("sync/inputs", "lacking") | returned("rules/policy", "lacking")
    return {
        as_shown(text) for text in found if re.search(r"[a-z]{2}", text) and "(?" not in text
    } - {"...: ...", "; ", "utf-8", r"\bline:? (\d+)", "replace"}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("alert", alerts),
        ("Event", reasons_of_events),
        ("refused", reasons_of_problems),
        ("reason", reasons_of_errors),
    ],
)
def test_the_symptoms_have_everything_once_and_nothing_else(
    kind: str, wanted: Callable[[], Iterable[str]]
) -> None:
    shown = [code for entry in OPERATIONS.entries(kind) for code in entry.codes]
    assert sorted(shown) == sorted(wanted())


KINDS = ["alert", "Event", "warning", "error", "check", "refused", "reason"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_is_a_short_paragraph_of_a_known_kind(kind: str) -> None:
    """With a cause and a cure, else it is none."""
    for entry in OPERATIONS.entries(kind):
        assert set(entry.kinds) <= set(KINDS), entry
        assert len(f"{entry.cause} {entry.cure}".split()) <= 75, entry


# 3. Scripts


# What the commands do in place of a node's; each notes what it is asked.
COMMANDS = {
    "scp": "",
    "ssh": 'node=$1; shift; export NODE=$node; exec sh -c "$*"',
    "systemctl": """case "$1 $NODE" in
        "is-active running") echo active;;
        "is-active waiting") echo activating; exit 3;;
        is-active*) echo inactive; exit 3;;
        esac""",
    "apt-get": "",
    "ipvs-node-agent": """case "$1 $NODE" in
        "check bad") echo "fail  agent: x"; echo "fail  kernel: y => z"; exit 1;;
        check*) echo "ok    kernel: x"; echo "fail  rules: z"; exit 1;;
        esac""",
}


def run_script(name: str, folder: Path, *arguments: str) -> tuple[int, list[str], str]:
    """Exit status, what the commands in `folder` noted, and what it printed."""
    for command, does in COMMANDS.items():
        program = folder / command
        noted = f'echo "${{NODE:+$NODE: }}{command} $*" >>{folder}/noted'
        program.write_text(f"#!/bin/sh\n{noted}\n{does}\n")
        program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", OPERATIONS.scripts[name], name, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )
    lines = (folder / "noted").read_text().splitlines()
    return done.returncode, [line for line in lines if not line.startswith("ssh")], done.stdout


STEPS = [
    "systemctl is-active ipvs-node-agent",
    "systemctl mask --quiet --runtime ipvs-node-agent",
    "apt-get install -qq -y /root/ipvs-node-agent.deb",
    "ipvs-node-agent check",
    "systemctl unmask --quiet --runtime ipvs-node-agent",
    "systemctl enable --quiet ipvs-node-agent",
    "systemctl restart ipvs-node-agent",
    "ipvs-node-agent status",
]


def steps_on(node: str, *left_out: str) -> list[str]:
    copied = f"scp -q new.deb {node}:/root/ipvs-node-agent.deb"
    return [copied, *(f"{node}: {step}" for step in STEPS if step not in left_out)]


def test_the_roll_out_takes_each_node_through_all_steps(tmp_path: Path) -> None:
    nodes = ("one", "running", "waiting")
    status, noted, printed = run_script("roll-out", tmp_path, "new.deb", *nodes)
    assert (status, printed) == (0, "one\nrunning\nwaiting\n")
    # An agent that runs is not masked, nor is one that waits for its cluster.
    those = [*steps_on("running", STEPS[1]), *steps_on("waiting", STEPS[1])]
    assert noted == [*steps_on("one"), *those]


def test_the_roll_out_stops_at_the_first_node_that_is_not_well(tmp_path: Path) -> None:
    status, noted, printed = run_script("roll-out", tmp_path, "new.deb", "one", "bad", "two")
    assert (status, printed) == (1, "one\nbad\nfail  kernel: y => z\n")
    assert noted[-1] == "bad: ipvs-node-agent check"


def test_backing_out_removes_the_package_on_each_node(tmp_path: Path) -> None:
    status, noted, _ = run_script("back-out", tmp_path, "one", "two")
    assert status == 0
    assert noted == [f"{node}: apt-get remove -qq -y ipvs-node-agent" for node in ("one", "two")]


def test_every_variable_of_the_role_has_a_row_with_its_default() -> None:
    role = PACKAGING / "ansible" / "roles" / "ipvs_node_agent"
    specified = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    options = specified["argument_specs"]["main"]["options"]
    defaults = {name: str(of["default"]) for name, of in options.items() if "default" in of}
    given = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    assert {name: str(value) for name, value in given.items()} == defaults
    rows = OPERATIONS.table("With Ansible or another configuration management tool")
    shown = {first_code(row[0]): row[1].strip("`") for row in rows}
    assert shown == {**dict.fromkeys(options, ""), **defaults}


def test_the_play_goes_in_batches_and_ends_with_the_first_node_that_is_not_well() -> None:
    (play,) = yaml.safe_load((PACKAGING / "ansible" / "roll-out.yml").read_text())
    assert (play["serial"], play["any_errors_fatal"]) == ([1, 5, "10%"], True)
