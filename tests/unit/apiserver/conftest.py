"""What tests of credentials have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipvs_node_agent.apiserver.client import Api
from tests.support.apiclient import TOKEN, NodeFiles
from tests.support.kubeconfigs import URL
from tests.support.pki import Pki

if TYPE_CHECKING:
    from tests.support.apiserver import ApiServer


@pytest.fixture
def path(pki: Pki, node_pem: Path, tmp_path: Path) -> Path:
    """A kubeconfig as kubeadm writes it."""
    written = tmp_path / "kubelet.conf"
    pki.write_kubeconfig(written, URL, node_pem)
    return written


@pytest.fixture
def server(pki: Pki) -> Iterator[ApiServer]:
    # Not every test here needs it, nor has what it is made with when the package is built.
    from tests.support.apiserver import ApiServer

    with ApiServer(pki=pki, tokens={TOKEN: "system:node:worker-1"}) as running:
        yield running


@pytest.fixture
def files(tmp_path: Path, pki: Pki, server: ApiServer) -> NodeFiles:
    return NodeFiles(tmp_path, pki, server.url)


@pytest.fixture
def api(files: NodeFiles) -> Api:
    return Api(files.kubeconfig)
