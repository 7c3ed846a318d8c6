"""What the documents show is what happens: each command in them is run, here or by CI."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ipvs_node_agent import __version__
from ipvs_node_agent.config import file
from ipvs_node_agent.config.file import parse
from ipvs_node_agent.config.settings import DEFAULTS
from tests.node import shown
from tests.support.documents import (
    FAQ,
    MIGRATION,
    OPERATIONS,
    README,
    STATUS_PICTURE,
    SUPPORT,
    Document,
    Example,
    first_code,
    lines_in,
)
from tests.support.places import REPOSITORY, TESTS, modules
from tests.support.predecessors import CONTROLLER, LABEL, MANAGER

DOCUMENTS = (README, OPERATIONS, FAQ, MIGRATION, SUPPORT)
# Where the commands are run that need root, a cluster, or a machine of their own.
PLAY = "ansible-playbook -i hosts -e ipvs_node_agent_package=$PWD/ipvs-node-agent.deb roll-out.yml"
ELSEWHERE = {
    "make demo": ".ci/run",
    "make deb": ".ci/run",
    "ipvs-node-agent diff": "tests/kernel/test_transitions.py",
    "ipvs-node-agent status": "tests/kernel/test_status.py",
    "ipvs-node-agent check": "tests/kernel/test_check.py",
    "ipvs-node-agent explain 10.19.20.201:80": "tests/kernel/test_explain.py",
    "ipvs-node-agent cleanup": "tests/kernel/test_transitions.py",
    "apt install ./ipvs-node-agent_*.deb": "tests/node/test_1_install.py",
    PLAY: "tests/node/test_8_role.py",
    "systemctl mask --runtime ipvs-node-agent": "tests/node/test_8_removal.py",
    "systemctl unmask --runtime ipvs-node-agent": "tests/node/test_8_removal.py",
    "systemctl enable ipvs-node-agent": "tests/node/test_8_removal.py",
    "systemctl restart ipvs-node-agent": "tests/node/test_8_removal.py",
}
# Scripts, by the document and their names.
SCRIPTS = {
    ("docs/operations.md", "roll-out"): "tests/repository/test_operations_document.py",
    ("docs/operations.md", "back-out"): "tests/repository/test_operations_document.py",
    ("docs/migration.md", "remove-nat-chains"): "tests/kernel/test_migration.py",
}
# For the cluster of a program that is not ours; nothing here runs it, so that only its names are
# looked at.
_DELETE = "kubectl -n kube-system delete"
FOR_PREDECESSORS = [
    command
    for program in (MANAGER, CONTROLLER)
    for command in (
        f"{_DELETE} daemonset {program} --cascade=orphan",
        f"{_DELETE} pod -l {LABEL}={program} --field-selector spec.nodeName=NODE",
        f"{_DELETE} serviceaccount {program}",
        f"kubectl delete clusterrolebinding {program}-rolebinding",
        f"kubectl delete clusterrole {program}-role",
    )
] + [f"{_DELETE} daemonset {MANAGER}"]


EXAMPLES = [example for document in DOCUMENTS for example in document.examples]


def is_run_here(example: Example) -> bool:
    """Whether it is a command of ours that needs nothing but a file."""
    ours = example.command.startswith("ipvs-node-agent ")
    return ours and bool(example.output) and example.command not in ELSEWHERE


def test_every_command_of_a_document_is_run_somewhere_and_no_others_are_listed() -> None:
    for document in DOCUMENTS:
        prompts = re.findall(r"^ *[#$] \S.*$", "".join(document.consoles), re.MULTILINE)
        assert len(document.examples) == len(prompts) >= document.text.count("```console")
    not_here = {example.command for example in EXAMPLES if not is_run_here(example)}
    assert not_here == {*ELSEWHERE, *FOR_PREDECESSORS}
    assert {example.command for example in MIGRATION.examples} >= {*FOR_PREDECESSORS}
    assert set(SCRIPTS) == {(d.name, script) for d in DOCUMENTS for script in d.scripts}


@pytest.mark.parametrize(("command", "place"), ELSEWHERE.items())
def test_the_place_that_runs_a_command_names_it(command: str, place: str) -> None:
    text = (REPOSITORY / place).read_text()
    if place.startswith("tests/node/"):
        # There the documents are read for it.
        (name,) = (name for name, value in vars(shown).items() if value == command)
        assert re.search(rf"\b{name}\b", text)
        return
    for word in command.split()[-1:]:
        assert word in text


@pytest.mark.parametrize(("script", "place"), SCRIPTS.items(), ids=str)
def test_the_place_that_runs_a_script_names_it(script: tuple[str, str], place: str) -> None:
    assert f'"{script[1]}"' in (REPOSITORY / place).read_text()


@pytest.mark.parametrize(
    ("command", "output"),
    [example for example in EXAMPLES if is_run_here(example)],
    ids=lambda value: value.split("\n")[0][:60],
)
def test_a_command_prints_what_is_shown(command: str, output: str) -> None:
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_and_chapter_that_a_document_points_to_is_there(document: Document) -> None:
    folder = (REPOSITORY / document.name).parent
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.text)
    assert links
    for link, anchor in links:
        path = folder / link if link else REPOSITORY / document.name
        assert path.exists()
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in {*anchors, *re.findall(r'<a id="([^"]+)">', path.read_text())}
    named = re.findall(r"`((?:tests|packaging|docs)/[\w./-]+)`", document.text)
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_a_stranger_has_read_the_readme_in_five_minutes() -> None:
    assert len(README.text.split()) <= 900
    assert len(README.table("Trouble")) == 5


@pytest.mark.parametrize("row", README.table("Trouble"), ids=lambda row: first_code(row[0]))
def test_what_the_readme_lets_the_agent_say_it_says(row: list[str]) -> None:
    """In its source, in what test_operations_document.py holds to that, or in a test."""
    said = first_code(row[0])
    words = max(said.split("..."), key=len).strip(" :")
    messages = [
        message
        for kind in ("warning", "error", "reason")
        for entry in OPERATIONS.entries(kind)
        for message in entry.codes
        if len(message) >= 12
    ]
    forms = [".*".join(map(re.escape, message.split("..."))) for message in messages]
    places = [*modules().values(), *TESTS.glob("kernel/*.py")]
    assert any(words in path.read_text() for path in places) or any(
        re.search(form, said) for form in forms
    )


def test_the_picture_of_status_is_what_the_documents_show() -> None:
    """Which tests/kernel/test_status.py holds to what it prints."""

    def timeless(line: str) -> str:
        return re.sub(r"since \S+ \S+ UTC \(.* ago\)", "since WHEN", line)

    said = OPERATIONS.printed_by("ipvs-node-agent status").splitlines()
    shown = ["# ipvs-node-agent status", *filter(None, said)]
    drawn = [timeless(line) for line in lines_in(STATUS_PICTURE)]
    assert drawn == [timeless(line) for line in shown], "python3 -m tests.picture draws it anew"


def test_the_shown_configuration_is_the_default_one() -> None:
    text = (REPOSITORY / "packaging" / "config.yaml").read_text()
    # Prose has one space behind its #; a key has none, or its indentation of two.
    keys = re.sub(r"^#(?=\S|  )", "", text, flags=re.MULTILINE)
    assert parse(text, "config.yaml") == DEFAULTS
    assert parse(keys, "config.yaml") == DEFAULTS
    for key in all_keys():
        assert re.search(rf"^\s*{key}:", keys, re.MULTILINE), key


def all_keys() -> list[str]:
    shown = vars(file)["_KEYS"]
    return [*shown, "prerouting", "output", "markMasquerade", "servicesPerChain", "externalIPs"]


def test_the_changelog_has_this_version_on_top() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\S+)\]", changelog, re.MULTILINE)[0] == __version__
