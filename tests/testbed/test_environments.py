"""The environments are what their names say."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from tests.support.examples import ENVIRONMENT
from tests.support.places import REPOSITORY

LOWEST = re.findall(r'"([\w-]+)>=([\d.]+)"', (REPOSITORY / "setup.py").read_text())


@pytest.mark.once("debian11")
@pytest.mark.skipif(ENVIRONMENT != "debian11", reason="only Debian 11 has these versions")
@pytest.mark.parametrize(("library", "lowest"), LOWEST)
def test_debian11_has_the_lowest_versions_that_setup_takes(library: str, lowest: str) -> None:
    assert version(library).split(".")[: lowest.count(".") + 1] == lowest.split(".")
