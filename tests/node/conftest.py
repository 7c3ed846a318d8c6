"""One machine and one cluster for all tests, which are one story and run in their order."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.controlplane import control_plane
from tests.node import image
from tests.node.scene import Scene
from tests.node.vm import Failed, Machine, make_bed

_GUEST = Path(__file__).resolve().parent / "guest"
# The machine as a failure finds it.
_AT_FAILURE = """\
systemctl --no-pager --failed --no-legend
systemctl --no-pager -l status ipvs-node-agent
journalctl -q --no-pager -b -n 60 -u ipvs-node-agent
journalctl -q --no-pager -b -n 20 -u kube-proxy
for family in iptables ip6tables; do $family-save -t nat | grep -v '^#'; done
ipvsadm -Ln
"""
_scene = pytest.StashKey[Scene]()
_words = pytest.StashKey[str]()


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        pytest.fail(f"{name} is not set; `make node-test` sees to that")
    return value


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Scene]:
    """The machine as a node of a cluster with Services; the agent is not installed."""
    directory = tmp_path_factory.mktemp("node")
    binaries = Path(_variable("KUBEBUILDER_ASSETS"))
    packages = Path(_variable("IPVS_NODE_AGENT_PACKAGES")).glob("*.deb")
    disk = image.obtain(_variable("IPVS_NODE_AGENT_RELEASE"))
    bed = directory / "bed.img"
    make_bed([*_GUEST.glob("*.py"), *packages, binaries / "kube-proxy"], bed)
    (directory / "control").mkdir()
    with control_plane(binaries, directory / "control") as plane:
        machine = Machine(disk, bed, plane.namespace, directory)
        made = Scene(plane, machine, directory, _variable("IPVS_NODE_AGENT_BACKEND"))
        pytestconfig.stash[_scene] = made
        try:
            made.make_cluster()
            print(f"booted in {machine.start():.0f} s")
            made.set_up()
            yield made
        except BaseException:
            # Reported when the machine is gone.
            pytestconfig.stash[_words] = _at_failure(machine)
            raise
        finally:
            machine.stop()
            bed.unlink()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out of a quick run what is marked to run on another machine, or not at all."""
    if not os.environ.get("QUICK"):
        return
    left_out = [
        item
        for item in items
        for mark in item.iter_markers("quick")
        if os.environ["IPVS_NODE_AGENT_RELEASE"] not in mark.args
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    report = (yield).get_result()
    scene = item.config.stash.get(_scene, None)
    if report.failed and scene is not None:
        words = item.config.stash.get(_words, None) or _at_failure(scene.machine)
        report.sections.append(("the machine", words))
        # At once, as the end is far. What pytest says of it comes behind the name.
        text = f"\n{report.longreprtext}\n{words}\n{item.nodeid} "
        item.config.get_terminal_writer().write(text)


def _at_failure(machine: Machine) -> str:
    if machine.running:
        try:
            return machine.attempt(_AT_FAILURE, timeout=60).output
        except Failed as error:
            return str(error)
    return machine.last_words()
