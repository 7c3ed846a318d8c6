"""packaging/ansible by the release's own Ansible: from no agent to one that is in sync."""

from __future__ import annotations

import json
import re

import pytest

from tests.node import shown
from tests.node.cases import DEBS, READY_SECONDS, apt, put_package
from tests.node.scene import KUBELET_CONF, Scene
from tests.support.places import PACKAGING

# Nothing else tries it in a quick run: each play takes an emulated machine more than a minute.
pytestmark = pytest.mark.quick()

_FOLDER = PACKAGING / "ansible"
_PLACE = "/root/ansible"
_DRIFT = {"driftCheckPeriod": "3s"}


@pytest.fixture(scope="module", autouse=True)
def rolled_out(scene: Scene) -> None:
    """The role and its play are there, the node has not joined its cluster, and has no agent."""
    for path in sorted(each for each in _FOLDER.rglob("*.yml") if each.is_file()):
        scene.machine.write(f"{_PLACE}/{path.relative_to(_FOLDER)}", path.read_text())
    scene.machine.write(
        f"{_PLACE}/hosts", "[kubernetes_nodes]\nworker-1 ansible_connection=local\n"
    )
    scene.machine.run(f"rm -f {KUBELET_CONF}")


def roll_out(scene: Scene, package: str, **variables: object) -> int:
    """Plays it to its end, where nothing has failed; how many tasks changed anything."""
    put_package(scene, package)
    given = {"ipvs_node_agent_wait_seconds": int(READY_SECONDS), **variables}
    scene.machine.write(f"{_PLACE}/given.json", json.dumps(given))
    printed = scene.machine.run(
        f"cd {_PLACE} && cp {DEBS}/*.deb ipvs-node-agent.deb && {shown.PLAY} -e @given.json",
        timeout=900,
    )
    (changed, failed) = re.findall(r"^worker-1 .* changed=(\d+) .* failed=(\d+)", printed, re.M)[0]
    assert failed == "0", printed
    return int(changed)


def test_on_a_node_that_has_not_joined_yet_it_is_started_and_waits(scene: Scene) -> None:
    assert roll_out(scene, "this") > 0
    scene.wait("systemctl show -p StatusText ipvs-node-agent | grep -q Waiting:", READY_SECONDS)
    assert scene.agent("ActiveState") == "activating"
    assert scene.agent("UnitFileState") == "enabled"


def test_again_while_it_starts_nothing_changes_and_it_goes_on(scene: Scene) -> None:
    pid = scene.agent("MainPID")
    assert roll_out(scene, "this") == 0
    assert scene.agent("MainPID") == pid


def test_another_version_and_configuration_are_in_sync_at_the_end(scene: Scene) -> None:
    scene.give_kubelet_conf()
    assert roll_out(scene, "next", ipvs_node_agent_config=_DRIFT) > 0
    assert "driftCheckPeriod: 3s" in scene.machine.read("/etc/ipvs-node-agent/config.yaml")
    assert scene.machine.run("ipvs-node-agent status").startswith("In sync since ")
    assert "+test1" in scene.machine.run("dpkg-query -W ipvs-node-agent")


def test_where_nothing_changed_nothing_is_restarted(scene: Scene) -> None:
    pid = scene.agent("MainPID")
    assert roll_out(scene, "next", ipvs_node_agent_config=_DRIFT) == 0
    assert scene.agent("MainPID") == pid
    apt(scene, shown.PURGE)
    assert not scene.ours()
