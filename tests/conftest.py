"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ipvs_node_agent.apiserver.kubeconfig import Reader, settings
from tests.support.examples import ENVIRONMENT, MAIN_ENVIRONMENT
from tests.support.netns import Namespace, namespaces
from tests.support.pki import Pki

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_elsewhere(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("once")
        return mark is not None and ENVIRONMENT not in ("", *(mark.args or (MAIN_ENVIRONMENT,)))

    # They take long, and no library makes them differ; see pyproject.toml.
    elsewhere = list(filter(is_elsewhere, items))
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
    """Reads kubeconfigs without a process of its own, which takes half a second each time.

    unit/apiserver/test_kubeconfig.py shows that both ways give the same.
    """
    monkeypatch.setattr(Reader, "_read_elsewhere", lambda reader: settings(reader.path))


@pytest.fixture
def node_pem(pki: Pki, tmp_path: Path) -> Path:
    """A node's certificate and key in one file, reached by a symlink, as the kubelet keeps them."""
    dated = tmp_path / "kubelet-client-2026-01-05-08-00-00.pem"
    pki.write_node_client(dated, "worker-1")
    link = tmp_path / "kubelet-client-current.pem"
    link.symlink_to(dated.name)
    return link
