"""New connections all the while, of the node and of a pod, and none fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.cases import another_process, no_connection_fails, put_package
from tests.node.scene import Scene
from tests.node.shown import INSTALL

_DROP_IN = "/etc/systemd/system/ipvs-node-agent.service.d/quick.conf"
# Two minutes and ten seconds are right for a node, and long for a test.
_QUICK = "[Service]\nWatchdogSec=8s\nRestartSec=1s\n"


@pytest.fixture(scope="module", autouse=True)
def _quick(scene: Scene) -> Iterator[None]:
    scene.machine.write(_DROP_IN, _QUICK)
    scene.machine.run("systemctl daemon-reload")
    yield
    scene.machine.run(f"rm -r $(dirname {_DROP_IN}) && systemctl daemon-reload")


@pytest.mark.quick("debian13")
def test_a_restart(scene: Scene) -> None:
    no_connection_fails(scene, "systemctl restart ipvs-node-agent", another_process(scene))


def test_an_upgrade(scene: Scene) -> None:
    put_package(scene, "next")
    before = scene.machine.run("ipvs-node-agent --version; dpkg -s ipvs-node-agent | grep Version")
    no_connection_fails(scene, INSTALL, another_process(scene))
    after = scene.machine.run("ipvs-node-agent --version; dpkg -s ipvs-node-agent | grep Version")
    assert (before != after, "+test1" in after) == (True, True)


@pytest.mark.quick("debian12")
def test_a_crash(scene: Scene) -> None:
    scene.caused.append("signal")
    kill = f"kill -KILL {scene.agent('MainPID')}"
    no_connection_fails(scene, kill, another_process(scene))


@pytest.mark.quick
def test_a_memory_limit_that_is_reached(scene: Scene) -> None:
    scene.caused.append("oom-kill")
    limit = "systemctl set-property --runtime ipvs-node-agent MemoryMax="
    reached = "journalctl -q -b -u ipvs-node-agent | grep -q oom-kill"
    # Far less than a start takes, so it is killed at once, and over and over until the end of it.
    squeeze = f"{limit}12M; timeout 120 sh -c 'until {reached}; do sleep 0.5; done'; {limit}2G"
    no_connection_fails(scene, f"{squeeze}; {reached}", another_process(scene))


@pytest.mark.quick("debian13")
def test_an_agent_that_hangs_is_restarted(scene: Scene) -> None:
    scene.caused.append("watchdog")
    stop = f"kill -STOP {scene.agent('MainPID')}"
    no_connection_fails(scene, stop, another_process(scene))
    assert "Watchdog timeout" in scene.machine.run("journalctl -q -b -u ipvs-node-agent")
