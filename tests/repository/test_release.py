"""What is no release, and what a release says of itself; packaging/build/release-test makes one."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent import __version__
from tests.support.places import PACKAGING, REPOSITORY

RELEASE: dict[str, Any] = runpy.run_path(str(PACKAGING / "build" / "release"))
NOTES = "### Fixed\n\n- One fault.\n"
HEADING = f"## [{__version__}] - 2026-01-01"
AUTHOR = {
    f"GIT_{who}_{what}": "test@invalid"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


class Tree:
    """A repository with what a release looks at, before it builds anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("build/release", "build/check-versions"):
            self._copy(PACKAGING / name)
        self._copy(REPOSITORY / "ipvs_node_agent" / "__init__.py")
        self._copy(REPOSITORY / "debian" / "changelog")
        self.write(
            "CHANGELOG.md", f"# Changelog\n\n{HEADING}\n\n{NOTES}\n## [0.0.1] - 2025-01-01\n\n- x\n"
        )
        # It stands for all that is built.
        self.write("packaging/build/build-deb", "#!/bin/sh\necho it builds >&2\nexit 1\n")
        (root / "packaging/build/build-deb").chmod(0o755)
        self.git("init", "--quiet")

    def _copy(self, path: Path) -> None:
        place = self.root / path.relative_to(REPOSITORY)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new, 1))

    def git(self, *arguments: str) -> None:
        command = ["git", *arguments]
        subprocess.run(command, cwd=self.root, check=True, env={**os.environ, **AUTHOR}, timeout=60)

    def commit(self, tag: str = f"v{__version__}") -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A release")
        if tag:
            self.git("tag", tag)

    def release(self, key: str = "") -> str:
        """What it says when it makes none."""
        command = [self.root / "packaging" / "build" / "release", self.root / "made"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KEY": key},
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("release: ")
        assert not (self.root / "made").exists()
        return done.stderr.removeprefix("release: ")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for tool, package in (("git", "git"), ("dpkg-parsechangelog", "dpkg-dev")):
        if not shutil.which(tool):
            pytest.skip(f"the package {package} is not installed")
    return Tree(tmp_path)


def test_a_clean_tagged_commit_is_built(tree: Tree) -> None:
    tree.commit()
    assert tree.release() == "build-deb failed: it builds\n"


DIFFER = "check-versions failed: check-versions: versions differ"
REFUSED: list[tuple[str, Callable[[Tree], object], str]] = [
    (
        "another version in the code",
        lambda tree: tree.replace("ipvs_node_agent/__init__.py", __version__, "9.9.9"),
        f"{DIFFER}: 9.9.9 in ipvs_node_agent/__init__.py, .*",
    ),
    (
        "another version of the package",
        lambda tree: tree.replace("debian/changelog", __version__, "9.9.9"),
        f"{DIFFER}: .*, 9.9.9 in debian/changelog",
    ),
    (
        "another version in the changelog",
        lambda tree: tree.replace("CHANGELOG.md", __version__, "9.9.9"),
        f"{DIFFER}: .*, 9.9.9 in CHANGELOG.md, .*",
    ),
    (
        "a package with a suffix",
        lambda tree: tree.replace("debian/changelog", f"({__version__})", f"({__version__}+test1)"),
        rf"debian/changelog says {__version__}\+test1 for unstable: wanted {__version__}",
    ),
    (
        "an unreleased package",
        lambda tree: tree.replace("debian/changelog", ") unstable", ") UNRELEASED"),
        f"debian/changelog says {__version__} for UNRELEASED: wanted {__version__}",
    ),
    (
        "no date",
        lambda tree: tree.replace("CHANGELOG.md", "2026-01-01", "unreleased"),
        rf'CHANGELOG.md says "## \[{__version__}\] - unreleased": wanted "## .* - YYYY-MM-DD"',
    ),
    (
        "an empty changelog",
        lambda tree: tree.write("CHANGELOG.md", f"# Changelog\n\n{HEADING}\n"),
        f"the section of {__version__} in CHANGELOG.md is empty",
    ),
    (
        "a changelog with headings alone, and an older section",
        lambda tree: tree.replace("CHANGELOG.md", "- One fault.", ""),
        f"the section of {__version__} in CHANGELOG.md is empty",
    ),
]


@pytest.mark.parametrize(
    ("change", "why"), [each[1:] for each in REFUSED], ids=[e[0] for e in REFUSED]
)
def test_what_does_not_agree_is_refused(
    tree: Tree, change: Callable[[Tree], object], why: str
) -> None:
    change(tree)
    tree.commit()
    assert re.fullmatch(why, tree.release().rstrip("\n"))


@pytest.mark.parametrize(("tag", "found"), [("", "none"), ("v9.9.9", "v9.9.9")])
def test_a_commit_without_its_tag_is_refused(tree: Tree, tag: str, found: str) -> None:
    tree.commit(tag)
    wanted = f"this commit has to have the tag v{__version__}, and has {found}\n"
    assert tree.release() == wanted
    tree.git("tag", f"v{__version__}")
    tree.write("later", "")
    tree.commit("")
    assert tree.release() == wanted.replace(found, "none")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tree: tree.write("debian/stranger", ""), "debian/stranger"),
        (lambda tree: tree.replace("CHANGELOG.md", "One", "Two"), "CHANGELOG.md"),
        (lambda tree: (tree.root / "debian" / "changelog").unlink(), "debian/changelog"),
    ],
    ids=["a new file", "a change", "a file that is gone"],
)
@pytest.mark.parametrize("staged", [True, False], ids=["staged", "not staged"])
def test_a_dirty_tree_is_refused(
    tree: Tree, change: Callable[[Tree], object], name: str, staged: bool
) -> None:
    # Whatever somebody would rather not be told.
    tree.git("config", "status.showUntrackedFiles", "no")
    tree.commit()
    change(tree)
    if staged:
        tree.git("add", "--all")
    assert tree.release() == f"the tree is dirty: {name}\n"


