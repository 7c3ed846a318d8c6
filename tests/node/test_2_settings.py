"""Settings, and where a Service's pods are."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.node.cases import external
from tests.node.scene import NODE_ADDRESS, POD, VERSIONS, Scene, is_answer
from tests.node.shown import RELOAD
from tests.support.waiting import eventually

CONFIG = "/etc/ipvs-node-agent/config.yaml"


@pytest.fixture
def host_only(scene: Scene) -> Iterator[None]:
    """`masquerade: HostOnly`, as an operator sets it."""
    scene.machine.run(f"cp -p {CONFIG} /root/config && echo 'masquerade: HostOnly' >>{CONFIG}")
    scene.machine.run(RELOAD)
    yield
    scene.machine.run(f"cp -p /root/config {CONFIG}")
    scene.machine.run(RELOAD)
    pods = external(scene.services["web"], "pod")
    eventually(
        lambda: scene.ask(*pods) == list(NODE_ADDRESS.values()), "masquerade: All again", pause=1
    )


@pytest.mark.usefixtures("host_only")
def test_with_host_only_the_backend_sees_the_pods_own_address(scene: Scene) -> None:
    clients = external(scene.services["web"], "pod", "host")
    wanted = [*POD.values(), *NODE_ADDRESS.values()]
    eventually(lambda: scene.ask(*clients) == wanted, f"the server sees {wanted}", pause=1)


@pytest.mark.quick("debian13")
@pytest.mark.parametrize(
    ("local", "remote"), [(True, True), (True, False), (False, True)], ids=["both", "here", "there"]
)
def test_access_works_wherever_the_endpoints_are(scene: Scene, local: bool, remote: bool) -> None:
    scene.set_endpoints(local=local, remote=remote)
    # IPVS takes one endpoint after the other.
    clients = external(scene.services["web"], "host", "pod") * 2
    answers = scene.ask(*clients)
    assert all(map(is_answer, answers)), dict(zip(map(str, clients), answers))


def test_a_changed_external_ip_is_followed(scene: Scene) -> None:
    web = scene.services["web"]
    moved = {4: "10.19.20.204", 6: "fd00:10:19:20::204"}
    for addresses in (moved, web.external):
        scene.set_ingress("web", *addresses.values())
        for version in VERSIONS:
            command = "iptables" if version == 4 else "ip6tables"
            scene.wait(f"{command} -t nat -S IPVS_OUTPUT | grep -F ' {addresses[version]}/'")
            shown = scene.machine.run(f"{command} -t nat -S IPVS_OUTPUT").count("-j DNAT")
            assert shown == 1


def test_nothing_is_said_while_nothing_happens(scene: Scene) -> None:
    before = scene.journal()
    # Three checks for drift, and a sync of nobody's.
    time.sleep(7)
    assert scene.journal() == before
