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

from ipvs_node_agent.commands.render import items_of, read_documents
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
POD_CIDR_2 = "10.240.9.0/24"
POD_CIDR_6 = "fd00:10:240:2::/64"
NO_RULES = """\
*nat
:IPVS_OUTPUT - [0:0]
:IPVS_PREROUTING - [0:0]
-I OUTPUT 1 -j IPVS_OUTPUT
-I PREROUTING 1 -j IPVS_PREROUTING
COMMIT
"""


# 1. The forms of objects


A, B = {"name": "a"}, {"name": None}
A_JSON, B_JSON = json.dumps(A), json.dumps(B)
LISTED = json.dumps({"kind": "List", "items": [A, B]})


def read(text: str) -> tuple[list[Any], list[str]]:
    """The objects, and what was said to be broken."""
    complaints: list[str] = []
    documents = list(read_documents(text, complaints.append))
    return [item for document in documents for item in items_of(document)], complaints


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("", []),
        ("# nothing\n---\n---\n", []),
        ("name: a\n", [A]),
        (A_JSON, [A]),
        ("\n\t " + json.dumps(A, indent="\t"), [A]),
        ("{name: a}", [A]),
        (f"---\n{A_JSON}\n---\n{B_JSON}\n", [A, B]),
        (f"{A_JSON}\n---\n{B_JSON}\n", [A, B]),
        ("name: a\n---\nname:\n", [A, B]),
        (LISTED, [A, B]),
        ("kind: List\nitems:\n- name: a\n- name:\n---\nname:\n", [A, B, B]),
        ('{"kind": "List", "items": []}', []),
        ('{"kind": "ServiceList", "items": null}', []),
        ('{"items": 1}', [{"items": 1}]),
        ('{"kind": "NodeList", "items": [{"name": "a"}, 1]}', [{"kind": "Node", **A}, 1]),
        ('{"kind": "PodList", "items": [{"kind": "x"}]}', [{"kind": "x"}]),
        ("[1, two]", [[1, "two"]]),
        ("just text", ["just text"]),
        ("\ufeffname:\n", [B]),
        (f"\ufeff{A_JSON}", [A]),
        # Dates stay text, as in JSON, and there may be any number of values.
        ("created: 2026-01-05T08:00:00Z", [{"created": "2026-01-05T08:00:00Z"}]),
        ("created: 2026-02-30", [{"created": "2026-02-30"}]),
        ("a: &x [1]\nb: *x", [{"a": [1], "b": [1]}]),
        pytest.param(f"[{'0,' * 60_000}]", [[0] * 60_000], id="60,000 values"),
    ],
)
def test_every_form_is_read(text: str, objects: list[Any]) -> None:
    assert read(text) == (objects, [])


WITHOUT_LINE = (
    "!!int abc",
    "!!int ''",
    "!!float abc",
    "!!bool abc",
    "!!timestamp 2026-02-30",
    "!!binary é",
    '"\\UFFFFFFFF"',
    f"{'1:' * 400}1.5",
    # Pythons without CVE-2020-10735's limit read it; it is no object then.
    *(["9" * 5000] if hasattr(sys, "get_int_max_str_digits") else []),
)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: b: c", " in line 3: "),
        ("a: *b", " in line 3: "),
        ("\tx: 1", " in line 3: "),
        ("{[a]: b}", " in line 3: "),
        ("a: !!python/object:os.system {}", " in line 3: "),
        ("=", " in line 3: "),
        (f"a: &a {'x' * 2000}\nb: [{'*a,' * 600}]", " in line 4: "),
        *((text, "") for text in WITHOUT_LINE),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_broken_is_said_and_what_came_before_is_read(text: str, where: str) -> None:
    objects, (said,) = read(f"name: a\n---\n{text}\n")
    assert objects == [A]
    assert said.startswith(f"is not YAML{where}")


def test_a_character_that_yaml_does_not_allow_breaks_the_whole_file() -> None:
    objects, (said,) = read("name: a\n---\na: \0\n")
    assert objects == []
    assert said.startswith("is not YAML: unacceptable character #x0000")