def test_a_key_that_is_not_there_is_refused_before_anything_is_built(
    tree: Tree, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("gpg"):
        pytest.skip("the package gnupg is not installed")
    monkeypatch.setenv("GNUPGHOME", str(tmp_path_factory.mktemp("gnupg")))
    tree.commit()
    assert tree.release("absent@invalid").startswith("gpg failed: ")


def test_the_notes_are_the_section_of_the_version() -> None:
    sections = (
        "## [9.9.9] - 2027-01-01\n\n- new\n",
        f"{HEADING}\n\n{NOTES}",
        "## [0.0.1]\n\n- old\n",
    )
    changelog = "\n".join(("# Changelog\n", *sections))
    assert RELEASE["section"](changelog, __version__) == NOTES


def test_the_sbom_has_what_deb_and_wheel_need() -> None:
    depends = "iptables (>= 1.8.7), python3 (>= 3.9) | python3.9, python3:any"
    requires = ["PyYAML>=5.3", "prometheus_client (>=0.9)", 'sh; python_version < "4"']
    release = RELEASE["Release"]("1.2.3", NOTES, 1767225600)
    document = json.loads(RELEASE["sbom"](release, depends, requires))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"
    assert document["metadata"]["component"]["version"] == "1.2.3"
    found = {each["purl"]: each["properties"][0]["value"] for each in document["components"]}
    assert found == {
        "pkg:deb/debian/iptables": ">= 1.8.7",
        "pkg:deb/debian/python3": ">= 3.9",
        "pkg:deb/debian/python3.9": "any version",
        "pkg:pypi/prometheus-client": ">=0.9",
        "pkg:pypi/pyyaml": ">=5.3",
        "pkg:pypi/sh": "any version",
    }
    assert document["dependencies"][0]["dependsOn"] == sorted(found)


def test_an_sdist_does_not_tell_when_and_by_whom_it_was_made() -> None:
    def sdist(names: str, mtime: int, owner: str, mode: int) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.mtime, member.uname, member.uid, member.mode = mtime, owner, mtime, mode
                member.size = 1
                file.addfile(member, io.BytesIO(name.encode()))
        return packed.getvalue()

    made = [
        RELEASE["same_each_time"](sdist(*each), 1767225600)
        for each in (("ab", 1, "root", 0o644), ("ba", 2, "me", 0o600))
    ]
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as file:
        assert {(each.name, each.mtime, each.mode) for each in file} == {
            ("a", 1767225600, 0o644),
            ("b", 1767225600, 0o644),
        }


def test_the_sdist_takes_all_that_is_here() -> None:
    words = (REPOSITORY / "MANIFEST.in").read_text().split()
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    # setup.py takes the program; the others are git's, and what a build makes.
    besides = {"ipvs_node_agent", ".git", ".pybuild", "PKG-INFO", "setup.cfg"}
    besides |= {name.strip("/") for name in ignored}
    there = {path.name for path in REPOSITORY.iterdir() if path.suffix != ".egg-info"}
    assert there - besides <= set(words)
    assert {"tests", ".gitignore"} <= there
