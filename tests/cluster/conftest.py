"""Fixtures: one control plane for all tests of a process, one node for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bed import Worker, worker
from tests.cluster.controlplane import ControlPlane, KubeApiServer, control_plane
from tests.cluster.rest import Client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that all the rest runs beside it."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The folder with the programs; without it nothing here can be proved, so that is a failure."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.fail("KUBEBUILDER_ASSETS names no folder; `make cluster-test` sees to that")
    return Path(assets)


@pytest.fixture(scope="session")
def plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with one API server."""
    with control_plane(binaries, tmp_path_factory.mktemp("control")) as made:
        yield made


@pytest.fixture
def admin(plane: ControlPlane) -> Client:
    """All rights."""
    return plane.servers[0].client()


@pytest.fixture
def node(plane: ControlPlane, tmp_path: Path) -> Iterator[Worker]:
    """A node of the cluster; the agent is down."""
    with worker(plane, tmp_path) as made:
        yield made


@pytest.fixture
def second(plane: ControlPlane) -> Iterator[KubeApiServer]:
    """Another API server of the cluster, not yet started."""
    with plane.another() as server:
        yield server
