"""The runtime directory: one agent at a time, and the names of chains outlive a restart."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
from collections.abc import Iterator
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


def test_systemd_says_where_the_directory_is(runtime: Path) -> None:
    assert directory() == runtime


@pytest.mark.parametrize("value", [None, ""])
def test_without_systemd_it_is_in_run(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    if value is not None:
        monkeypatch.setenv("RUNTIME_DIRECTORY", value)
    assert directory() == Path("/run/ipvs-node-agent")


# The lock.


def test_a_second_agent_is_refused_while_the_first_runs(runtime: Path) -> None:
    with only_one("run"):
        with pytest.raises(RefusedError) as caught, only_one("cleanup"):
            pass
        assert str(caught.value) == (
            "cleanup: an agent is already running on this node (systemctl stop ipvs-node-agent)"
        )
        assert caught.value.exit_status == 3
    with only_one("cleanup"):
        pass


def test_an_agent_that_fails_gives_the_lock_back(runtime: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one("run"):
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


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """What whoever starts the agent takes away from the modes of its files."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
def test_whatever_the_umask_others_may_read_the_names_and_write_nothing(runtime: Path) -> None:
    with only_one("run"):
        remember_names(frozenset({"A"}))
    found = {path.name: mode(path) for path in (runtime.parent, runtime, *runtime.iterdir())}
    assert found == {"run": 0o755, "ipvs-node-agent": 0o755, "lock": 0o600, "chains": 0o644}


def test_modes_that_an_earlier_run_left_are_put_right(runtime: Path) -> None:
    runtime.mkdir(parents=True)
    for name in ("lock", "chains"):
        (runtime / name).write_text("A\n" if name == "chains" else "")
        (runtime / name).chmod(0o666)
    with only_one("run"):
        remember_names(frozenset({"A"}))
    assert (mode(runtime / "lock"), mode(runtime / "chains")) == (0o600, 0o644)


def test_where_the_directory_cannot_be_made_the_reason_is_said(runtime: Path) -> None:
    runtime.parent.write_text("")
    with pytest.raises(RefusedError) as caught, only_one("run"):
        pass
    assert str(caught.value) == f"run: cannot open {runtime}/lock: Not a directory"


def test_who_is_not_root_is_told_so(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.mkdir(parents=True)

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(RefusedError) as caught, only_one("run"):
        pass
    assert str(caught.value).endswith("lock: Permission denied (run it as root)")


def test_a_link_in_place_of_the_lock_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    runtime.mkdir(parents=True)
    (runtime / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="cannot open"), only_one("run"):
        pass
    assert not (tmp_path / "elsewhere").exists()


# The names.


def test_at_first_the_agents_chains_are_those_of_the_configuration(runtime: Path) -> None:
    assert own_names(DEFAULTS.chains) == OWN


def test_names_of_an_earlier_configuration_are_still_the_agents(runtime: Path) -> None:
    runtime.mkdir(parents=True)
    remember_names(own_names(Chains(prerouting="OLD_PRE", output="OLD_OUT")))
    assert own_names(DEFAULTS.chains) == OWN | {"OLD_PRE", "OLD_OUT"}


def test_names_that_are_known_need_no_file(runtime: Path) -> None:
    known = own_names(Chains(prerouting="OLD_PRE", output="OLD_OUT"))
    assert own_names(DEFAULTS.chains, known) == OWN | {"OLD_PRE", "OLD_OUT"}
    assert own_names(Chains(mark_masquerade="OLD_PRE"), known) == OWN | {"OLD_OUT"}


def test_the_chain_that_marks_is_never_the_agents(runtime: Path) -> None:
    runtime.mkdir(parents=True)
    remember_names(own_names(Chains(prerouting="FIRST", output="SECOND")))
    names = own_names(Chains(mark_masquerade="FIRST"))
    assert names == OWN | {"SECOND"}


@pytest.mark.parametrize(
    "line",
    ["KUBE-SERVICES", "PREROUTING", "ACCEPT", "-X", "A" * 29, "a,b", '"x"'],
)
def test_a_name_that_cannot_be_the_agents_is_not_taken_from_the_file(
    runtime: Path, line: str
) -> None:
    runtime.mkdir(parents=True)
    (runtime / "chains").write_text(f"{line}\nGOOD\n")
    assert own_names(DEFAULTS.chains) == OWN | {"GOOD"}


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\0", b"\0" * 100], ids=["empty", "no-text", "zeros"]
)
def test_a_garbled_file_is_passed_over_and_written_anew(runtime: Path, content: bytes) -> None:
    runtime.mkdir(parents=True)
    (runtime / "chains").write_bytes(content)
    names = own_names(DEFAULTS.chains)
    assert names == OWN
    remember_names(names)
    assert (runtime / "chains").read_text().split() == sorted(OWN)


def test_the_file_is_written_only_where_it_differs(runtime: Path) -> None:
    runtime.mkdir(parents=True)
    remember_names(frozenset({"B", "A"}))
    first = (runtime / "chains").stat()
    assert (runtime / "chains").read_text() == "A\nB\n"
    remember_names(frozenset({"A", "B"}))
    assert (runtime / "chains").stat().st_ino == first.st_ino
    remember_names(frozenset({"A"}))
    assert (runtime / "chains").read_text() == "A\n"
    assert os.listdir(runtime) == ["chains"]


@pytest.mark.parametrize("name", ["chains", "chains.new"])
def test_a_link_in_place_of_the_names_is_not_followed(
    runtime: Path, tmp_path: Path, name: str
) -> None:
    runtime.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("A\n")
    (runtime / name).symlink_to(elsewhere)
    for names in ({"A"}, {"B"}):
        remember_names(frozenset(names))
        assert stat.S_ISREG((runtime / "chains").lstat().st_mode)
        assert (runtime / "chains").read_text().split() == sorted(names)
    assert elsewhere.read_text() == "A\n"
    assert os.listdir(runtime) == ["chains"]


def test_names_that_can_be_written_by_half_only_leave_the_old_ones(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir(parents=True)
    remember_names(frozenset({"A"}))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    remember_names(frozenset({"B"}))
    assert "No space left on device" in caplog.text
    assert (runtime / "chains").read_text() == "A\n"
    assert os.listdir(runtime) == ["chains"]


def test_names_that_cannot_be_kept_are_a_warning(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir(parents=True)
    (runtime / "chains").mkdir()
    with caplog.at_level(logging.WARNING):
        remember_names(frozenset({"A"}))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"cannot remember the chains' names in {runtime}/chains: " in caplog.text
