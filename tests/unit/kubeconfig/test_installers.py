"""The kubeconfigs of other installers than kubeadm."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_node_agent.kubeconfig import installers
from ipvs_node_agent.kubeconfig.reader import MissingError, settings


@pytest.mark.parametrize("there", [True, False])
def test_one_that_is_there_is_named_where_the_configured_one_is_missing(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "kubelet.kubeconfig"
    monkeypatch.setattr(installers, "PATHS", (str(tmp_path / "missing"), str(other)))
    if there:
        other.touch()
    hint = f"set kubeconfig: {other}" if there else "is this node's kubelet set up?"
    with pytest.raises(MissingError) as caught:
        settings(tmp_path / "kubelet.conf")
    assert caught.value.hint == hint