@pytest.mark.parametrize(
    "text",
    [
        "'[' * 200000",
        "'[' * 200000 + ']' * 200000",
        "'{a: ' * 200000",
        "'- ' * 200000",
        "'{\"a\":' * 200000 + '1' + '}' * 200000",
    ],
)
def test_deep_nesting_is_broken_and_does_not_crash(text: str) -> None:
    # In a process of its own, since a parser in C would take this one along.
    program = (
        "from ipvs_node_agent.commands.render import read_documents\n"
        f"print(len(list(read_documents({text}, lambda why: print(why[:11])))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "is not YAML\n0\n", "")


# 2. What is rendered


def golden(name: str) -> str:
    return (TESTS / "golden" / name).read_text(encoding="utf-8")


def test_the_two_services_give_the_golden_rules(command: Command) -> None:
    assert command("render", "-f", TWO_SERVICES) == (0, golden("two-services.IPv4.rules"), "")


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_dual_stack_cluster_gives_the_golden_rules(command: Command, family: str) -> None:
    arguments = ("--pod-cidr", POD_CIDR_6, "--family", family, "-f", DUAL_STACK)
    assert command.render(*arguments) == (0, golden(f"dual-stack.{family}.rules"), "")


def test_no_environment_is_needed() -> None:
    assert run(*RENDER_DUAL_STACK, env={}) == (0, golden("dual-stack.IPv4.rules"), "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_root_is_needed() -> None:
    try:
        result = run(*RENDER_DUAL_STACK, user=65534)
    except PermissionError:
        pytest.skip("this Python is out of other users' reach")
    assert result == (0, golden("dual-stack.IPv4.rules"), "")


@pytest.mark.parametrize("empty", [[], None])
def test_a_list_without_services_gives_empty_chains(
    command: Command, empty: list[Any] | None
) -> None:
    none = written("none", {"apiVersion": "v1", "kind": "List", "items": empty})
    assert command.render("-f", none) == (0, NO_RULES, "")


def test_of_several_files_with_the_same_service_the_last_one_counts(command: Command) -> None:
    first = written("first", WEB, service("more", ["10.231.0.2"], ["10.19.0.2"]))
    second = written("second", service("web", ["10.231.0.1"], ["10.19.0.9"]))
    result = command.render("-f", first, "--file", second)
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.2", "10.19.0.9"], "")


@pytest.mark.parametrize(
    ("arguments", "cidr"),
    [
        ("--node node", POD_CIDR),
        ("--node node --pod-cidr 10.99.0.0/24", "10.99.0.0/24"),
        ("--node node --config config", "10.99.0.0/24"),
        (f"--config config --pod-cidr {POD_CIDR}", POD_CIDR),
    ],
)
def test_the_command_line_counts_more_than_the_configuration_and_that_more_than_the_node(
    command: Command, arguments: str, cidr: str
) -> None:
    written("config", {"podCIDRs": ["10.99.0.0/24"]})
    written("node", node(POD_CIDR))
    result = command("render", "-f", written("web", WEB), *arguments.split())
    assert set(re.findall(r"-s (\S+)", result.out)) == {cidr}


OTHER_CIDR = "10.99.0.0/24"


@pytest.mark.parametrize(
    ("nodes", "arguments", "cidrs", "note"),
    [
        ([], "", None, ""),
        (["worker-1"], "", [POD_CIDR], ""),
        (["worker-1"], "--node other", [OTHER_CIDR], ""),
        (["worker-1"], f"--pod-cidr {OTHER_CIDR}", [OTHER_CIDR], ""),
        (["worker-1"], "--config config", [POD_CIDR], ""),
        (["worker-1", "worker-1"], "", [POD_CIDR], ""),
        (["worker-1", "worker-2"], "", None, "none of 2 Nodes is chosen: "),
        (["worker-1", "worker-2"], "--node other", [OTHER_CIDR], ""),
        (["worker-1", "worker-2"], "--config config", [POD_CIDR_2], ""),
    ],
)
def test_a_node_among_the_objects_counts_as_one_that_is_named_would(
    command: Command, nodes: list[str], arguments: str, cidrs: list[str] | None, note: str
) -> None:
    written("config", {"nodeName": "worker-2"})
    written("other", node(OTHER_CIDR))
    given = {"worker-1": POD_CIDR, "worker-2": POD_CIDR_2}
    web = written("web", *(node(given[name], name=name) for name in nodes), WEB)
    result = command("render", "-f", web, *arguments.split())
    assert (result.status == 0) == (cidrs is not None)
    assert sorted(set(re.findall(r"-s (\S+)", result.out))) == (cidrs or [])
    assert note in result.err


def test_the_addresses_of_a_node_among_the_objects_count_too(command: Command) -> None:
    """An external IP that is the node's own is matched by port."""
    mine = node(POD_CIDR)
    mine["status"]["addresses"] = [{"type": "InternalIP", "address": "10.19.0.1"}]
    alone, beside = written("alone", WEB), written("beside", mine, WEB)
    named = command("render", "-f", alone, "--node", written("node", mine))
    assert "--dport" in named.out
    assert command("render", "-f", beside) == named


@pytest.mark.parametrize(
    ("arguments", "interfaces"),
    [
        ("--pod-interface cali+", ["cali+"]),
        ("--pod-interface lxc+ --pod-interface cni0", ["cni0", "lxc+"]),
        ("--node node --pod-interface cali+", ["cali+"]),
        ("--config config", ["weave"]),
        ("--config config --pod-interface cali+", ["cali+"]),
        (f"--pod-cidr {POD_CIDR} --pod-interface cali+", ["cali+"]),
    ],
)
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_pods_are_known_by_interface_where_that_is_asked_for(
    command: Command, arguments: str, interfaces: list[str], family: str
) -> None:
    written("config", {"podInterfaces": ["weave"]})
    written("node", node(POD_CIDR))
    result = command("render", "-f", DUAL_STACK, "--family", family, *arguments.split())
    assert (result.status, sorted(set(re.findall(r"-i (\S+)", result.out)))) == (0, interfaces)
    assert "-s " not in result.out


@pytest.mark.parametrize("arguments", [[], ["--node", "node"]])
def test_without_a_pod_cidr_nothing_is_rendered(command: Command, arguments: list[str]) -> None:
    written("node", node())
    result = command("render", "-f", written("web", WEB), *arguments)
    hint = "(give --pod-cidr CIDR, --pod-interface NAME, --node FILE, or podCIDRs in --config)"
    assert result == (2, "", f"ipvs-node-agent: render: no pod CIDR {hint}\n")


# 3. Bad input: reported, and the rest rendered


def asking(ip: str, name: str = "bad") -> dict[str, Any]:
    return service(name, ["10.231.0.2"], [ip])


HOSTILE_NAME = 'x" -j ACCEPT\n-A OUTPUT -j ACCEPT #'
HOSTILE_IP = "10.19.0.9 -j ACCEPT\n-F"


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"kind": "Pod\nx"}, "services: skipped an object: wanted a Service, got 'Pod\\nx'"),
        ("text", "services: skipped an object: wanted a Service, got 'str'"),
        ([WEB], "services: skipped an object: wanted a Service, got 'list'"),
        (
            {"kind": "List", "items": [{"items": [WEB]}]},
            "services: skipped an object: a Service's name cannot be None",
        ),
        (
            asking("10.19.0.9", HOSTILE_NAME),
            "services: skipped an object: a Service's name cannot be"
            " 'x\" -j ACCEPT\\n-A OUTPUT -j ACCEPT #'",
        ),
        (
            asking(HOSTILE_IP),
            "default/bad: status.loadBalancer.ingress[0] '10.19.0.9 -j ACCEPT\\n-F' is not an IP"
            " address",
        ),
        (asking("127.0.0.1"), "default/bad: 127.0.0.1 is refused: it is a loopback address"),
    ],
)
def test_what_cannot_be_used_is_reported_and_the_rest_is_rendered(
    command: Command, document: Any, complaint: str
) -> None:
    result = command.render("-f", written("services", document, WEB))
    assert (result.status, result.ips, result.complaint) == (0, ["10.19.0.1"], complaint)


