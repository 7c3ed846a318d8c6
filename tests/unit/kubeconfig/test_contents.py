"""What is in a kubeconfig and in the files that it names, and when either has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_node_agent.kubeconfig.contents import fingerprint
from tests.support.kubeconfigs import HOSTS, SECRET, URL, document, load, refusal, write
from tests.support.pki import Pki

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")


# 1. What is in it


def test_only_the_current_contexts_user_and_cluster_count(tmp_path: Path) -> None:
    content = document({"token": SECRET})
    content["contexts"].append({"name": "o", "context": {"cluster": "x", "user": "y"}})
    content["clusters"].append({"name": "x", "cluster": {"proxy-url": "socks5://p"}})
    content["users"].append({"name": "y", "user": {"exec": {"command": "/no/such"}}})
    credentials = load(write(tmp_path / "kubeconfig", content))
    assert not credentials.short_lived
    assert credentials.address == ("127.0.0.1", 6443)


@pytest.mark.parametrize("key", ["certificate-authority", "client-certificate", "tokenFile"])
def test_a_missing_file_is_the_one_named(key: str, node_pem: Path, tmp_path: Path) -> None:
    user = {"client-certificate": node_pem.name, "client-key": node_pem.name}
    cluster = {}
    if key == "certificate-authority":
        cluster[key] = "missing.file"
    else:
        user[key] = "missing.file"
    path = write(tmp_path / "kubelet.conf", document(user, **cluster))
    assert "missing.file" in refusal(path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", document({"client-key": name}))
    assert fingerprint(path)
    text = refusal(path)
    assert text.isprintable()
    assert text.endswith(": it has a name that no file can have")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("users: [", id="unfinished"),
        pytest.param("a: 1\n---\nb: 2\n", id="two documents"),
        pytest.param("a\0b", id="a zero byte"),
        pytest.param("a: &a [*b]", id="an unknown alias"),
        pytest.param("? {a: b}\n: c", id="a mapping as a key"),
        pytest.param("!!python/object/apply:os.getpid []", id="an object of Python's"),
        pytest.param("users: [{name: !!bool zz}]", id="a value that does not fit its tag"),
    ],
)
def test_a_file_that_is_no_yaml_is_said_to_be_none(content: Any, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "kubelet.conf", content)).endswith(": is no YAML")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("null", id="null"),
        pytest.param("7", id="a number"),
        pytest.param("hello", id="a word"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="nothing in it"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param("[" * 5000, id="nested too deeply"),
        pytest.param("a: &a [*a]", id="a list inside of itself"),
        pytest.param({**document(), "users": "u"}, id="users as a word"),
        pytest.param({**document(), "users": ["u"]}, id="users as words"),
        pytest.param({**document(), "users": [{}]}, id="a user without a name"),
        pytest.param({**document(), "users": [{"name": "u"}]}, id="a user without contents"),
        pytest.param({**document(), "clusters": 7}, id="clusters as a number"),
        pytest.param({**document(), "clusters": []}, id="no clusters"),
        pytest.param({**document(), "contexts": None}, id="no contexts"),
        pytest.param({**document(), "current-context": "other"}, id="an unknown context"),
        pytest.param({**document(), "current-context": 7}, id="a number as context"),
        pytest.param(document(server=7), id="a number as server"),
        pytest.param(document(server=[URL]), id="a list as server"),
        pytest.param(document({"client-certificate-data": "!"}), id="no base64"),
        pytest.param(document({"client-certificate": 7}), id="a number as file"),
    ],
)
def test_a_weird_shape_is_refused_and_still_has_a_fingerprint(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", content)
    assert fingerprint(path)
    assert refusal(path)


@pytest.mark.parametrize("value", [7, True, ["kubernetes"], {"a": 1}])
@pytest.mark.parametrize(
    "key", [*HOSTS, "certificate-authority", "certificate-authority-data", "token", "client-key"]
)
def test_what_should_be_text_and_is_none_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    of_user = key in ("token", "client-key")
    content = document({key: value}) if of_user else document(**{key: value})
    assert refusal(write(tmp_path / "kubelet.conf", content)).endswith(f"its {key} is no text")


def test_only_a_true_value_takes_the_server_unseen(tmp_path: Path) -> None:
    """The text "false" is a true value to Python."""
    content = document(**{"insecure-skip-tls-verify": "false"})
    text = refusal(write(tmp_path / "kubelet.conf", content))
    assert text.endswith("its insecure-skip-tls-verify is neither true nor false")


@pytest.mark.parametrize("key", ["certificate-authority", "client-key", "tokenFile"])
def test_a_named_file_that_is_none_is_refused_without_waiting(key: str, tmp_path: Path) -> None:
    """A FIFO has no writer, and a device no end."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "/dev/zero"):
        user, cluster = ({}, {key: name}) if key.endswith("authority") else ({key: name}, {})
        path = write(tmp_path / "kubelet.conf", document(user, **cluster))
        assert fingerprint(path)
        assert refusal(path).endswith(f"cannot read {tmp_path / name}: it is no regular file")


