"""The runtime directory: one agent at a time, and the names of chains outlive a restart."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from ipvs_node_agent.config.settings import DEFAULTS, Chains
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.host.rundir import directory, only_one, own_names, remember_names

OWN = {"IPVS_PREROUTING", "IPVS_OUTPUT", "IPVS_MARK_MASQ", "IPVS_POSTROUTING"}


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory, which does not exist yet."""
    path = tmp_path / "run" / "ipvs-node-agent"
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(path))
    return path


@pytest.fixture
def made(runtime: Path) -> Path:
    """The same, and it does."""
    runtime.mkdir(parents=True)
    return runtime


def refused(name: str = "run") -> RefusedError:
    """Why the lock cannot be had."""
    with pytest.raises(RefusedError) as caught, only_one(name):
        pass
    return caught.value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("", "/run/ipvs-node-agent"),
        ("/run/elsewhere/ipvs-node-agent", "/run/elsewhere/ipvs-node-agent"),
        # A drop-in may add others.
        ("/run/other:/run/elsewhere/ipvs-node-agent", "/run/elsewhere/ipvs-node-agent"),
        # Of the service that the command is called in.
        ("/run/telegraf", "/run/ipvs-node-agent"),
        ("/run/ipvs-node-agent-exporter:/run/x", "/run/ipvs-node-agent"),
    ],
)
def test_systemd_says_where_the_directory_is(
    value: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", value)
    assert directory() == Path(path)
    if not value:
        monkeypatch.delenv("RUNTIME_DIRECTORY")
        assert directory() == Path(path)


# The lock.


def test_a_second_agent_is_refused_until_the_first_ends_in_whatever_way(runtime: Path) -> None:
    with only_one("run"):
        error = refused("cleanup")
    assert str(error) == (
        "cleanup: an agent is already running on this node (systemctl stop ipvs-node-agent)"
    )
    assert error.exit_status == 3
    with pytest.raises(ZeroDivisionError), only_one("cleanup"):
        raise ZeroDivisionError
    with only_one("run"):
        pass


def test_a_child_does_not_keep_the_lock(runtime: Path) -> None:
    with only_one("run"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with only_one("run"):
            pass
    finally:
        child.communicate()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_whatever_the_umask_others_may_read_the_names_and_write_nothing(
    runtime: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        with only_one("run"):
            remember_names(frozenset({"A"}))
    finally:
        os.umask(before)
    found = {path.name: mode(path) for path in (runtime.parent, runtime, *runtime.iterdir())}
    assert found == {"run": 0o755, "ipvs-node-agent": 0o755, "lock": 0o600, "chains": 0o644}


def test_modes_that_an_earlier_run_left_are_put_right(made: Path) -> None:
    for name, text in (("lock", ""), ("chains", "A\n")):
        (made / name).write_text(text)
        (made / name).chmod(0o666)
    with only_one("run"):
        remember_names(frozenset({"A"}))
    assert (mode(made / "lock"), mode(made / "chains")) == (0o600, 0o644)


def test_where_the_directory_cannot_be_made_the_reason_is_said(runtime: Path) -> None:
    runtime.parent.write_text("")
    assert str(refused()) == f"run: cannot open {runtime}/lock: Not a directory"


def test_who_is_not_root_is_told_so(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert str(refused()).endswith("lock: Permission denied (run it as root)")


def test_a_link_in_place_of_the_lock_is_not_followed(made: Path, tmp_path: Path) -> None:
    (made / "lock").symlink_to(tmp_path / "elsewhere")
    assert "cannot open" in str(refused())
    assert not (tmp_path / "elsewhere").exists()


# The names.


@pytest.mark.parametrize("where", ["in the file", "in the process"])
def test_names_of_an_earlier_configuration_are_still_the_agents_but_for_the_one_that_marks(
    made: Path, where: str
) -> None:
    assert own_names(DEFAULTS.chains) == OWN
    known = own_names(Chains(prerouting="OLD_PRE", output="OLD_OUT"))
    if where == "in the file":
        remember_names(known)
        known = frozenset()
    assert own_names(DEFAULTS.chains, known) == OWN | {"OLD_PRE", "OLD_OUT"}
    assert own_names(Chains(mark_masquerade="OLD_PRE"), known) == OWN | {"OLD_OUT"}


@pytest.mark.parametrize(
    "line", ["KUBE-SERVICES", "PREROUTING", "ACCEPT", "-X", "A" * 29, "a,b", '"x"']
)
def test_a_name_that_cannot_be_the_agents_is_not_taken_from_the_file(made: Path, line: str) -> None:
    (made / "chains").write_text(f"{line}\nGOOD\n")
    assert own_names(DEFAULTS.chains) == OWN | {"GOOD"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"\0" * 100])
def test_a_garbled_file_is_passed_over_and_written_anew(made: Path, content: bytes) -> None:
    (made / "chains").write_bytes(content)
    names = own_names(DEFAULTS.chains)
    assert names == OWN
    remember_names(names)
    assert (made / "chains").read_text().split() == sorted(OWN)


def test_the_file_is_written_only_where_it_differs(made: Path) -> None:
    remember_names(frozenset({"B", "A"}))
    first = (made / "chains").stat()
    assert (made / "chains").read_text() == "A\nB\n"
    remember_names(frozenset({"A", "B"}))
    assert (made / "chains").stat().st_ino == first.st_ino
    remember_names(frozenset({"A"}))
    assert (made / "chains").read_text() == "A\n"
    assert os.listdir(made) == ["chains"]


@pytest.mark.parametrize("name", ["chains", "chains.new"])
def test_a_link_in_place_of_the_names_is_not_followed(
    made: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("A\n")
    (made / name).symlink_to(elsewhere)
    for names in ({"A"}, {"B"}):
        remember_names(frozenset(names))
        assert stat.S_ISREG((made / "chains").lstat().st_mode)
        assert (made / "chains").read_text().split() == sorted(names)
    assert elsewhere.read_text() == "A\n"
    assert os.listdir(made) == ["chains"]


def test_names_that_can_be_written_by_half_only_leave_the_old_ones(
    made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remember_names(frozenset({"A"}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    remember_names(frozenset({"B"}))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"cannot save the chains' names in {made}/chains: [Errno 28] No space left on device"
    )
    assert (made / "chains").read_text() == "A\n"
    assert os.listdir(made) == ["chains"]
