"""Removing, purging, and a node whose iptables is the legacy one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.cases import READY, READY_SECONDS, apt, external, put_package
from tests.node.readme import INSTALL, PURGE, REMOVE
from tests.node.scene import NODE_ADDRESS, VERSIONS, Scene, is_answer

_TRACES = """\
find / -xdev -name '*ipvs[-_]node[-_]agent*' -not -path '/root/debs/*' -not -path '/proc/*'
find /run -xdev -name '*ipvs-node-agent*' -not -path '/run/systemd/*'
systemctl list-units --all --no-legend 'ipvs-node-agent*'
"""
# Everything that kube-proxy has, in the other backend.
_MOVE = """\
systemctl stop kube-proxy
/bed/kube-proxy --cleanup --config=/etc/kubernetes/kube-proxy.yaml || true
nft flush ruleset
for family in iptables ip6tables; do update-alternatives --set $family /usr/sbin/$family-{backend}; done
iptables -t mangle -N KUBE-IPTABLES-HINT
systemctl start kube-proxy
"""  # noqa: E501
_PROXY_IS_UP = (
    "iptables-save -t nat | grep -q KUBE-SERVICES && ip6tables-save -t nat | grep -q KUBE-SERVICES"
)


def test_removing_takes_our_chains_and_jumps_and_nothing_else(scene: Scene) -> None:
    apt(scene, REMOVE)
    assert not scene.ours()
    for version in VERSIONS:
        assert sorted(scene.nat(version)) == sorted(scene.nat_without_us[version])
    assert "masquerade" in scene.machine.run("cat /etc/ipvs-node-agent/config.yaml")
    web = external(scene.services["web"], "host")
    assert not any(map(is_answer, scene.ask(*web)))


def test_installing_again_works_and_purging_leaves_no_file(scene: Scene) -> None:
    put_package(scene, "this")
    apt(scene, INSTALL)
    scene.wait(READY, READY_SECONDS)
    web = external(scene.services["web"], "host")
    assert scene.ask(*web) == list(NODE_ADDRESS.values())
    apt(scene, PURGE)
    assert not scene.ours()
    assert scene.machine.run(_TRACES) == ""


@pytest.fixture
def legacy(scene: Scene) -> Iterator[None]:
    """A node where kubelet, kube-proxy and administrator use iptables-legacy."""
    scene.machine.run(_MOVE.format(backend="legacy"))
    scene.wait(_PROXY_IS_UP, 60)
    yield
    scene.machine.run(_MOVE.format(backend="nft"))


@pytest.mark.usefixtures("legacy")
def test_on_legacy_it_installs_restarts_and_is_removed(scene: Scene) -> None:
    apt(scene, INSTALL)
    scene.wait(READY, READY_SECONDS)
    web = external(scene.services["web"], "host", "pod")
    assert scene.ask(*web) == [*NODE_ADDRESS.values()] * 2
    assert scene.ours()
    assert "IPVS_" not in scene.machine.run("iptables-nft-save; ip6tables-nft-save")
    with scene.stream(*web) as results:
        scene.machine.run("systemctl restart ipvs-node-agent")
        scene.wait(READY, READY_SECONDS)
    assert [(result["bad"], result["twice"]) for result in results] == [([], 0)] * 4
    apt(scene, PURGE)
    assert not scene.ours()
