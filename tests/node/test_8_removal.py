"""Removing, purging, and a node whose iptables is the legacy one."""

from __future__ import annotations

import pytest

from tests.node import shown
from tests.node.cases import (
    PROXY_IS_BACK,
    READY,
    READY_SECONDS,
    apt,
    external,
    put_package,
    restarted,
)
from tests.node.scene import KUBELET_CONF, NODE_ADDRESS, USE_LEGACY, VERSIONS, Scene, is_answer

_TRACES = """\
find / -xdev -name '*ipvs[-_]node[-_]agent*' -not -path '/root/debs/*' -not -path '/proc/*'
find /run -xdev -name '*ipvs-node-agent*' -not -path '/run/systemd/*'
systemctl list-units --all --no-legend 'ipvs-node-agent*'
"""
# Everything that kube-proxy and the kubelet have, in the other backend.
_TO_LEGACY = f"""\
systemctl stop kube-proxy
/bed/kube-proxy --cleanup --config=/etc/kubernetes/kube-proxy.yaml || true
nft flush ruleset
{USE_LEGACY}iptables -t mangle -N KUBE-IPTABLES-HINT
systemctl start kube-proxy
"""


def test_removing_takes_our_chains_and_jumps_and_nothing_else(scene: Scene) -> None:
    apt(scene, shown.REMOVE)
    assert not scene.ours()
    for version in VERSIONS:
        assert sorted(scene.nat(version)) == sorted(scene.nat_without_us[version])
    assert "ipvs-node-agent.yaml" in scene.machine.run("cat /etc/ipvs-node-agent/config.yaml")
    web = external("host")
    assert not any(map(is_answer, scene.ask(*web)))


@pytest.fixture(scope="module")
def legacy(scene: Scene) -> None:
    """A node where kubelet, kube-proxy and administrator use iptables-legacy."""
    scene.machine.run(_TO_LEGACY)
    scene.wait(PROXY_IS_BACK, 90)


@pytest.mark.quick("debian12")
@pytest.mark.usefixtures("legacy")
def test_masked_it_is_installed_and_looked_at_before_it_does_anything(scene: Scene) -> None:
    put_package(scene, "this")
    scene.machine.run(shown.MASK)
    apt(scene, shown.INSTALL)
    assert scene.agent("ActiveState") == "inactive"
    check = scene.machine.attempt(shown.CHECK)
    failed = [line for line in check.output.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["agent:", "rules:"]
    diff = scene.machine.attempt(shown.DIFF)
    assert diff.status == 1
    assert "-A IPVS_OUTPUT " in diff.output
    assert not scene.ours()


@pytest.mark.quick("debian12")
def test_on_a_node_that_has_not_joined_yet_it_waits_calmly(scene: Scene) -> None:
    scene.machine.run(f"rm {KUBELET_CONF}; {shown.UNMASK} && {shown.ENABLE}")
    put_package(scene, "next")
    assert "started, and not ready yet" in apt(scene, shown.INSTALL)
    scene.wait(
        "systemctl show -p StatusText ipvs-node-agent | grep -q 'Waiting: kubeconfig'",
        READY_SECONDS,
    )
    status = scene.machine.attempt(f"{shown.STATUS} --no-pager").output
    assert "activating (start)" in status
    assert f"Waiting: kubeconfig {KUBELET_CONF}" in status
    assert scene.machine.run("systemctl is-enabled ipvs-node-agent").strip() == "enabled"
    # As needrestart does it after an upgrade of a library; it waits for nothing.
    pid = scene.agent("MainPID")
    scene.machine.run("timeout 15 /etc/needrestart/restart.d/ipvs-node-agent.service")
    scene.wait(
        f'[ "$(systemctl show --value -p MainPID ipvs-node-agent)" != {pid} ]', READY_SECONDS
    )
    scene.give_kubelet_conf()
    scene.wait(READY, READY_SECONDS)
    assert scene.agent("NRestarts") == "0"
    assert scene.agent("StatusText") == "In sync; Services with rules: 1 in IPv4, 1 in IPv6"


@pytest.mark.quick("debian12")
def test_on_legacy_all_is_in_legacy_and_a_restart_fails_no_connection(scene: Scene) -> None:
    web = external("host", "pod")
    assert scene.ask(*web) == [*NODE_ADDRESS.values()] * 2
    assert scene.ours()
    assert "IPVS_" not in scene.machine.run("iptables-nft-save; ip6tables-nft-save")
    restarted(scene, shown.RESTART)


def test_purging_leaves_no_rule_and_no_file(scene: Scene) -> None:
    apt(scene, shown.PURGE)
    assert not scene.ours()
    assert scene.machine.run(_TRACES) == ""
