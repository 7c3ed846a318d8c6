"""Fixtures that unit tests of several packages share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipvs_node_agent.apiserver.client import Api
from tests.support.apiclient import TOKEN, NodeFiles
from tests.support.commandline import Command
from tests.support.kubeconfigs import URL
from tests.support.pki import Pki

if TYPE_CHECKING:
    from tests.support.apiserver import ApiServer


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Command lines on a machine without the default configuration file."""
    monkeypatch.setattr("ipvs_node_agent.config.file.DEFAULT_PATH", tmp_path / "absent.yaml")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Command(capsys)
    root.handlers[:], root.level = before


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
