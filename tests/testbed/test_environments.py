"""The environments are what their names say."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import version

import pytest

from tests.environments.__main__ import RECIPES
from tests.support.examples import ENVIRONMENT
from tests.support.places import REPOSITORY

LOWEST = re.findall(r'"([\w-]+)>=([\d.]+)"', (REPOSITORY / "setup.py").read_text())


@pytest.mark.once("debian11")
@pytest.mark.skipif(ENVIRONMENT != "debian11", reason="only Debian 11 has these versions")
@pytest.mark.parametrize(("library", "lowest"), LOWEST)
def test_debian11_has_the_lowest_versions_that_setup_takes(library: str, lowest: str) -> None:
    assert version(library).split(".")[: lowest.count(".") + 1] == lowest.split(".")


UBUNTU = [name for name in RECIPES if name.startswith("ubuntu")]


@pytest.mark.once(*UBUNTU)
@pytest.mark.skipif(ENVIRONMENT not in UBUNTU, reason="only these have Ubuntu's versions")
def test_an_ubuntu_has_the_python_and_the_libraries_of_its_recipe() -> None:
    recipe = RECIPES[ENVIRONMENT]
    assert platform.python_version().startswith(f"{recipe.python}.")
    pinned = dict(re.findall(r"([\w-]+)==([\d.]+)", recipe.pip))
    assert {library for library, _ in LOWEST} == pinned.keys()
    assert {library: version(library) for library in pinned} == pinned


@pytest.mark.once("ubuntu2204")
@pytest.mark.skipif(ENVIRONMENT != "ubuntu2204", reason="only this has another Debian's iptables")
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_ubuntu2204_has_its_iptables(backend: str) -> None:
    said = subprocess.check_output([f"iptables-{backend}", "--version"], text=True)
    assert said.startswith("iptables v1.8.7 ")
