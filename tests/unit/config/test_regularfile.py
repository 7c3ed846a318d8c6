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


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused_where_it_is_to_be_private(
    file: Path, mode: int
) -> None:
    file.chmod(mode)
    hint = f"chmod go-w {file}, and read it again"
    assert refusal(file) == ("others than its owner can write it", hint)
    assert read(file) == b"text"


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o640, 0o444, 0o755])
def test_a_file_that_only_its_owner_can_write_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read(file, private=True) == b"text"


def test_what_counts_is_the_file_and_not_a_link_to_it(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read(link, private=True) == b"text"
    file.chmod(0o666)
    assert refusal(link)[0] == "others than its owner can write it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused_where_it_is_to_be_private(file: Path) -> None:
    os.chown(file, 1234, 0)
    assert refusal(file) == ("belongs to user 1234, who could change it", f"chown root {file}")
    assert read(file) == b"text"


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert refusal(fifo, private=False) == ("is no regular file", "")


def test_a_device_is_refused() -> None:
    assert refusal("/dev/null") == ("is no regular file", "")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    assert refusal("a\0b") == ("has a name that no file can have", "")


def test_a_directory_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_a_path_through_a_file_is_an_error(file: Path) -> None:
    with pytest.raises(NotADirectoryError):
        read(file / "x")


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    file.write_bytes(b"#" * (1 << 20))
    assert len(read(file)) == 1 << 20
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert refusal(file) == ("is larger than 1048576 bytes", "")
