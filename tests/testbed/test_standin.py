"""The stand-in for the package `kubernetes` gives what the package gives, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.kubeconfig.reader import Reader, settings
from tests.support.kubeconfigs import document, write
from tests.support.pki import Pki, plain_kubeconfig
from tests.support.places import STANDIN

URL = "https://127.0.0.1:6443"


def test_without_a_token_it_gives_the_same(
    pki: Pki, node_pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, certified = tmp_path / "plain.conf", tmp_path / "certified.conf"
    plain_kubeconfig(plain, "http://127.0.0.1:8080", "worker-1")
    pki.write_kubeconfig(certified, URL, node_pem)
    by_the_package = [settings(path) for path in (plain, certified)]
    monkeypatch.syspath_prepend(str(STANDIN))
    assert [Reader(path).read() for path in (plain, certified)] == by_the_package


def test_a_token_is_none_of_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "token.conf", document({"token": "some"}))
    assert settings(path).headers
    monkeypatch.syspath_prepend(str(STANDIN))
    with pytest.raises(RefusedError, match="the stand-in knows no user"):
        Reader(path).read()
