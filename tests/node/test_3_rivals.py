"""Whatever else touches the nat table: within five seconds our jumps are the first again.

What one can do with iptables alone is tried in tests/kernel/test_drift.py.
"""

from __future__ import annotations

import pytest

from tests.node.cases import FIRST, PROXY_IS_BACK, REPAIRED, external
from tests.node.scene import Scene, is_answer
from tests.support.waiting import eventually

_CLEANED_UP = """\
systemctl stop kube-proxy &&
{ /bed/kube-proxy --cleanup --config=/etc/kubernetes/kube-proxy.yaml || true; } &&
systemctl start kube-proxy"""
# Rules without ours.
_RESTORED = """\
netfilter-persistent save && sed -i '/IPVS_/d' /etc/iptables/rules.v* &&
netfilter-persistent reload"""
# It gives an answer within a minute or not at all, and its start takes almost as long.
_FIREWALLD = """\
systemctl start firewalld && until firewall-cmd --state; do sleep 1; done &&
firewall-cmd --reload"""
# It does not wait for the lock of iptables-legacy, which the agent or kube-proxy may have, and then
# fails; an operator types it again.
_AGAIN = "for try in 1 2 3 4 5; do ufw {} && exit; sleep 1; done; false"
_ON_DEBIAN12 = pytest.mark.quick("debian12")


@pytest.mark.parametrize(
    ("does", "until", "afterwards"),
    [
        pytest.param("systemctl restart kube-proxy", PROXY_IS_BACK, "", id="kube-proxy"),
        pytest.param(_CLEANED_UP, PROXY_IS_BACK, "", id="cleanup", marks=_ON_DEBIAN12),
        pytest.param(
            *(_RESTORED, "true", "rm /etc/iptables/rules.v*"),
            id="netfilter-persistent",
            marks=_ON_DEBIAN12,
        ),
        pytest.param("systemctl restart nftables", PROXY_IS_BACK, "", id="nftables"),
        pytest.param(
            *(_FIREWALLD, "true", "systemctl stop firewalld"),
            id="firewalld",
            marks=_ON_DEBIAN12,
        ),
        pytest.param(
            *(_AGAIN.format("--force enable"), "true", _AGAIN.format("disable")),
            id="ufw",
            marks=_ON_DEBIAN12,
        ),
    ],
)
def test_ours_are_the_first_again(scene: Scene, does: str, until: str, afterwards: str) -> None:
    scene.machine.run(does, timeout=300)
    scene.wait(until, 60)
    try:
        took = scene.wait(FIRST, REPAIRED)
    finally:
        scene.machine.run(afterwards)
    print(f"first again after {took:.1f} s")
    scene.wait(FIRST, REPAIRED)
    scene.wait(PROXY_IS_BACK, 60)
    clients = external("host", "pod")
    eventually(lambda: all(map(is_answer, scene.ask(*clients))), "everybody", 90, pause=1)
