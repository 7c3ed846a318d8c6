"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.netns import Namespace, namespaces

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace."""
    with namespaces("node") as (made,):
        yield made
