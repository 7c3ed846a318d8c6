"""A kubeconfig is read in a process of its own, and what passes to and fro is whole."""

from __future__ import annotations

import errno
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_node_agent import kubeconfigreader
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.kubeconfig import load_credentials
from ipvs_node_agent.kubeconfigreader import read, settings
from tests.support.pki import Pki, plain_kubeconfig

URL = "https://127.0.0.1:6443"


def kubeconfig(path: Path, user: dict[str, Any]) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": URL}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def plugin(directory: Path, body: str) -> dict[str, Any]:
    """A user whose credentials a program makes."""
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    version = "client.authentication.k8s.io/v1beta1"
    return {
        "exec": {"apiVersion": version, "command": str(script), "interactiveMode": "Never"},
    }


def test_both_ways_give_the_same(node_pem: Path, pki: Pki, tmp_path: Path) -> None:
    pki.write_kubeconfig(tmp_path / "kubelet.conf", URL, node_pem)
    found = read(tmp_path / "kubelet.conf")
    here = settings(tmp_path / "kubelet.conf")
    # What the kubeconfig holds itself has no name of its own.
    assert found.authority is not None
    assert here.authority is not None
    assert found.authority.text == here.authority.text == pki.ca_pem
    assert replace(found, authority=None) == replace(here, authority=None)
    assert found.user == "system:node:worker-1"
    assert found.valid is not None
    assert found.valid[0] < time.time() < found.valid[1]
    assert found.certificate is not None
    assert found.certificate.text == node_pem.read_text()
    assert not found.short_lived


def test_both_ways_give_the_same_error(tmp_path: Path) -> None:
    texts = []
    for way in (read, settings):
        with pytest.raises(RefusedError) as caught:
            way(tmp_path / "missing.conf")
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert texts[0].endswith("No such file or directory (is this node's kubelet set up?)")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664])
def test_a_file_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    """It may name a program, which would run as root."""
    path = tmp_path / "kubelet.conf"
    plain_kubeconfig(path, URL, "worker-1")
    path.chmod(mode)
    with pytest.raises(RefusedError) as caught:
        read(path)
    assert str(caught.value) == (
        f"kubeconfig {path}: others than its owner can write it (chmod go-w {path})"
    )


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.conf"
    plain_kubeconfig(path, URL, "worker-1")
    os.chown(path, 4711, 4711)
    with pytest.raises(RefusedError, match="belongs to user 4711, who could change it"):
        read(path)


@pytest.mark.parametrize("name", ["kubelet.conf", "kubelet-client-current.pem"])
def test_what_only_root_may_read_is_asked_for_as_root(
    name: str, node_pem: Path, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki.write_kubeconfig(tmp_path / "kubelet.conf", URL, node_pem)
    plainly = Path.read_text

    def denied(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plainly(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(RefusedError, match=r"Permission denied \(run it as root\)$"):
        settings(tmp_path / "kubelet.conf")


def test_a_relative_path_and_another_directorys_modules_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "kubernetes.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kubeconfig(tmp_path / "relative.conf", {"token": "abc"})
    assert read(Path("relative.conf")).headers == {"authorization": "Bearer abc"}


def test_a_program_is_asked_for_each_request(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    body = (
        f'n=$(($(cat {tmp_path}/count) + 1)); echo "$n" > {tmp_path}/count; echo "noise" >&2\n'
        'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1beta1\\",'
        ' \\"kind\\": \\"ExecCredential\\", \\"status\\": {\\"token\\": \\"token-$n\\"}}"'
    )
    credentials = load_credentials(kubeconfig(tmp_path / "exec.conf", plugin(tmp_path, body)))
    shown = [credentials.headers()["authorization"] for _ in range(2)]
    assert shown == ["Bearer token-2", "Bearer token-3"]


def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeconfigreader, "_TIME_LIMIT", 1)
    path = kubeconfig(tmp_path / "exec.conf", plugin(tmp_path, "exec sleep 30"))
    with pytest.raises(RefusedError, match=r"was not read within 1 s \(a slow exec plugin\?\)"):
        read(path)


def test_a_reader_that_dies_is_an_error_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "kubelet.conf").touch()
    with pytest.raises(RefusedError, match="its reader ended with status 1"):
        read(tmp_path / "kubelet.conf")


def test_settings_do_not_show_their_secrets(tmp_path: Path) -> None:
    found = read(kubeconfig(tmp_path / "kubelet.conf", {"token": "s3cret"}))
    assert "s3cret" not in repr(found)
