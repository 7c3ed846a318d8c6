"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from ipvs_node_agent.kubeconfig.reader import Reader, settings
from tests.environments.__main__ import EVERYWHERE, RECIPES, SUPPORTED, TESTED
from tests.support.examples import ENVIRONMENT, MAIN_ENVIRONMENT
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki
from tests.support.places import TESTS

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


# Both ends of the range of Pythons.
_ENDS = ("newest", "oldest")
# What talks to libraries runs with Debian 11's as well. `oldest` has that release's other tools.
_LIBRARIES = (*EVERYWHERE, "debian11")
# What runs everywhere runs here for `make support`.
_SUPPORT = ENVIRONMENT in SUPPORTED and (
    ENVIRONMENT not in TESTED or "IPVS_NODE_AGENT_SUPPORT" in os.environ
)
# Where tests run that say nothing themselves, by how their paths in this folder begin; those of
# other paths run everywhere. Documents, dashboard and alerts want promtool, which Debian has; what
# is pure depends on Python alone.
_PLACES = {
    "repository/": ("debian12",),
    "testbed/": ("debian13",),
    "simulation/": _ENDS,
    "unit/model/": _ENDS,
    "unit/nat/": _ENDS,
    "unit/rules/": _ENDS,
    "unit/sync/": _ENDS,
    "unit/test_properties.py": _ENDS,
    "unit/apiserver/": _LIBRARIES,
    "unit/config/": _LIBRARIES,
    "unit/iptables/": _LIBRARIES,
    "unit/kubeconfig/": _LIBRARIES,
    "unit/observe/": _LIBRARIES,
}


def _places(item: pytest.Item) -> Sequence[str]:
    """The environments that a test runs in."""
    mark = item.get_closest_marker("once")
    if mark is not None:
        return mark.args or (MAIN_ENVIRONMENT,)
    path = item.path.relative_to(TESTS).as_posix()
    return next((_PLACES[start] for start in _PLACES if path.startswith(start)), EVERYWHERE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = []
    for item in items:
        places = _places(item)
        # A name that no environment has would have the test run nowhere.
        if not set(places) <= RECIPES.keys():
            raise pytest.UsageError(f"{item.nodeid} is for unknown environments: {places}")
        here = ENVIRONMENT in ("", *places) or (_SUPPORT and set(EVERYWHERE) <= set(places))
        if not here:
            elsewhere.append(item)
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace."""
    with namespaces("node") as (made,):
        yield made


@pytest.fixture(scope="session")
def pki() -> Pki:
    """A cluster's certificate authority."""
    return Pki()


@pytest.fixture
def kubeconfig_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads kubeconfigs without a process of its own, which takes a while each time.

    unit/kubeconfig/test_reader.py shows that both ways give the same. The first import compiles the
    package, which may take longer than a test waits for an answer: it is not made while one waits.
    """
    importlib.import_module("kubernetes.config")
    monkeypatch.setattr(Reader, "_read_elsewhere", lambda reader: settings(reader.path))


@pytest.fixture
def node_pem(pki: Pki, tmp_path: Path) -> Path:
    """A node's certificate and key in one file, reached by a symlink, as the kubelet keeps them."""
    dated = tmp_path / "kubelet-client-2026-01-05-08-00-00.pem"
    pki.write_node_client(dated, "worker-1")
    link = tmp_path / "kubelet-client-current.pem"
    link.symlink_to(dated.name)
    return link
