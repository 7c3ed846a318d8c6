"""Every change of a Service or of the Node leaves exactly the wanted rules in the kernel."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6
from tests.kernel.conftest import EVERYWHERE, OTHER, WEB, WEB6, Bed, Entry
from tests.support.cluster import node
from tests.support.kubeproxy import add_device
from tests.support.tables import add_foreign_rules, foreign, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

EXTERNAL, _, CLUSTER = WEB


def at(external: str) -> Entry:
    return (external, "web", CLUSTER)


# The rules that the other one has, step by step; unit/sync/test_agent.py has all transitions.
CHANGES: dict[str, list[list[Entry]]] = {
    "external IP added, changed and removed": [
        [WEB, at("10.19.20.202")],
        [WEB, at("10.19.99.1")],
        [at("10.19.99.1")],
    ],
    "dual-stack, IPv6 alone, gone, and back with another ClusterIP": [
        [WEB, WEB6],
        [WEB6],
        [],
        [(EXTERNAL, "web", "10.231.7.7")],
    ],
}


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(steps, id=name, marks=[EVERYWHERE] if "added" in name else [])
        for name, steps in CHANGES.items()
    ],
)
def test_changes_of_a_service(running: Bed, steps: list[list[Entry]]) -> None:
    for entries in steps:
        if entries:
            running.put(*entries)
        else:
            running.delete("web")
        running.expect(OTHER, *entries)


def test_a_service_that_is_deleted_while_the_agent_is_down_or_runs(running: Bed) -> None:
    assert running.agent.stop() == 0
    running.expect(WEB, OTHER)
    running.delete("web")
    running.agent.start()
    running.expect(OTHER)
    running.delete("other")
    running.expect()


def send_one_packet(bed: Bed) -> list[str]:
    """Sends a packet from the host to Service web; the host chain's rules for it, with counters."""
    bed.namespace.run("ip", "address", "replace", f"{EXTERNAL}/32", "dev", "kube-ipvs0")
    bed.namespace.run("ip", "route", "replace", f"{CLUSTER}/32", "dev", "lo")
    with bed.namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (EXTERNAL, 9))
    counters = host_counters(bed)
    assert counters[0].startswith("[1:")
    return counters


def host_counters(bed: Bed) -> list[str]:
    """The host chain's rules for Service web, with their counters."""
    lines = bed.namespace.run(f"iptables-{bed.backend}-save", "-c", "-t", "nat").splitlines()
    return [line for line in lines if "IPVS_OUTPUT" in line and EXTERNAL in line]


def test_a_restart_writes_nothing_and_counters_go_on(running: Bed) -> None:
    add_device(running.namespace)
    before = send_one_packet(running)
    running.agent.stop()
    written = running.agent.log.count("wrote")
    running.agent.start()
    assert running.agent.log.count("wrote") == written
    assert host_counters(running) == before


def test_a_change_is_one_write_of_the_chains_that_differ(running: Bed) -> None:
    """Another pod CIDR is no business of the host's chain, whose counters go on."""
    add_device(running.namespace)
    before = send_one_packet(running)

    def writes() -> list[str]:
        lines = [line for line in running.agent.log.splitlines() if "wrote" in line]
        return [line.partition("INFO ")[2].rpartition(" in ")[0] for line in lines]

    eventually(lambda: "ready: " in running.agent.log)
    earlier = writes()
    running.api.put(node("10.240.9.0/24"))
    running.expect(WEB, OTHER, pod_cidrs=["10.240.9.0/24"])
    eventually(lambda: len(writes()) > len(earlier))
    assert writes() == [*earlier, "IPv4: wrote 1 chain, 4 rules"]
    assert host_counters(running) == before


@EVERYWHERE
def test_foreign_rules_stay_byte_for_byte(bed: Bed) -> None:
    for family in FAMILIES:
        add_foreign_rules(bed.namespace, family, bed.backend)

    def others() -> list[list[str]]:
        return [foreign(saved(bed.namespace, family, bed.backend)) for family in FAMILIES]

    before = others()
    assert len(before[0]) > 30
    bed.put(WEB, WEB6)
    bed.agent.start()
    bed.expect(WEB, WEB6)
    assert others() == before, "after a run"
    bed.put(OTHER)
    bed.expect(WEB, WEB6, OTHER)
    assert others() == before, "after a change"
    bed.agent.stop()
    bed.agent.start()
    assert others() == before, "after a restart"
    bed.agent.stop()
    for _ in range(2):
        done = bed.agent.call("cleanup")
        assert (done.returncode, done.stderr) == (0, "")
        assert others() == before, "after a cleanup"
        assert bed.ours(IPV4) == bed.ours(IPV6) == []


@EVERYWHERE
def test_diff_shows_what_run_would_change_and_changes_nothing(bed: Bed) -> None:
    bed.put(WEB)
    pending = bed.agent.call("diff")
    assert pending.returncode == 1
    assert bed.ours(IPV4) == []
    # What it prints is the exact input: applied by hand, run has nothing left to do.
    for part in pending.stdout.split("# ")[1:]:
        command, _, text = part.partition("\n")
        bed.namespace.run(*command.split(), "-w", "10", stdin=text)
    bed.expect(WEB)
    bed.agent.start()
    assert "wrote" not in bed.agent.log
    in_sync = bed.agent.call("diff")
    assert (in_sync.returncode, in_sync.stdout) == (0, "")
    for call in (pending, in_sync):
        assert [line for line in call.stderr.splitlines() if "without TLS" not in line] == []


@pytest.mark.parametrize("backend", ["nft"])
def test_of_agents_that_start_at_once_one_runs(bed: Bed) -> None:
    bed.put(WEB)
    options: dict[str, Any] = {"env": bed.agent.environment, "text": True}
    agents = [
        bed.namespace.popen(bed.agent.command("run"), stderr=subprocess.PIPE, **options)
        for _ in range(4)
    ]
    try:
        eventually(lambda: sum(agent.poll() is None for agent in agents) == 1)
        bed.expect(WEB)
        refused = [agent for agent in agents if agent.poll() is not None]
        assert [agent.returncode for agent in refused] == [3, 3, 3]
        said = "ipvs-node-agent: run: an agent is already running on this node"
        for agent in refused:
            assert agent.communicate()[1] == f"{said} (systemctl stop ipvs-node-agent)\n"
        cleanup = bed.agent.call("cleanup")
        assert cleanup.returncode == 3
        assert "already running" in cleanup.stderr
        bed.expect(WEB)
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
