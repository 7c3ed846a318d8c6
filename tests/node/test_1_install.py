"""Installing: nothing to be done before, and nothing after."""

from __future__ import annotations

import pytest

from tests.node.cases import READY, READY_SECONDS, apt, pages, put_package
from tests.node.scene import (
    EXTERNAL,
    NODE_ADDRESS,
    OUTSIDE,
    POD,
    TARGET_PORT,
    VERSIONS,
    Connection,
    Scene,
    is_answer,
)
from tests.node.shown import INSTALL, JOURNAL, STATUS
from tests.support.places import REPOSITORY
from tests.support.promlint import faults, value

MASQUERADING = " && ".join(
    f"{family}-save -t nat | grep -q -e '-A KUBE-POSTROUTING .*-j MASQUERADE'"
    for family in ("iptables", "ip6tables")
)


@pytest.fixture(scope="module")
def connections(scene: Scene) -> dict[str, Connection]:
    """Who connects to what, by what it is; the Services have no endpoint on this node."""
    web, plain = scene.services["web"], scene.services["plain"]
    found = {}
    for version in VERSIONS:
        for client in ("host", "pod", "outside"):
            targets = {
                "web's external IP": (EXTERNAL[version], 80),
                "web's node port": (NODE_ADDRESS[version], web.node_port),
                "plain's node port": (NODE_ADDRESS[version], plain.node_port),
            }
            if client != "outside":
                targets["web's ClusterIP"] = (web.cluster[version], 80)
                targets["plain's ClusterIP"] = (plain.cluster[version], 80)
                targets["the outside"] = (OUTSIDE[version], TARGET_PORT)
            for name, (address, port) in targets.items():
                found[f"{client} to {name}, IPv{version}"] = Connection(client, address, port)
    return found


@pytest.fixture(scope="module")
def before(scene: Scene, connections: dict[str, Connection]) -> dict[str, str]:
    """What became of each connection before the agent was installed."""
    # IPVS has its servers before kube-proxy gets to what masquerades.
    scene.wait(MASQUERADING, 90)
    scene.nat_without_us.update({version: scene.nat(version) for version in VERSIONS})
    return scene.view(connections)


def test_without_the_agent_the_node_itself_does_not_reach_the_external_ip(
    before: dict[str, str],
) -> None:
    for version in VERSIONS:
        assert not is_answer(before[f"host to web's external IP, IPv{version}"])
        # kube-proxy since 1.24.
        assert before[f"pod to web's external IP, IPv{version}"] == POD[version]
        assert is_answer(before[f"host to web's ClusterIP, IPv{version}"])
        assert is_answer(before[f"pod to plain's node port, IPv{version}"])


def test_after_apt_install_the_external_ip_works_and_nothing_else_changed(
    scene: Scene, connections: dict[str, Connection], before: dict[str, str]
) -> None:
    put_package(scene, "this")
    apt(scene, INSTALL)
    scene.wait(READY, READY_SECONDS)
    expected = {
        f"{client} to web's external IP, IPv{version}": NODE_ADDRESS[version]
        for client in ("host", "pod")
        for version in VERSIONS
    }
    assert scene.view(connections) == {**before, **expected}


def test_systemctl_and_the_journal_tell_how_far_it_is(scene: Scene) -> None:
    status = scene.machine.run(f"{STATUS} --no-pager")
    assert "active (running)" in status
    assert "In sync; Services with rules: 1 in IPv4, 1 in IPv6" in status
    journal = scene.machine.run(f"{JOURNAL} --no-pager")
    assert f"ready: the kernel (iptables-{scene.backend}) holds all rules" in journal


def test_where_memory_runs_out_pods_go_before_the_agent(scene: Scene) -> None:
    containerds = "-999"
    assert (
        scene.machine.read(f"/proc/{scene.agent('MainPID')}/oom_score_adj").strip() == containerds
    )


def test_status_metrics_and_health_work_in_the_confined_service(scene: Scene) -> None:
    scene.machine.run("useradd --system --no-create-home --groups adm reader")
    for user in ("root", "reader"):
        status = scene.machine.run(f"setpriv --reuid {user} --init-groups ipvs-node-agent status")
        assert status.startswith("In sync since ")
        assert "default/web" in status
    refused = scene.machine.attempt("setpriv --reuid nobody --clear-groups ipvs-node-agent status")
    assert refused.status == 3
    *health, metrics = pages(scene, "healthz", "readyz", "metrics")
    assert [text.strip() for text in health] == ["ok", "ok"]
    assert value(metrics, "ipvs_node_agent_services", ip_family="IPv4") == 1
    seen = {"namespace": "default", "service": "web"}
    for path in ("pod", "host"):
        assert value(metrics, "ipvs_node_agent_service_packets_total", **seen, path=path) > 0
    assert not faults(metrics)


@pytest.mark.quick("debian12")
def test_the_packages_own_smoke_test_passes_and_starts_the_service(scene: Scene) -> None:
    for name in ("debian/tests/smoke", "tests/data/two-services.yaml"):
        scene.machine.write(f"/root/package/{name}", (REPOSITORY / name).read_text(), "755")
    pid = scene.agent("MainPID")
    command = "cd /root/package && AUTOPKGTEST_TMP=/root/package debian/tests/smoke 2>&1"
    scene.machine.run(command, timeout=2 * READY_SECONDS)
    scene.wait(READY, READY_SECONDS)
    assert scene.agent("MainPID") != pid
