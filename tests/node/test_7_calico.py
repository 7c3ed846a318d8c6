"""A node whose network plugin is Calico, with its own IPAM, and felix who wants to be first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.node.cases import come_to, external, repairs
from tests.node.scene import NODE_ADDRESS, OUTSIDE, TARGET_PORT, VERSIONS, Connection, Scene
from tests.support.waiting import eventually

# One is outside the Node's pod CIDR, and one inside by chance.
PODS = {
    "calico-1": {4: "10.240.77.5", 6: "fd00:10:240:77::5"},
    "calico-2": {4: "10.240.2.180", 6: "fd00:10:240:2::b4"},
}
_CONFIG = "/etc/cni/net.d/10-calico.conflist"
_PLUGINS = [{"type": "calico", "ipam": {"type": "calico-ipam"}}, {"type": "portmap"}]
_BLOCKS = ("10.240.77.0/26", "fd00:10:240:77::/122")
_GATEWAY = {4: "169.254.1.1", 6: "fe80::ecee:eeff:feee:eeee"}
# A pod as Calico's CNI plugin makes it: NAMESPACE DEVICE IPV4 IPV6.
_POD = f"""\
pod() {{
    ip netns add $1 && ip link add $2 type veth peer name eth0 netns $1
    sysctl -qw net.ipv4.conf.$2.proxy_arp=1 net.ipv4.neigh.$2.proxy_delay=0
    ip address add {_GATEWAY[6]}/64 dev $2 nodad && ip link set $2 up
    ip -n $1 link set lo up && ip -n $1 link set eth0 up
    ip -n $1 address add $3/32 dev eth0 && ip -n $1 address add $4/128 dev eth0 nodad
    ip -n $1 route add {_GATEWAY[4]} dev eth0 scope link
    ip -n $1 route add default via {_GATEWAY[4]}
    ip -n $1 route add default via {_GATEWAY[6]} dev eth0
    ip route add $3 dev $2 scope link && ip route add $4 dev $2
}}
"""
# An hour's worth of its looks: seven in its first minutes, and one every 90 seconds.
_LOOKS = 46
_LOG = "/run/felix.log"
# Its jump is the first rule of both chains in both families, and ours the second.
_BEHIND = """for family in iptables ip6tables; do
    for chain in PREROUTING OUTPUT; do
        $family-save -t nat | grep -e "^-A $chain " | head -n 2 | tr '\\n' ' ' |
            grep -q -e "-j cali-$chain .*-j IPVS_$chain " || exit 1
    done
done"""


@pytest.fixture(scope="module", autouse=True)
def _calico(scene: Scene) -> Iterator[None]:
    """Its configuration, and its pods; with the default configuration of the agent's."""
    scene.machine.write(_CONFIG, json.dumps({"name": "k8s-pod-network", "plugins": _PLUGINS}))
    blocks = [f"ip route add blackhole {block} proto 80" for block in _BLOCKS]
    pods = [f"pod {name} cali{i:011x} {ip[4]} {ip[6]}" for i, (name, ip) in enumerate(PODS.items())]
    scene.machine.run("\n".join(["set -eu", _POD, *blocks, *pods]))
    scene.machine.run("systemctl start answer@host")
    yield
    away = [f"ip netns delete {name}" for name in PODS]
    away += [f"ip route delete blackhole {block}" for block in _BLOCKS]
    scene.machine.run("; ".join([f"rm -r {_CONFIG}", *away, "systemctl stop answer@host"]))


@pytest.mark.quick("debian12")
def test_calicos_pods_reach_the_external_ip_and_nobody_elses_port_is_taken(scene: Scene) -> None:
    wanted = {
        each: NODE_ADDRESS[4 if "." in each.address else 6] for each in external("host", *PODS)
    }
    for name, own in PODS.items():
        for version in VERSIONS:
            web = scene.services["web"]
            for address, port in (
                (web.cluster[version], 80),
                (NODE_ADDRESS[version], TARGET_PORT),
                (OUTSIDE[version], TARGET_PORT),
            ):
                wanted[Connection(name, address, port)] = own[version]
    come_to(scene, wanted)
    assert "pods are matched by interface: cali+" in scene.journal()


@contextmanager
def felix(scene: Scene) -> Iterator[None]:
    """Calico's agent on the node, meanwhile."""
    scene.machine.run(f"systemd-run -q --unit=felix python3 -B /bed/felix.py insist {_LOG}")
    scene.wait(f"[ -s {_LOG} ]")
    yield
    scene.machine.run("systemctl stop felix; python3 -B /bed/felix.py leave")


@pytest.mark.quick("debian12")
def test_felix_is_first_and_nobody_fights(scene: Scene) -> None:
    before = repairs(scene), scene.journal()
    connections = external("host", "calico-1")

    def looks() -> list[str]:
        return scene.machine.read(_LOG).split()

    with scene.watched(*connections) as attempts, felix(scene):
        eventually(lambda: len(looks()) >= _LOOKS, "an hour", 180, pause=2)
        # Once in either family, at its start.
        assert looks()[-1] == "2"
        scene.wait(_BEHIND, 1)
        assert (repairs(scene), scene.journal()) == before
    seen = {(attempt.connection, attempt.saw) for attempt in attempts}
    assert seen == set(zip(connections, [*NODE_ADDRESS.values()] * 2))
