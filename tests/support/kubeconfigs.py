"""Kubeconfigs with whatever in them, and the sentence that one is refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.kubeconfig.credentials import Credentials, load_credentials
from ipvs_node_agent.kubeconfig.reader import Reader

URL = "https://127.0.0.1:6443"
# What no message may show.
SECRET = "s3cret-s3cret"
# The keys that say where a cluster is.
HOSTS = ("server", "proxy-url", "tls-server-name")
_OF_CLUSTER = (*HOSTS, "certificate-authority", "certificate-authority-data")


def document(user: Any = None, **cluster: Any) -> dict[str, Any]:
    """A kubeconfig with one user and one cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": URL, **cluster}}],
        "users": [{"name": "u", "user": {} if user is None else user}],
    }


def naming(**keys: Any) -> dict[str, Any]:
    """A kubeconfig with these keys, each of the user or the cluster, where it belongs."""
    cluster = {key: value for key, value in keys.items() if key in _OF_CLUSTER}
    return document({key: keys[key] for key in keys.keys() - cluster.keys()}, **cluster)


def write(path: Path, content: Any) -> Path:
    """Writes a kubeconfig: bytes and text as they are, anything else as YAML."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def load(path: Path) -> Credentials:
    return load_credentials(Reader(path))


def refusal(path: Path) -> str:
    """The sentence that `load_credentials` refuses the kubeconfig with."""
    with pytest.raises(RefusedError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"kubeconfig {path}: ")
    return text
