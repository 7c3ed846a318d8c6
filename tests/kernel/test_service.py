"""What the real process tells its service manager, from its start to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.faults import ANY_BACKEND
from tests.support.notifysocket import NotifySocket
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13"), ANY_BACKEND]

IN_SYNC = "STATUS=In sync; Services with rules: 1 in IPv4"
WRITING = "STATUS=Writing changes to the kernel"
# An iptables-restore that hangs for as long as a file is there.
HANGS = 'while [ -e $here/hang ]; do sleep 0.05; done; exec $real "$@"'


@pytest.fixture
def manager(bed: Bed, tmp_path: Path) -> Iterator[NotifySocket]:
    """The service manager of `bed`'s agent, whose API server has one Service."""
    bed.put(WEB)
    listening = NotifySocket(str(tmp_path / "notify"))
    bed.agent.variables["NOTIFY_SOCKET"] = listening.name
    yield listening
    listening.close()


def hears(manager: NotifySocket, message: str) -> None:
    eventually(lambda: manager.has_heard(message), f"{message}, after {manager.heard}")


def quiet(manager: NotifySocket) -> None:
    """Forgets what was heard. A change right behind another one waits, and that is told too."""
    time.sleep(0.3)
    manager.messages()
    manager.heard.clear()


def test_readiness_is_the_first_sync_and_the_end_is_told(bed: Bed, manager: NotifySocket) -> None:
    bed.agent.variables["WATCHDOG_USEC"] = "800000"
    # It is read meanwhile: who writes to a full socket waits.
    bed.agent.start(wait=False)
    hears(manager, IN_SYNC)
    heard = manager.heard
    assert heard.count("READY=1") == 1
    assert WRITING in heard[: heard.index("READY=1")]
    for _ in range(3):
        manager.messages()
        manager.heard.clear()
        hears(manager, "WATCHDOG=1")
    assert bed.agent.stop() == 0
    hears(manager, "STOPPING=1")
    assert manager.heard[-2:] == ["STOPPING=1", "STATUS=Stopped; the rules stay in place"]


def test_without_credentials_it_waits_and_says_so_until_they_appear(
    bed: Bed, manager: NotifySocket
) -> None:
    kubeconfig = Path(bed.settings["kubeconfig"])
    aside = kubeconfig.rename(kubeconfig.with_suffix(".aside"))
    bed.agent.start(wait=False)
    hears(
        manager,
        f"STATUS=Waiting: kubeconfig {kubeconfig}: No such file or directory"
        " (is this node's kubelet set up?)",
    )
    assert "READY=1" not in manager.heard
    assert any(message.startswith("EXTEND_TIMEOUT_USEC=") for message in manager.heard)
    aside.rename(kubeconfig)
    hears(manager, IN_SYNC)
    assert "READY=1" in manager.heard
    assert bed.agent.log.count("No such file or directory") == 1


def test_a_reload_is_told_and_a_bad_file_is_in_the_sentence(
    bed: Bed, manager: NotifySocket
) -> None:
    bed.agent.start()
    hears(manager, IN_SYNC)
    good = bed.agent.config.read_text()
    bed.agent.config.write_text("masquerade: Some\n")
    bed.agent.send(signal.SIGHUP)
    hears(
        manager,
        f"{IN_SYNC}; keeping the old configuration: configuration {bed.agent.config} line 1:"
        ' masquerade: wanted All or HostOnly, got "Some"',
    )
    reloading = [m for m in manager.heard if m.startswith("RELOADING=1\nMONOTONIC_USEC=")]
    assert len(reloading) == 1
    assert manager.heard.count("READY=1") == 2
    manager.heard.clear()
    bed.agent.config.write_text(good)
    bed.agent.send(signal.SIGHUP)
    hears(manager, IN_SYNC)


def test_a_write_that_hangs_is_told_while_it_does(
    bed: Bed, manager: NotifySocket, tmp_path: Path
) -> None:
    bed.stand_in(tmp_path, f"iptables-{bed.backend}-restore", HANGS)
    bed.agent.start()
    hears(manager, IN_SYNC)
    (tmp_path / "hang").touch()
    quiet(manager)
    bed.put(OTHER)
    # What has begun before does not hang.
    eventually(lambda: manager.has_heard(WRITING) or bed.has(OTHER[0]), "a change")
    if WRITING not in manager.heard:
        quiet(manager)
    bed.delete("other")
    hears(manager, WRITING)
    (tmp_path / "hang").unlink()
    bed.expect(WEB)
    hears(manager, IN_SYNC)
