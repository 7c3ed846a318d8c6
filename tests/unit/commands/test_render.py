"""`render`: Kubernetes objects in every form that people write, and what is made of them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_node_agent.commands.render import read_objects
from tests.support.cluster import node, service
from tests.support.commandline import (
    DUAL_STACK,
    POD_CIDR,
    RENDER_DUAL_STACK,
    WEB,
    Command,
    run,
    written,
)
from tests.support.places import TESTS

TWO_SERVICES = TESTS / "data/two-services.yaml"
POD_CIDR_6 = "fd00:10:240:2::/64"
NO_RULES = """\
*nat
:IPVS_OUTPUT - [0:0]
:IPVS_PREROUTING - [0:0]
-I OUTPUT 1 -j IPVS_OUTPUT
-I PREROUTING 1 -j IPVS_PREROUTING
COMMIT
"""
A, B = {"kind": "Service", "metadata": {"name": "a"}}, {"kind": "Service", "metadata": None}


# The forms of objects.


def read(text: str) -> tuple[list[Any], list[str]]:
    """The objects, and what was said to be broken."""
    complaints: list[str] = []
    return list(read_objects(text, complaints.append)), complaints


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("# nothing\n---\n---\n", [], id="empty-documents"),
        pytest.param("kind: Service\nmetadata: {name: a}\n", [A], id="YAML"),
        pytest.param(json.dumps(A), [A], id="JSON"),
        pytest.param("\n\t " + json.dumps(A, indent="\t"), [A], id="JSON-with-tabs"),
        pytest.param("{kind: Service, metadata: {name: a}}", [A], id="YAML-that-looks-like-JSON"),
        pytest.param(f"---\n{json.dumps(A)}\n---\n{json.dumps(B)}\n", [A, B], id="JSON-documents"),
        pytest.param(f"{json.dumps(A)}\n---\n{json.dumps(B)}\n", [A, B], id="JSON-then-another"),
        pytest.param(
            "kind: Service\nmetadata: {name: a}\n---\nkind: Service\nmetadata:\n",
            [A, B],
            id="YAML-documents",
        ),
        pytest.param(json.dumps({"kind": "List", "items": [A, B]}), [A, B], id="JSON-list"),
        pytest.param(
            "kind: List\nitems:\n- kind: Service\n  metadata: {name: a}\n- kind: Service\n"
            "  metadata:\n---\nkind: Service\nmetadata:\n",
            [A, B, B],
            id="YAML-list-and-a-document",
        ),
        pytest.param('{"kind": "List", "items": []}', [], id="empty-list"),
        pytest.param('{"items": null}', [{"items": None}], id="no-list"),
        pytest.param("[1, two]", [[1, "two"]], id="a-bare-list"),
        pytest.param("just text", ["just text"], id="text"),
        pytest.param("\ufeffkind: Service\nmetadata:\n", [B], id="BOM-and-YAML"),
        pytest.param("\ufeff" + json.dumps(A), [A], id="BOM-and-JSON"),
    ],
)
def test_every_form_is_read(text: str, objects: list[Any]) -> None:
    assert read(text) == (objects, [])


@pytest.mark.parametrize(
    "written", ["2026-01-05T08:00:00Z", "2026-01-05", "2026-02-30", "2026-01-05 08:00:00"]
)
def test_a_timestamp_stays_text_as_in_json(written: str) -> None:
    assert read(f"created: {written}") == ([{"created": written}], [])


def test_anchors_are_followed() -> None:
    assert read("a: &x [1]\nb: *x") == ([{"a": [1], "b": [1]}], [])


def test_there_may_be_any_number_of_values() -> None:
    (found,), complaints = read("[" + "0," * 60_000 + "]")
    assert len(found) == 60_000
    assert not complaints


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: Service\n---\na: b: c\n", "is no YAML in line 3: "),
        ("kind: Service\n---\n\n{\n", "is no YAML in line "),
        ("kind: Service\n---\na: *b\n", "is no YAML in line 3: "),
        ("kind: Service\n---\n\tx: 1\n", "is no YAML in line 3: "),
        ("kind: Service\n---\n{[a]: b}\n", "is no YAML in line 3: "),
        ("kind: Service\n---\na: !!python/object:os.system {}\n", "is no YAML in line 3: "),
        ("kind: Service\n---\n=\n", "is no YAML in line 3: "),
        ('kind: Service\n---\n"\\UFFFFFFFF"\n', "is no YAML"),
        ("kind: Service\n---\n!!int abc\n", "is no YAML"),
        ("kind: Service\n---\n!!int ''\n", "is no YAML"),
        ("kind: Service\n---\n!!float abc\n", "is no YAML"),
        ("kind: Service\n---\n!!bool abc\n", "is no YAML"),
        (f"kind: Service\n---\n{'1:' * 400}1.5\n", "is no YAML"),
        (f"kind: Service\n---\na: &a {'x' * 2000}\nb: [{'*a,' * 600}]\n", "is no YAML in line 4: "),
        ("kind: Service\n---\n!!timestamp abc\n", "is no YAML"),
        ("kind: Service\n---\n!!timestamp 2026-02-30\n", "is no YAML"),
        ("kind: Service\n---\n!!binary é\n", "is no YAML"),
        # Pythons without CVE-2020-10735's limit read it; it is no object then.
        *(
            [pytest.param("kind: Service\n---\n" + "9" * 5000 + "\n", "is no YAML", id="digits")]
            if hasattr(sys, "get_int_max_str_digits")
            else []
        ),
    ],
)
def test_what_is_broken_is_said_and_what_came_before_is_read(text: str, complaint: str) -> None:
    objects, (said,) = read(text)
    assert objects == [{"kind": "Service"}]
    assert said.startswith(complaint)


def test_a_character_that_yaml_does_not_allow_breaks_the_whole_file() -> None:
    objects, (said,) = read("kind: Service\n---\na: \0\n")
    assert objects == []
    assert said.startswith("is no YAML: unacceptable character #x0000")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("'[' * 200000", id="lists"),
        pytest.param("'[' * 200000 + ']' * 200000", id="closed-lists"),
        pytest.param("'{a: ' * 200000", id="mappings"),
        pytest.param("'- ' * 200000", id="block-lists"),
        pytest.param("'{\"a\":' * 200000 + '1' + '}' * 200000", id="JSON"),
    ],
)
def test_deep_nesting_is_broken_and_does_not_crash(text: str) -> None:
    # In a process of its own, since a parser in C would take this one along.
    program = (
        "from ipvs_node_agent.commands.render import read_objects\n"
        f"print(len(list(read_objects({text}, lambda why: print(why[:10])))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "is no YAML\n0\n", "")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives text to the command as its standard input."""

    def give(data: str | bytes) -> None:
        raw = data.encode() if isinstance(data, str) else data
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    return give


