"""What is no release, and what a release says of itself; packaging/build/release-test makes one."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
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
BUILDS = "build-deb failed: it builds\n"
NOTES = "### Fixed\n\n- One fault.\n"
HEADING = f"## [{__version__}] - 2026-01-01"
AUTHOR = {
    f"GIT_{who}_{what}": "test@invalid"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}
NO_CONFIGURATION = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


def environment(**more: str) -> dict[str, str]:
    """That of the caller, without what has git look elsewhere or ask somebody."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**own, **AUTHOR, **NO_CONFIGURATION, **more}


class Tree:
    """A repository with what a release looks at, before it builds anything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("build/release", "build/check-versions"):
            self._copy(PACKAGING / name)
        self._copy(REPOSITORY / "ipvs_node_agent" / "__init__.py")
        for name in ("changelog", "control"):
            self._copy(REPOSITORY / "debian" / name)
        self.maintained_by("test <test@invalid>")
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

    def maintained_by(self, who: str) -> None:
        control = (self.root / "debian" / "control").read_text()
        changed = re.sub("^Maintainer: .+$", f"Maintainer: {who}", control, flags=re.MULTILINE)
        self.write("debian/control", changed)

    def git(self, *arguments: str) -> None:
        command = ["git", *arguments]
        subprocess.run(command, cwd=self.root, check=True, env=environment(), timeout=60)

    def commit(self, tag: str = f"v{__version__}") -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A release")
        if tag:
            self.git("tag", tag)

    def release(self, key: str = "", **variables: str) -> str:
        """What it says when it makes none."""
        command = [self.root / "packaging" / "build" / "release", self.root / "made"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment(KEY=key, **variables),
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
    assert tree.release() == BUILDS


@pytest.mark.parametrize("how", ["--assume-unchanged", "--skip-worktree"])
def test_the_commit_is_built_where_git_overlooks_a_change(tree: Tree, how: str) -> None:
    tree.commit()
    tree.git("update-index", how, "packaging/build/build-deb", "CHANGELOG.md")
    tree.replace("packaging/build/build-deb", "it builds", "something else")
    (tree.root / "CHANGELOG.md").unlink()
    assert tree.release() == BUILDS


def test_the_commit_is_built_where_git_overlooks_modes(tree: Tree) -> None:
    tree.commit()
    tree.git("config", "core.fileMode", "false")
    (tree.root / "packaging/build/build-deb").chmod(0o644)
    assert tree.release() == BUILDS


def test_the_commit_is_built_whatever_is_checked_out_meanwhile(tree: Tree) -> None:
    build, root = "packaging/build/build-deb", tree.root
    # The first that runs out of the commit is check-versions.
    check = "packaging/build/check-versions"
    another = f"echo '#!/bin/sh' >{root / build}; git -C {root} commit -qam later"
    tree.write(check, f"#!/bin/sh\n{another}\n")
    tree.commit()
    assert tree.release() == BUILDS
    assert "it builds" not in (root / build).read_text()


def test_what_is_missing_is_one_line(tree: Tree) -> None:
    tree.commit()
    tools = tree.root.with_name("tools")
    tools.mkdir()
    for name in ("git", "tar"):
        (tools / name).symlink_to(str(shutil.which(name)))
    said = tree.release(PATH=str(tools))
    assert said == "dpkg-parsechangelog is missing (make release installs it)\n"


def test_make_hands_a_key_on_as_it_is() -> None:
    if not shutil.which("make"):
        pytest.skip("the package make is not installed")
    key = "Ann B <ann@invalid>; $HOME"
    command = ["make", "--no-print-directory", "--dry-run", "release"]
    command.append(f"KEY={key.replace('$', '$$')}")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout.splitlines()[-1])[0] == f"KEY={key}"


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
        "the placeholder for who maintains it",
        lambda tree: tree.maintained_by("nobody <nobody@packages.example>"),
        "Maintainer in debian/control is a placeholder: nobody <nobody@packages.example>",
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


def test_the_packages_own_test_leaves_a_release_where_it_is(tmp_path: Path) -> None:
    script = (PACKAGING / "build" / "deb-test").read_text()
    [clears] = re.findall("^rm -f dist/.+$", script, re.MULTILINE)
    release = tmp_path / "dist" / "release"
    release.mkdir(parents=True)
    for name in ("old.deb", "old.changes", "old.buildinfo", "release/kept.deb"):
        (tmp_path / "dist" / name).touch()
    subprocess.run(["bash", "-c", clears], cwd=tmp_path, check=True, timeout=60)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["kept.deb"]


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
