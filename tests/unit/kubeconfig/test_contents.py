"""What is in a kubeconfig and in the files that it names, and when either has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_node_agent.kubeconfig.contents import fingerprint
from tests.support.kubeconfigs import HOSTS, SECRET, document, load, naming, refusal, write

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

NAMES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


# 1. What is in it


def test_only_the_current_contexts_user_and_cluster_count(tmp_path: Path) -> None:
    content = document({"token": SECRET})
    content["contexts"].append({"name": "o", "context": {"cluster": "x", "user": "y"}})
    content["clusters"].append({"name": "x", "cluster": {"proxy-url": "socks5://p"}})
    content["users"].append({"name": "y", "user": {"exec": {"command": "/no/such"}}})
    credentials = load(write(tmp_path / "kubeconfig", content))
    assert not credentials.short_lived
    assert credentials.address == ("127.0.0.1", 6443)


LAUGHS = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
A_BILLION_LAUGHS = "\n".join(["l0: &l0 [ha, ha]", *LAUGHS, yaml.safe_dump(document())])


SHAPES: dict[str, list[Any]] = {
    "is not YAML": ["users: ["],
    "is out of bounds: it has aliases that stand for too much": [A_BILLION_LAUGHS],
    "is not UTF-8 text": [b"\xff\xfe\x00"],
    "names no server": ["", "hello", "[]", {**document(), "clusters": []}, document(server="")],
    "has no entry for its current-context": [
        "{}",
        {**document(), "contexts": None},
        {**document(), "current-context": 7},
    ],
    "has clusters that are not a list of entries": [{**document(), "clusters": 7}],
    "has users that are not a list of entries": [{**document(), "users": ["u"]}],
    "has a user entry without a name": [{**document(), "users": [{}]}],
    "has an entry in users without its user": [{**document(), "users": [{"name": "u"}]}],
    "its client-key-data is not base64": [naming(**{"client-key-data": "!"})],
    # The text "false" is a true value to Python.
    "its insecure-skip-tls-verify is neither true nor false": [
        document(**{"insecure-skip-tls-verify": "false"})
    ],
}


@pytest.mark.parametrize(
    ("why", "content"),
    [
        pytest.param(why, content, id=f"{why}-{place}")
        for why, contents in SHAPES.items()
        for place, content in enumerate(contents)
    ],
)
def test_a_weird_shape_is_refused_and_still_has_a_fingerprint(
    why: str, content: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "kubelet.conf", content)
    assert fingerprint(path)
    assert refusal(path) == f"kubeconfig {path}: {why}"


@pytest.mark.parametrize("value", [7, ["kubernetes"]])
@pytest.mark.parametrize("key", [*HOSTS, *NAMES, "certificate-authority-data", "token"])
def test_what_should_be_text_and_is_none_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", naming(**{key: value}))
    assert refusal(path).endswith(f": its {key} is not text")


@pytest.fixture
def odd_files(tmp_path: Path) -> None:
    """A FIFO has no writer, and a device no end."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))


ODD_FILES = [
    ("missing", "No such file or directory"),
    ("fifo", "is not a regular file"),
    ("/dev/zero", "is not a regular file"),
    ("large", "is larger than 1048576 bytes"),
    ("a\0b", "has a name that no file can have"),
    ("\ud800", "has a name that no file can have"),
]


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize(("name", "why"), ODD_FILES)
def test_a_named_file_that_is_none_is_refused_without_waiting(
    name: str, why: str, key: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "kubelet.conf", naming(**{key: name}))
    assert fingerprint(path)
    text = refusal(path)
    assert text.isprintable()
    assert text.startswith(f"kubeconfig {path}: cannot read ")
    assert text.endswith(why)
    assert str(tmp_path / name) in text or not name.isprintable()


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize(("name", "why"), ODD_FILES[1:4])
def test_a_kubeconfig_that_is_no_file_is_refused_without_waiting(
    name: str, why: str, tmp_path: Path
) -> None:
    assert fingerprint(tmp_path / name)
    assert refusal(tmp_path / name).endswith(f": {why}")


# 2. The fingerprint


@pytest.mark.parametrize(
    "name",
    ["kubelet.conf", "kubelet-client-current.pem", "kubelet-client-2026-01-05-08-00-00.pem"],
)
def test_the_fingerprint_changes_when_a_file_goes_or_is_written_in_place(
    name: str, path: Path, tmp_path: Path
) -> None:
    there = fingerprint(path)
    assert fingerprint(path) == there
    (tmp_path / name).rename(tmp_path / "aside")
    assert fingerprint(path) != there
    (tmp_path / "aside").rename(tmp_path / name)
    assert fingerprint(path) == there
    with (tmp_path / name).open("a") as file:
        file.write("\n")
    assert fingerprint(path) != there


def test_the_fingerprint_changes_when_a_file_is_replaced_by_one_of_the_same_size_and_time(
    path: Path, node_pem: Path, tmp_path: Path
) -> None:
    before = fingerprint(path)
    old = node_pem.resolve()
    status = old.stat()
    (tmp_path / "draft").write_bytes(old.read_bytes())
    os.utime(tmp_path / "draft", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "draft").replace(old)
    assert fingerprint(path) != before


@pytest.mark.parametrize("key", NAMES)
def test_the_fingerprint_follows_every_file_that_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "named").write_text("one")
    path = write(tmp_path / "kubelet.conf", naming(**{key: "named"}))
    before = fingerprint(path)
    (tmp_path / "named").write_text("another")
    assert fingerprint(path) != before
