"""Files that are read whole: regular ones, of bounded size, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipvs_node_agent.config.regularfile import Unfit, read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.conf"
    path.write_text("text")
    path.chmod(0o644)
    return path


def refusal(path: Path | str, private: bool = True) -> tuple[str, str]:
    """Why it is refused, and what mends it."""
    with pytest.raises(Unfit) as caught:
        read(path, private)
    return caught.value.why, caught.value.hint


@pytest.mark.parametrize(
    ("mode", "is_private"),
    [(mode, False) for mode in (0o664, 0o646, 0o666, 0o620, 0o602)]
    + [(mode, True) for mode in (0o644, 0o600, 0o640, 0o444, 0o755)],
)
def test_a_file_that_others_can_write_is_refused_where_it_is_to_be_private(
    file: Path, mode: int, is_private: bool
) -> None:
    """Whatever the modes of a link to it are."""
    link = file.with_name("link")
    link.symlink_to(file)
    file.chmod(mode)
    assert read(link) == b"text"
    if is_private:
        assert read(link, private=True) == b"text"
    else:
        hint = f"chmod go-w {link}, and read it again"
        assert refusal(link) == ("users other than its owner may write to it", hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused_where_it_is_to_be_private(file: Path) -> None:
    os.chown(file, 1234, 0)
    assert refusal(file) == ("belongs to user 1234, who could change it", f"chown root {file}")
    assert read(file) == b"text"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fifo", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("a\0b", "has a name that no file can have"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, name: str, why: str) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for private in (True, False):
        assert refusal(tmp_path / name, private) == (why, "")


def test_a_directory_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    left = [each.resolve() for each in Path("/proc/self/fd").iterdir()]
    assert tmp_path.resolve() not in left


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.write_bytes(b"#" * (1 << 20))
    assert len(read(file)) == 1 << 20
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert refusal(file) == ("is larger than 1048576 bytes", "")