NO_OBJECT = "(kubectl get services -A -o yaml prints some)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ""),
        ("# nothing\n---\n", ""),
        ("null\n", ""),
        ("{}", ""),
        ("[]", ""),
        ("just text\n", ""),
        ("No resources found\n", ""),
        ("NAMESPACE   NAME   TYPE\ndefault     web    LoadBalancer\n", ""),
        ('error: the server doesn\'t have a resource type "servces"\n', ""),
        (
            "Error from server (Forbidden): services is forbidden: no",
            ": it is not YAML in line 1: ",
        ),
        ("E1129 memcache.go:265] couldn't get current server API: x\n", ""),
        ("<html>\n<body>502</body>\n</html>\n", ""),
        ("\0", ": it is not YAML: "),
        ("items: []\n", ""),
        ("metadata: {name: web}\n", ""),
    ],
    ids=lambda text: text[:20],
)
def test_what_holds_no_object_is_an_error_and_gives_no_rules(
    command: Command, text: str, why: str
) -> None:
    """Into iptables-restore, no rules would take away those that are there."""
    Path("text").write_text(text)
    written("web", WEB)
    for files in ("-f text", "-f web -f text", "-f text -f web"):
        result = command.render(*files.split())
        assert (result.status, result.out) == (2, "")
        assert result.complaint.startswith(f"text: holds no Kubernetes object{why}")
        assert result.complaint.endswith(NO_OBJECT)


