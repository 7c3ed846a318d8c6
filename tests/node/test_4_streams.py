"""New connections all the while, of the node and of a pod, and none fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.cases import put_package, restarted
from tests.node.scene import Scene
from tests.node.shown import INSTALL, RESTART

_DROP_IN = "/etc/systemd/system/ipvs-node-agent.service.d/quick.conf"
# Two minutes and ten seconds are right for a node, and long for a test.
_QUICK = "[Service]\nWatchdogSec=8s\nRestartSec=1s\n"

# What systemd calls an end of the agent that was not asked for, and what brings it about.
_PID = "$(systemctl show --value -p MainPID ipvs-node-agent)"
_LIMIT = "systemctl set-property --runtime ipvs-node-agent MemoryMax="
_KILLED = "journalctl -q -b -u ipvs-node-agent | grep -q oom-kill"
# Far less than a start takes, so it is killed at once, and over and over until the end of it.
_SQUEEZED = f"{_LIMIT}12M; timeout 120 sh -c 'until {_KILLED}; do sleep 0.5; done'; {_LIMIT}2G"
ENDS = [
    pytest.param("signal", f"kill -KILL {_PID}", id="a crash", marks=pytest.mark.quick("debian12")),
    pytest.param("oom-kill", _SQUEEZED, id="too little memory", marks=pytest.mark.quick),
    pytest.param(
        "watchdog", f"kill -STOP {_PID}", id="a hang", marks=pytest.mark.quick("debian13")
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _quick(scene: Scene) -> Iterator[None]:
    scene.machine.write(_DROP_IN, _QUICK)
    scene.machine.run("systemctl daemon-reload")
    yield
    scene.machine.run(f"rm -r $(dirname {_DROP_IN}) && systemctl daemon-reload")


@pytest.mark.quick("debian13")
def test_a_restart(scene: Scene) -> None:
    restarted(scene, RESTART)


def test_an_upgrade(scene: Scene) -> None:
    put_package(scene, "next")
    version = "ipvs-node-agent --version; dpkg -s ipvs-node-agent | grep Version"
    before = scene.machine.run(version)
    restarted(scene, INSTALL)
    after = scene.machine.run(version)
    assert (before != after, "+test1" in after) == (True, True)


@pytest.mark.parametrize(("result", "command"), ENDS)
def test_an_end_that_nobody_asked_for(scene: Scene, result: str, command: str) -> None:
    scene.caused.append(result)
    restarted(scene, command)
    journal = scene.machine.run("journalctl -q -o cat -b -u ipvs-node-agent")
    assert f"Failed with result '{result}'" in journal