def golden(name: str) -> str:
    return (TESTS / "golden" / name).read_text(encoding="utf-8")


# What is rendered.


def test_the_two_services_give_the_golden_rules(command: Command) -> None:
    result = command("render", "-f", TWO_SERVICES, "--node", written("node", node(POD_CIDR)))
    assert (result.status, result.out) == (0, golden("two-services.IPv4.rules"))
    skipped = f"{TWO_SERVICES}: skipped an object: wanted a Service, got 'Node'"
    assert result.complaint == skipped


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_dual_stack_cluster_gives_the_golden_rules(command: Command, family: str) -> None:
    arguments = ("--pod-cidr", POD_CIDR_6, "--family", family, "-f", DUAL_STACK)
    assert command.render(*arguments) == (0, golden(f"dual-stack.{family}.rules"), "")


@pytest.mark.parametrize("options", [{}, {"env": {}}], ids=["", "no environment"])
def test_a_process_of_its_own_gives_the_golden_rules(options: dict[str, Any]) -> None:
    assert run(*RENDER_DUAL_STACK, **options) == (0, golden("dual-stack.IPv4.rules"), "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_root_is_needed() -> None:
    try:
        result = run(*RENDER_DUAL_STACK, user=65534)
    except PermissionError:
        pytest.skip("this Python is out of other users' reach")
    assert result == (0, golden("dual-stack.IPv4.rules"), "")


def test_no_services_give_empty_chains(command: Command) -> None:
    assert command.render("-f", written("none")) == (0, NO_RULES, "")


def test_files_can_be_several(command: Command) -> None:
    more = written("more", service("more", ["10.231.0.2"], ["10.19.0.2"]))
    result = command.render("-f", written("web", WEB), "--file", more)
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.1", "10.19.0.2"], "")


def test_of_a_service_that_is_there_twice_the_last_one_counts(command: Command) -> None:
    again = service("web", ["10.231.0.1"], ["10.19.0.9"])
    result = command.render("-f", written("a", WEB), "-f", written("b", again))
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
    written("config", {"podCIDRs": ["10.99.0.0/24"]})
    files = ("-f", written("web", WEB), "--node", written("node", node(POD_CIDR)))
    result = command("render", *files, *arguments)
    assert set(re.findall(r"-s (\S+)", result.out)) == {"10.99.0.0/24"}


def test_a_pod_cidr_of_the_command_line_counts_more_than_the_configurations(
    command: Command,
) -> None:
    written("config", {"podCIDRs": ["10.99.0.0/24"]})
    result = command.render("-f", written("web", WEB), "--config", "config")
    assert set(re.findall(r"-s (\S+)", result.out)) == {POD_CIDR}


# Bad input: reported, and the rest rendered.


def test_broken_yaml_is_said_with_its_line_and_what_came_before_is_rendered(
    command: Command,
) -> None:
    path = written("services", WEB)
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
    result = command.render("-f", written("services", document, WEB))
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
    result = command.render("-f", written("services", bad, WEB))
    assert (result.status, result.ips) == (0, ["10.19.0.1", "10.19.0.2"])
    assert result.complaint == f"default/bad: status.loadBalancer.ingress[0] {complaint}"


def test_a_refused_ip_is_reported(command: Command) -> None:
    bad = service("bad", ["10.231.0.2"], ["127.0.0.1"])
    result = command.render("-f", written("services", bad))
    assert (result.status, result.out) == (0, NO_RULES)
    assert result.complaint == "default/bad: 127.0.0.1 is refused: it is a loopback address"


def test_nothing_of_labels_and_annotations_reaches_the_rules(command: Command) -> None:
    nasty = '" -j ACCEPT\nCOMMIT\n*filter\n-F\n'
    marked = {**WEB, "metadata": {**WEB["metadata"], "labels": {nasty: nasty}}}
    marked["metadata"]["annotations"] = {nasty: nasty}
    plain = command.render("-f", written("plain", WEB))
    assert command.render("-f", written("marked", marked)) == plain


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
    result = command.render("-f", written("web", WEB), "-f", name)
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
    result = command("render", "-f", "x", "--node", written("node", *documents))
    assert result == (2, "", f"ipvs-node-agent: node: {why}\n")


@pytest.mark.parametrize("arguments", [[], ["--node", "node"]])
def test_without_a_pod_cidr_nothing_is_rendered(command: Command, arguments: list[str]) -> None:
    written("node", node())
    result = command("render", "-f", written("web", WEB), *arguments)
    hint = "(give --pod-cidr CIDR, --node FILE, or podCIDRs in --config)"
    assert result == (2, "", f"ipvs-node-agent: render: no pod CIDR {hint}\n")
