"""What docs/support.md takes for a proof is there, and of the versions that it says."""

from __future__ import annotations

import re

import pytest

from tests.cluster import binaries
from tests.environments.__main__ import RECIPES, SUPPORTED, TESTED
from tests.support.documents import README, SUPPORT
from tests.support.places import REPOSITORY

VERSIONS = {row[0].strip("`"): row[1:] for row in SUPPORT.table("Versions")}
LIBRARIES = ("kubernetes", "sh", "PyYAML", "prometheus-client", "cryptography", "urllib3")


def test_every_environment_is_there_with_its_versions() -> None:
    assert VERSIONS.keys() == RECIPES.keys() == {*TESTED, *SUPPORTED}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("ubuntu")])
def test_an_ubuntus_versions_are_those_of_its_recipe(name: str) -> None:
    python, _, *libraries = VERSIONS[name]
    pinned = dict(re.findall(r"([\w-]+)==([\d.]+)", RECIPES[name].pip))
    assert python == RECIPES[name].python
    assert libraries == [pinned[library] for library in LIBRARIES]


def test_every_command_that_proves_something_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in set(re.findall(r"`make ([\w-]+)`", SUPPORT.text)):
        assert re.search(rf"^{command}: ", makefile, re.MULTILINE), command


def test_every_cell_names_a_proof_or_says_that_there_is_none() -> None:
    for title in ("Distributions", "Kubernetes"):
        for _, *cells in SUPPORT.table(title):
            assert [cell for cell in cells if "`" not in cell and "not tested" not in cell] == []


def test_the_versions_of_kubernetes_are_those_that_are_built() -> None:
    tested = [row[1] for row in SUPPORT.table("Kubernetes") if "`" in row[1]]
    built = [binaries.version(name).removeprefix("v") for name in binaries.NAMES]
    assert tested == [f"`make cluster-test` ({version})" for version in built]
    minors = ", ".join(sorted(version.rpartition(".")[0] for version in built))
    assert ["API server", f"Kubernetes {minors}", "others"] in README.table("Where it runs")


def test_the_record_has_every_environment_of_make_support() -> None:
    assert [row[0] for row in SUPPORT.table("Record")] == [f"`{name}`" for name in SUPPORTED]


def whole(environment: str) -> bool:
    """Whether its record says when all of it passed, which `make test` says of the others."""
    if environment not in SUPPORTED:
        return True
    [row] = [row[1:] for row in SUPPORT.table("Record") if row[0] == f"`{environment}`"]
    date, tests = row
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", date) and re.fullmatch(r"\d+ passed", tests))


def test_what_is_proved_has_a_record_without_a_failure() -> None:
    cells = [cell for _, *row in SUPPORT.table("Distributions") for cell in row]
    claims = [cell for cell in cells if "not tested" not in cell]
    for name in SUPPORTED:
        assert whole(name) or not any(f"`{name}`" in claim for claim in claims), name


def test_readme_calls_proved_what_the_table_does() -> None:
    [[_, proved, _]] = [row for row in README.table("Where it runs") if row[0].startswith("Python")]
    named = [
        f"{kind} {version}".strip()
        for kind, _, versions in (each.partition(" ") for each in proved.split("; "))
        for version in versions.split(", ")
    ]
    libraries = {row[0]: row[1] for row in SUPPORT.table("Distributions")}
    assert named == [*(each for each in libraries if "not tested" not in libraries[each]), "newest"]
    assert all(whole(each.lower().replace(" ", "").replace(".", "")) for each in named)
