"""A reboot and a power cut: everything is back without a hand, in whatever order it starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.node.cases import FIRST, PROXY_IS_BACK, READY, READY_SECONDS, external
from tests.node.scene import EXTERNAL, VERSIONS, Attempt, Connection, Scene, is_answer
from tests.support.waiting import eventually

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
# Our own mark has given way to kube-proxy's.
_KUBERNETES_MARKS = """for family in iptables ip6tables; do
    $family-save -t nat | grep -q 'IPVS_OUTPUT .*-j KUBE-MARK-MASQ' || exit 1
done"""


@contextmanager
def booting(scene: Scene, unit: str, drop_in: str) -> Iterator[list[Attempt]]:
    """Meanwhile the machine is to boot, with a drop-in; the list has what was tried since then."""
    # kube-proxy takes one family after the other.
    clusters = [Connection("pod", ip) for ip in scene.services["web"].cluster.values()]
    folder = f"/etc/systemd/system/{unit}.service.d"
    scene.machine.write(f"{folder}/order.conf", drop_in)
    with scene.watched(*external("pod", "host"), *clusters) as attempts:
        # What a power cut comes too early for is as if it had not been done.
        scene.machine.run("systemctl enable -q watch && sync")
        yield attempts
        scene.wait(READY, READY_SECONDS)
        scene.wait(FIRST)
        eventually(lambda: all(map(is_answer, scene.ask(*clusters))), "kube-proxy", 180, pause=1)
        scene.wait(PROXY_IS_BACK, READY_SECONDS)
        scene.wait(_KUBERNETES_MARKS, 60)
    scene.machine.run(f"systemctl disable -q watch && rm -r {folder}; systemctl daemon-reload")


def proxy_up(attempts: list[Attempt], cluster_ip: str) -> float:
    """When kube-proxy had made this ClusterIP."""
    return min(a.ended for a in attempts if a.good and a.connection.address == cluster_ip)


def failures(attempts: list[Attempt], client: str, version: int, since: float) -> list[Attempt]:
    """The connections to the external IP, begun after `since`, that did not come about."""
    wanted = Connection(client, EXTERNAL[version])
    found = [a for a in attempts if a.connection == wanted and a.began >= since]
    assert found
    return [attempt for attempt in found if not attempt.good]


@pytest.mark.quick("debian13")
def test_a_reboot_with_the_agent_before_kube_proxy(scene: Scene) -> None:
    with booting(scene, "kube-proxy", _AGENT_IS_FIRST) as attempts:
        print(f"rebooted in {scene.machine.reboot():.0f} s")
    for version in VERSIONS:
        up = proxy_up(attempts, scene.services["web"].cluster[version])
        for client in ("pod", "host"):
            assert not failures(attempts, client, version, up)


@pytest.mark.quick("debian12")
def test_a_power_cut_with_kube_proxy_before_the_agent(scene: Scene) -> None:
    with booting(scene, "ipvs-node-agent", _PROXY_IS_FIRST) as attempts:
        scene.machine.cut_power()
        print(f"booted in {scene.machine.start():.0f} s")
    ready = float(scene.agent("ActiveEnterTimestampMonotonic")) / 1e6
    for version in VERSIONS:
        up = proxy_up(attempts, scene.services["web"].cluster[version])
        # The external IP's virtual server comes with the same sync, behind the ClusterIP's.
        assert not failures(attempts, "pod", version, up + 1)
        # Before that nobody could help the node itself.
        assert up < ready
        assert not failures(attempts, "host", version, ready)
