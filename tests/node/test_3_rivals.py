"""Whatever else touches the nat table: within five seconds our jumps are the first again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.node.cases import FIRST, PROXY_IS_BACK, REPAIRED, external
from tests.node.scene import Scene, is_answer
from tests.support.waiting import eventually

_JUMP = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_BOTH = "for family in iptables ip6tables; do for chain in PREROUTING OUTPUT; do"
_DONE = "done; done"


@dataclass(frozen=True)
class Rival:
    """What it does; what has to come true then, before the five seconds; what ends it."""

    does: str
    until: str = "true"
    afterwards: str = ""


RIVALS = {
    "kube-proxy is restarted": Rival("systemctl restart kube-proxy", PROXY_IS_BACK),
    "kube-proxy cleans up and starts again": Rival(
        "systemctl stop kube-proxy"
        " && { /bed/kube-proxy --cleanup --config=/etc/kubernetes/kube-proxy.yaml || true; }"
        " && systemctl start kube-proxy",
        PROXY_IS_BACK,
    ),
    "kube-proxy's jumps are deleted and put ahead of ours": Rival(
        f"{_BOTH} $family -t nat -D $chain {_JUMP}; $family -t nat -I $chain 1 {_JUMP}; {_DONE}"
    ),
    "our jumps are deleted": Rival(f"{_BOTH} $family -t nat -D $chain -j IPVS_$chain; {_DONE}"),
    "our chains are flushed": Rival(f"{_BOTH} $family -t nat -F IPVS_$chain; {_DONE}"),
    "netfilter-persistent restores rules without ours": Rival(
        "netfilter-persistent save && sed -i '/IPVS_/d' /etc/iptables/rules.v*"
        " && netfilter-persistent reload",
        afterwards="rm /etc/iptables/rules.v*",
    ),
    "nftables is restarted": Rival("systemctl restart nftables", PROXY_IS_BACK),
    # It gives an answer within a minute or not at all, and its start takes almost as long.
    "firewalld is reloaded": Rival(
        "systemctl start firewalld && until firewall-cmd --state; do sleep 1; done"
        " && firewall-cmd --reload",
        afterwards="systemctl stop firewalld",
    ),
    "ufw is enabled": Rival("ufw --force enable", afterwards="ufw disable"),
}


# In a quick run on both machines.
_IN_EVERY_RUN = ("kube-proxy is restarted", "nftables is restarted")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _IN_EVERY_RUN else pytest.mark.quick("debian12"))
        for name in RIVALS
    ],
)
def test_ours_are_the_first_again(scene: Scene, name: str) -> None:
    rival = RIVALS[name]
    scene.machine.run(rival.does, timeout=300)
    scene.wait(rival.until, 60)
    try:
        took = scene.wait(FIRST, REPAIRED)
    finally:
        scene.machine.run(rival.afterwards)
    print(f"first again after {took:.1f} s")
    scene.wait(FIRST, REPAIRED)
    scene.wait(PROXY_IS_BACK, 60)
    clients = external(scene.services["web"], "host", "pod")
    eventually(lambda: all(map(is_answer, scene.ask(*clients))), "everybody", 90, pause=1)
