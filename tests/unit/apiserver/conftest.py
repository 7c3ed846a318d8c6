"""What tests of credentials have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kubeconfigs import URL
from tests.support.pki import Pki


@pytest.fixture
def path(pki: Pki, node_pem: Path, tmp_path: Path) -> Path:
    """A kubeconfig as kubeadm writes it."""
    written = tmp_path / "kubelet.conf"
    pki.write_kubeconfig(written, URL, node_pem)
    return written
