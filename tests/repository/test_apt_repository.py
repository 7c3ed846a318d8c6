"""What packaging/apt-repository leaves; tests/packaging/repository has apt itself look at it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import PACKAGING

CONTROL = """\
Package: ipvs-node-agent
Version: {version}
Architecture: all
Section: net
Priority: optional
Maintainer: test <test@invalid>
Description: nothing
"""


class Repository:
    """A folder that packages are taken into, and a key ring."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "apt"
        (root / "gnupg").mkdir(mode=0o700)
        self._environment = {**os.environ, "GNUPGHOME": str(root / "gnupg")}

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            timeout=60,
        )

    def run(self, *command: str | Path) -> str:
        """What a command prints that succeeds."""
        done = self._run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def gpg(self, *arguments: str) -> str:
        return self.run("gpg", "--batch", *arguments)

    def key(self, who: str) -> str:
        """A new key's fingerprint."""
        address = f"{who}@invalid"
        self.gpg("--passphrase", "", "--quick-generate-key", address, "ed25519", "sign", "never")
        listed = self.gpg("--with-colons", "--list-secret-keys", address)
        found = re.search("^fpr:+([0-9A-F]+):", listed, re.MULTILINE)
        assert found is not None
        return found[1]

    def deb(self, version: str) -> Path:
        tree = self.root / version / "DEBIAN"
        tree.mkdir(parents=True)
        (tree / "control").write_text(CONTROL.format(version=version))
        file = self.root / f"{version}.deb"
        self.run("dpkg-deb", "--root-owner-group", "--build", tree.parent, file)
        return file

    def take(self, key: str, *debs: Path) -> None:
        done = self._run(PACKAGING / "apt-repository", self.folder, key, *debs)
        said = [each for each in done.stderr.splitlines() if not each.startswith("Skipping inclu")]
        assert (done.returncode, said) == (0, [])

    def refuse(self, key: str, *debs: Path) -> str:
        """The last line of what it says where it fails."""
        done = self._run(PACKAGING / "apt-repository", self.folder, key, *debs)
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    @property
    def offered(self) -> list[str]:
        """The versions that an index has, and that were signed with the key beside it."""
        release = self.folder / "dists" / "stable" / "InRelease"
        ring = self.root / "ring.gpg"
        ring.unlink(missing_ok=True)
        key = self.folder / "ipvs-node-agent.asc"
        self.gpg("--dearmor", "--output", str(ring), str(key))
        self.run("gpgv", "--keyring", ring, release)
        index = self.folder / "dists/stable/main/binary-amd64/Packages"
        return re.findall("^Version: (.+)$", index.read_text(), re.MULTILINE)

    @property
    def pool(self) -> set[str]:
        """The versions whose files are there."""
        return {path.name.split("_")[1] for path in self.folder.glob("pool/**/*.deb")}


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    for tool, package in (("reprepro", "reprepro"), ("gpg", "gnupg"), ("dpkg-deb", "dpkg")):
        if not shutil.which(tool):
            pytest.skip(f"the package {package} is not installed")
    # A socket of the agent's has a path of 107 characters at most.
    made = Repository(tmp_path_factory.mktemp("apt"))
    yield made
    made.run("gpgconf", "--kill", "all")


def test_a_signature_that_fails_is_made_up_for_by_the_next_run(repository: Repository) -> None:
    key, old, new = repository.key("right"), repository.deb("1.0"), repository.deb("2.0")
    repository.take(key, old)
    repository.gpg("--quick-set-expire", key, "seconds=1")
    time.sleep(2)
    for _ in range(2):
        said = repository.refuse(key, new)
        assert said.startswith("apt-repository: it cannot be signed, and nodes still see")
        assert repository.offered == ["1.0"]
        assert "1.0" in repository.pool
    repository.gpg("--quick-set-expire", key, "0")
    repository.take(key, new)
    assert repository.offered == ["2.0"]


def test_a_new_key_signs_what_is_already_there(repository: Repository) -> None:
    deb = repository.deb("1.0")
    repository.take(repository.key("old"), deb)
    repository.take(repository.key("new"), deb)
    assert "new@invalid" in repository.gpg(
        "--show-keys", str(repository.folder / "ipvs-node-agent.asc")
    )
    assert repository.offered == ["1.0"]


def test_an_older_package_is_not_taken(repository: Repository) -> None:
    key, old, new = repository.key("right"), repository.deb("1.0"), repository.deb("2.0")
    repository.take(key, new)
    said = repository.refuse(key, old)
    assert said == "apt-repository: it has ipvs-node-agent 2.0, and does not take 1.0"
    assert repository.offered == ["2.0"]


def test_the_version_before_can_still_be_fetched_until_the_next_run(repository: Repository) -> None:
    key = repository.key("right")
    for version, kept in (("1.0", {"1.0"}), ("2.0", {"1.0", "2.0"}), ("3.0", {"2.0", "3.0"})):
        repository.take(key, repository.deb(version))
        assert repository.offered == [version]
        assert repository.pool == kept


def test_a_web_server_can_read_it_whatever_the_umask(repository: Repository) -> None:
    key, deb = repository.key("right"), repository.deb("1.0")
    before = os.umask(0o077)
    try:
        repository.take(key, deb)
    finally:
        os.umask(before)
    assert [p for p in repository.folder.rglob("*") if not p.stat().st_mode & 0o004] == []
