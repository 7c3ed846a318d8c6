"""`explain` and `--connect` say of real IPVS what becomes of real connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.cases import READY, READY_SECONDS, external
from tests.node.scene import EXTERNAL, POD, VERSIONS, Scene, is_answer
from tests.node.vm import Done

pytestmark = pytest.mark.quick("debian13")

NO_ANSWER = "no answer within 3 s"


def explained(scene: Scene, *options: str, version: int = 4) -> Done:
    """What it says of the external IP."""
    command = " ".join(("ipvs-node-agent explain", *options, EXTERNAL[version]))
    done = scene.machine.attempt(command, timeout=180)
    print(done.output)
    return done


def tried(text: str) -> dict[str, str]:
    """What became of connections in this output, by who tried, without his address."""
    found = {}
    for line in text.splitlines():
        _, between, rest = line.partition("connection: from ")
        if between:
            who, _, result = rest.partition(" to tcp port 80: ")
            found[who.replace("the ", "").split()[0]] = result
    return found


@pytest.fixture
def as_before_the_install(scene: Scene) -> Iterator[None]:
    """No agent runs, and there are no rules of any."""
    scene.machine.run("systemctl stop ipvs-node-agent && ipvs-node-agent cleanup")
    assert not scene.ours()
    yield
    scene.machine.run("systemctl start ipvs-node-agent")
    scene.wait(READY, READY_SECONDS)


@pytest.mark.usefixtures("as_before_the_install")
def test_without_rules_it_does_not_work_from_the_host_as_connections_show(scene: Scene) -> None:
    # kube-proxy leads the pod on by itself, since 1.24.
    assert [is_answer(each) for each in scene.ask(*external("host", "pod"))] == [
        *(False, False),
        *(True, True),
    ]
    done = explained(scene, "--connect")
    assert done.status == 1
    assert "systemctl start ipvs-node-agent" in done.output
    assert tried(done.output) == {"host": NO_ANSWER, "pod": "connected"}


@pytest.mark.parametrize("version", VERSIONS)
def test_with_the_agent_it_works_as_connections_show(scene: Scene, version: int) -> None:
    cluster_ip = scene.services["web"].cluster[version]
    done = explained(scene, "--connect", version=version)
    assert done.status == 0
    assert cluster_ip in done.output
    assert tried(done.output) == {"host": "connected", "pod": "connected"}
    assert f"from pod {POD[version]} " in done.output


def test_a_service_without_endpoints_has_no_real_server(scene: Scene) -> None:
    scene.set_endpoints(remote=False, local=False)
    try:
        done = explained(scene, "--connect")
        assert done.status == 1
        assert "has no real server that takes connections" in done.output
        assert "connected" not in tried(done.output).values()
    finally:
        scene.set_endpoints(remote=True, local=False)
    assert explained(scene).status == 0