def test_an_error_of_the_api_servers_is_one_and_gives_no_rules(command: Command) -> None:
    status = {"kind": "Status", "apiVersion": "v1", "message": "services is forbidden\n\x1b[2J"}
    result = command.render("-f", written("web", WEB, status))
    why = "holds an error of the API server in place of objects"
    said = "'services is forbidden\\n\\x1b[2J'"
    assert result == (2, "", f"ipvs-node-agent: web: {why}: {said}\n")


def test_broken_yaml_is_said_with_its_line_and_what_came_before_is_rendered(
    command: Command,
) -> None:
    path = written("a\nb", WEB)
    lines = path.read_text().count("\n")
    path.write_text(path.read_text() + "---\nkind: [Service\n")
    result = command.render("-f", path)
    assert (result.status, result.ips) == (2, ["10.19.0.1"])
    assert result.complaint.startswith(f"a\\nb: is not YAML in line {lines + 3}: ")
    assert result.complaint.endswith(" (the objects before it are used)")


def test_nothing_of_labels_and_annotations_reaches_the_rules(command: Command) -> None:
    nasty = '" -j ACCEPT\nCOMMIT\n*filter\n-F\n'
    marked = {**WEB, "metadata": {**WEB["metadata"], "labels": {nasty: nasty}}}
    marked["metadata"]["annotations"] = {nasty: nasty}
    plain = command.render("-f", written("plain", WEB))
    assert command.render("-f", written("marked", marked)) == plain


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "missing: No such file or directory"),
        (".", ".: Is a directory"),
        ("missing/x\ny", "missing/x\\ny: No such file or directory"),
        ("latin1", "latin1: is not UTF-8 text"),
        ("-", "-: is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    given(monkeypatch, b"caf\xe9")
    Path("latin1").write_bytes(b"caf\xe9")
    result = command.render("-f", written("web", WEB), "-f", name)
    assert result == (2, "", f"ipvs-node-agent: {why}\n")


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ([], "holds no Kubernetes object (kubectl get node NAME -o yaml prints one)"),
        ([{"apiVersion": "v1", "kind": "List", "items": []}], "wanted one Node, got 0"),
        ([node(POD_CIDR), node(POD_CIDR)], "wanted one Node, got 2"),
        ([WEB], "wanted a Node, got 'Service' (kubectl get node NAME -o yaml prints one)"),
    ],
)
def test_the_nodes_file_holds_one_node(command: Command, documents: list[Any], why: str) -> None:
    result = command("render", "-f", "x", "--node", written("node", *documents))
    assert result == (2, "", f"ipvs-node-agent: node: {why}\n")


# 4. Standard input


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Gives `data` to the command as its standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_a_dash_is_standard_input_which_can_be_read_once(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, yaml.safe_dump(WEB).encode())
    twice = command("render", "--node", "-", "-f", "-")
    assert (twice.status, "standard input" in twice.complaint) == (2, True)
    result = command.render("-f", "-")
    assert (result.status, result.ips, result.err) == (0, ["10.19.0.1"], "")


@pytest.mark.parametrize(
    "document",
    [{"apiVersion": "meta.k8s.io/v1", "kind": "Table", "rows": []}, {"ERROR": "x", "kind": "foo"}],
    ids=["a table", "no version"],
)
def test_what_only_looks_like_an_object_gives_no_rules(
    command: Command, document: dict[str, Any]
) -> None:
    result = command("render", "-f", written("x", document), "--pod-cidr", POD_CIDR)
    assert (result.status, result.out) == (2, "")
    assert "holds no Kubernetes object" in result.err
