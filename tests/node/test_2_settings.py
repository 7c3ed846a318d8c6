"""Settings, and where a Service's pods are."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.node.cases import external, leads_on
from tests.node.scene import (
    NODE_ADDRESS,
    POD,
    REMOTE_POD,
    VERSIONS,
    Connection,
    Scene,
    Service,
    is_answer,
)
from tests.node.shown import RELOAD
from tests.support.waiting import eventually

NEAR = {4: "10.19.20.202", 6: "fd00:10:19:20::202"}
CONFIG = "/etc/ipvs-node-agent/config.yaml"
ARGUMENTS = "/etc/default/ipvs-node-agent"


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


@pytest.fixture
def settings(scene: Scene) -> Iterator[None]:
    """Whatever is done to what the operator writes is undone."""
    files = f"{CONFIG} {ARGUMENTS}"
    scene.machine.run(f"tar --create --absolute-names --file=/root/settings.tar {files}")
    yield
    scene.machine.run("tar --extract --absolute-names --file=/root/settings.tar")
    again = "read the configuration again"
    before = str(scene.journal()).count(again)
    scene.machine.run(RELOAD)
    # systemd may not wait for it.
    eventually(lambda: str(scene.journal()).count(again) > before, again)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            f"echo 'masquerade: Some' >>{CONFIG}",
            f"configuration {CONFIG} line 4: masquerade: wanted All or HostOnly",
        ),
        (
            f"echo 'IPVS_NODE_AGENT_ARGS=--config /etc/absent.yaml --log-level debug' >{ARGUMENTS}",
            "configuration /etc/absent.yaml: no such file",
        ),
    ],
    ids=["a bad file", "another file"],
)
def test_a_reload_of_a_bad_configuration_fails_with_its_sentence_and_nothing_changes(
    scene: Scene, change: str, why: str
) -> None:
    pid = scene.agent("MainPID")
    scene.machine.run(change)
    assert scene.machine.attempt(RELOAD).status
    said = eventually(lambda: [line for line in scene.journal() if why in line], why)
    assert [line.partition(":")[0] for line in said] == ["ipvs-node-agent"]
    assert (scene.agent("ActiveState"), scene.agent("MainPID")) == ("active", pid)


@pytest.fixture(scope="module")
def near(scene: Scene) -> Iterator[Service]:
    """A Service whose clients inside of the cluster prefer its pods on their own node."""
    with scene.service("near", NEAR, internalTrafficPolicy="Local") as made:
        scene.wait(leads_on(NEAR))
        yield made


@pytest.mark.quick("debian13")
@pytest.mark.parametrize(
    ("local", "remote", "everywhere", "nearby"),
    [
        pytest.param(True, True, [POD, REMOTE_POD], [POD], id="both"),
        pytest.param(True, False, [POD], [POD], id="here"),
        # As the Service has external IPs, kube-proxy takes what there is (since 1.24).
        pytest.param(False, True, [REMOTE_POD], [REMOTE_POD], id="there"),
    ],
)
def test_access_works_wherever_the_endpoints_are(
    scene: Scene,
    near: Service,
    local: bool,
    remote: bool,
    everywhere: list[dict[int, str]],
    nearby: list[dict[int, str]],
) -> None:
    scene.set_endpoints(local=local, remote=remote)
    # What a ClusterIP leads to with `internalTrafficPolicy: Cluster`, and with Local.
    scene.wait_for_servers(scene.services["web"], *everywhere)
    scene.wait_for_servers(near, *nearby)
    # IPVS takes one endpoint after the other.
    clients = external("host", "pod") * 2
    clients += [Connection(client, NEAR[v]) for client in ("host", "pod") for v in VERSIONS] * 2
    answers = scene.ask(*clients)
    assert all(map(is_answer, answers)), dict(zip(map(str, clients), answers))


def test_nothing_is_said_while_nothing_happens(scene: Scene) -> None:
    before = scene.journal()
    # Three checks for drift, and a sync of nobody's.
    time.sleep(7)
    assert scene.journal() == before
