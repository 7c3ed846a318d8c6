"""A reboot and a power cut: everything is back without a hand, in whatever order it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.node.cases import FIRST, PROXY_IS_BACK, READY, READY_SECONDS, external
from tests.node.scene import VERSIONS, Connection, Scene, is_answer
from tests.support.waiting import eventually

pytestmark = pytest.mark.quick("debian13")
_AGENT_IS_FIRST = """\
[Service]
ExecStartPre=/bin/sh -c 'until systemctl show -p StatusText ipvs-node-agent | grep -q "In sync\\\\|Cannot program"; do sleep 0.2; done'
TimeoutStartSec=infinity
"""  # noqa: E501
_PROXY_IS_FIRST = """\
[Unit]
After=kube-proxy.service
[Service]
ExecStartPre=+/bin/sh -c 'until [ "$$(ipvsadm -Sn | grep -c -- "-r .*:8080")" -ge 4 ]; do sleep 0.2; done'
"""  # noqa: E501


_KUBERNETES_MARKS = """for family in iptables ip6tables; do
    $family-save -t nat | grep -q 'IPVS_OUTPUT .*-j KUBE-MARK-MASQ' || exit 1
done"""


@dataclass(frozen=True)
class Attempt:
    """One connection; times are seconds since the boot."""

    connection: Connection
    began: float
    ended: float
    saw: str


@contextmanager
def booting(scene: Scene, unit: str, drop_in: str) -> Iterator[list[Attempt]]:
    """Meanwhile the machine is to boot, with a drop-in; the list has what was tried since then."""
    web = scene.services["web"]
    watched = external(web, "pod", "host")
    watched += [Connection("pod", web.cluster[version]) for version in VERSIONS]
    attempts: list[Attempt] = []
    folder = f"/etc/systemd/system/{unit}.service.d"
    scene.machine.write(f"{folder}/order.conf", drop_in)
    scene.machine.write("/etc/watch.json", json.dumps([each.raw for each in watched]))
    # What a power cut comes too early for is as if it had not been done.
    scene.machine.run("systemctl enable -q watch && sync")
    yield attempts
    scene.wait(READY, READY_SECONDS)
    scene.wait(FIRST)
    # kube-proxy takes one family after the other.
    clusters = [Connection("pod", web.cluster[version]) for version in VERSIONS]
    eventually(lambda: all(map(is_answer, scene.ask(*clusters))), "kube-proxy", 180, pause=1)
    scene.wait(PROXY_IS_BACK, READY_SECONDS)
    # Our own mark has given way to kube-proxy's.
    scene.wait(_KUBERNETES_MARKS, 60)
    # Until everything has been tried once more.
    size = scene.machine.run("wc -l </run/watch.log").strip()
    scene.wait(f"[ $(wc -l </run/watch.log) -gt $(({size} + 4 * {len(watched)})) ]", 60)
    for line in scene.machine.run("cat /run/watch.log").splitlines():
        index, began, ended, saw = json.loads(line)
        attempts.append(Attempt(watched[index], began, ended, saw))
    scene.machine.run(
        f"systemctl disable -q --now watch && rm -r {folder}; systemctl daemon-reload"
    )


def proxy_up(attempts: list[Attempt], cluster_ip: str) -> float:
    """When kube-proxy had made this ClusterIP."""
    return min(a.ended for a in attempts if a.connection.address == cluster_ip and is_answer(a.saw))


def failures(attempts: list[Attempt], client: str, address: str, since: float) -> list[Attempt]:
    """The connections from there to there, begun after `since`, that did not come about."""
    wanted = Connection(client, address)
    found = [a for a in attempts if a.connection == wanted and a.began >= since]
    assert found
    return [attempt for attempt in found if not is_answer(attempt.saw)]


def test_a_reboot_with_the_agent_before_kube_proxy(scene: Scene) -> None:
    web = scene.services["web"]
    with booting(scene, "kube-proxy", _AGENT_IS_FIRST) as attempts:
        print(f"rebooted in {scene.machine.reboot():.0f} s")
    for version in VERSIONS:
        up = proxy_up(attempts, web.cluster[version])
        for client in ("pod", "host"):
            assert not failures(attempts, client, web.external[version], up)


def test_a_power_cut_with_kube_proxy_before_the_agent(scene: Scene) -> None:
    web = scene.services["web"]
    with booting(scene, "ipvs-node-agent", _PROXY_IS_FIRST) as attempts:
        scene.machine.cut_power()
        print(f"booted in {scene.machine.start():.0f} s")
    ready = float(scene.agent("ActiveEnterTimestampMonotonic")) / 1e6
    for version in VERSIONS:
        up = proxy_up(attempts, web.cluster[version])
        # The external IP's virtual server comes with the same sync, behind the ClusterIP's.
        assert not failures(attempts, "pod", web.external[version], up + 1)
        # Before that nobody could help the node itself.
        assert up < ready
        assert not failures(attempts, "host", web.external[version], ready)
