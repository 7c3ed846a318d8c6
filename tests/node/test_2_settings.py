"""Settings, and where a Service's pods are."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.node.cases import external
from tests.node.scene import NODE_ADDRESS, POD, Scene, is_answer
from tests.node.shown import RELOAD
from tests.support.waiting import eventually

CONFIG = "/etc/ipvs-node-agent/config.yaml"


def pods_are_seen_as(scene: Scene, addresses: dict[int, str]) -> None:
    """Waits until a server sees these addresses of a pod, and of the host still its own."""
    wanted = [*addresses.values(), *NODE_ADDRESS.values()]
    connections = external("pod", "host")
    eventually(lambda: scene.ask(*connections) == wanted, f"the server sees {wanted}", pause=1)


@pytest.fixture
def host_only(scene: Scene) -> Iterator[None]:
    """`masquerade: HostOnly`, as an operator sets it."""
    scene.machine.run(f"cp -p {CONFIG} /root/config && echo 'masquerade: HostOnly' >>{CONFIG}")
    scene.machine.run(RELOAD)
    yield
    scene.machine.run(f"cp -p /root/config {CONFIG}")
    scene.machine.run(RELOAD)
    pods_are_seen_as(scene, NODE_ADDRESS)


@pytest.mark.usefixtures("host_only")
def test_with_host_only_the_backend_sees_the_pods_own_address(scene: Scene) -> None:
    pods_are_seen_as(scene, POD)


@pytest.mark.quick("debian13")
@pytest.mark.parametrize(
    ("local", "remote"), [(True, True), (True, False), (False, True)], ids=["both", "here", "there"]
)
def test_access_works_wherever_the_endpoints_are(scene: Scene, local: bool, remote: bool) -> None:
    scene.set_endpoints(local=local, remote=remote)
    # IPVS takes one endpoint after the other.
    clients = external("host", "pod") * 2
    answers = scene.ask(*clients)
    assert all(map(is_answer, answers)), dict(zip(map(str, clients), answers))


def test_nothing_is_said_while_nothing_happens(scene: Scene) -> None:
    before = scene.journal()
    # Three checks for drift, and a sync of nobody's.
    time.sleep(7)
    assert scene.journal() == before
