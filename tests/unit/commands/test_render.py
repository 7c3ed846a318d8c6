"""Kubernetes objects in files, in every form that kubectl prints and people write."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ipvs_node_agent.commands.render import read_objects

A, B = {"kind": "Service", "metadata": {"name": "a"}}, {"kind": "Service", "metadata": None}


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