def test_a_kubeconfig_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert fingerprint(path)
        assert refusal(path).endswith(": is no regular file")


def test_what_is_too_large_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    content = document({}, **{"certificate-authority": "large"})
    named = refusal(write(tmp_path / "second.conf", content))
    assert named.endswith(f"cannot read {tmp_path / 'large'}: it is larger than 1048576 bytes")
    path.write_bytes(path.read_bytes() + b"#" * (1 << 20))
    assert fingerprint(path)
    assert refusal(path).endswith(": is larger than 1048576 bytes")


def test_a_kubeconfig_of_a_billion_laughs_is_refused(tmp_path: Path) -> None:
    lines = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    laughs = "\n".join(["l0: &l0 [ha, ha]", *lines, yaml.safe_dump(document())])
    path = write(tmp_path / "kubelet.conf", laughs)
    assert fingerprint(path)
    assert refusal(path).endswith(": is out of bounds: it has aliases that stand for too much")


@pytest.mark.parametrize("cluster", [{}, {"certificate-authority-data": ""}, {"server": ""}])
def test_a_cluster_without_a_server_is_refused(cluster: dict[str, str], tmp_path: Path) -> None:
    content = {**document(), "clusters": [{"name": "k", "cluster": cluster}]}
    assert refusal(write(tmp_path / "kubelet.conf", content)).endswith(": names no server")


# 2. The fingerprint


# 5. The fingerprint


def test_the_fingerprint_stays_while_nothing_changes(path: Path) -> None:
    assert fingerprint(path) == fingerprint(path)


def test_the_fingerprint_changes_when_the_symlink_is_swapped(
    path: Path, node_pem: Path, pki: Pki, tmp_path: Path
) -> None:
    pki.write_node_client(tmp_path / "next.pem", "worker-1")
    before = fingerprint(path)
    (tmp_path / "draft").symlink_to("next.pem")
    (tmp_path / "draft").replace(node_pem)
    assert fingerprint(path) != before


@pytest.mark.parametrize("name", ["kubelet.conf", "kubelet-client-current.pem"])
def test_the_fingerprint_changes_when_a_file_is_written_in_place(
    name: str, path: Path, tmp_path: Path
) -> None:
    before = fingerprint(path)
    with (tmp_path / name).open("a") as file:
        file.write("\n")
    assert fingerprint(path) != before


def test_the_fingerprint_changes_when_a_file_is_replaced_by_one_of_the_same_size(
    path: Path, node_pem: Path, tmp_path: Path
) -> None:
    before = fingerprint(path)
    old = node_pem.resolve()
    status = old.stat()
    (tmp_path / "draft").write_bytes(old.read_bytes())
    os.utime(tmp_path / "draft", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "draft").replace(old)
    assert fingerprint(path) != before


@pytest.mark.parametrize(
    "name",
    ["kubelet.conf", "kubelet-client-current.pem", "kubelet-client-2026-01-05-08-00-00.pem"],
)
def test_the_fingerprint_changes_when_a_file_goes_and_when_it_comes_back(
    name: str, path: Path, tmp_path: Path
) -> None:
    there = fingerprint(path)
    (tmp_path / name).rename(tmp_path / "aside")
    gone = fingerprint(path)
    assert gone != there
    (tmp_path / "aside").rename(tmp_path / name)
    assert fingerprint(path) == there


@pytest.mark.parametrize("key", ["certificate-authority", "client-key", "tokenFile"])
def test_the_fingerprint_follows_every_file_that_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "named").write_text("one")
    user, cluster = ({}, {key: "named"}) if key.endswith("authority") else ({key: "named"}, {})
    path = write(tmp_path / "kubelet.conf", document(user, **cluster))
    before = fingerprint(path)
    (tmp_path / "named").write_text("another")
    assert fingerprint(path) != before
