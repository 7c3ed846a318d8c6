"""Every change of a Service or of the Node leaves exactly the wanted rules in the kernel."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6
from tests.kernel.conftest import EVERYWHERE, Bed, Entry
from tests.support.agentnode import with_ingress, with_metadata
from tests.support.cluster import node, service
from tests.support.tables import add_foreign_rules, add_mark_masq, foreign, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

ONE = ("10.19.20.201", "one", "10.231.42.164")
TWO = ("10.19.22.57", "two", "10.231.2.62")
ONE6 = ("fd00:19::201", "one", "fd00:231::164")


def one(*external: str, **fields: Any) -> dict[str, Any]:
    return service("one", [ONE[2]], external or [ONE[0]], **fields)


def two() -> dict[str, Any]:
    return service("two", [TWO[2]], [TWO[0]])


@pytest.fixture
def running(bed: Bed) -> Bed:
    """A node whose agent has programmed Service one, and Service two that never changes."""
    bed.api.put(one())
    bed.api.put(two())
    bed.agent.start()
    bed.expect([ONE, TWO])
    return bed


def at(external: str) -> Entry:
    return (external, "one", ONE[2])


THREE = ("10.19.20.201", "10.19.20.202", "10.19.20.203")
FAR = "10.19.99.1"
# What Service one becomes (None: it is deleted), and the rules there are then.
Step = tuple[Any, list[Entry], list[Entry]]
BACK: Step = (one(), [ONE, TWO], [])
OPTING_OUT = {
    "annotations": {"ipvs-node-agent/ignore": "true"},
    "labels of a proxy": {"service.kubernetes.io/service-proxy-name": "other"},
    "labels of a headless Service": {"service.kubernetes.io/headless": ""},
}
CHANGES: dict[str, list[Step]] = {
    "external IP added, changed and removed": [
        (one(THREE[0], THREE[1]), [ONE, at(THREE[1]), TWO], []),
        (one(THREE[0], FAR), [ONE, TWO, at(FAR)], []),
        (one(FAR), [TWO, at(FAR)], []),
    ],
    "two of three IPs removed": [
        (one(*THREE), [*map(at, THREE), TWO], []),
        (one(THREE[1]), [at(THREE[1]), TWO], []),
    ],
    "type changed away and back": [(one(type="ClusterIP"), [TWO], []), BACK],
    "made again with another ClusterIP": [
        (None, [TWO], []),
        (service("one", ["10.231.7.7"], [ONE[0]]), [(ONE[0], "one", "10.231.7.7"), TWO], []),
    ],
    "single-stack to dual-stack and back": [
        (service("one", [ONE[2], ONE6[2]], [ONE[0], ONE6[0]]), [ONE, TWO], [ONE6]),
        (service("one", [ONE6[2]], [ONE6[0]]), [TWO], [ONE6]),
        BACK,
    ],
    "only a hostname": [(with_ingress(one(), {"hostname": "lb.example.org"}), [TWO], [])],
    "ipMode Proxy and VIP": [
        (with_ingress(one(), {"ip": ONE[0], "ipMode": "Proxy"}), [TWO], []),
        (with_ingress(one(), {"ip": ONE[0], "ipMode": "VIP"}), [ONE, TWO], []),
    ],
    **{
        f"opting out by {what}, and in again": [
            (with_metadata(one(), **{what.split()[0]: fields}), [TWO], []),
            BACK,
        ]
        for what, fields in OPTING_OUT.items()
    },
}


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(steps, id=name, marks=[EVERYWHERE] if "added" in name else [])
        for name, steps in CHANGES.items()
    ],
)
def test_changes_of_a_service(running: Bed, steps: list[Step]) -> None:
    for changed, ipv4, ipv6 in steps:
        if changed is None:
            running.api.delete("Service", "default", "one")
        else:
            running.api.put(changed)
        running.expect(ipv4, ipv6)


def test_service_deleted_while_the_agent_runs(running: Bed) -> None:
    running.api.delete("Service", "default", "one")
    running.expect([TWO])
    running.api.delete("Service", "default", "two")
    running.expect([])


def test_service_deleted_while_the_agent_is_down(running: Bed) -> None:
    assert running.agent.stop() == 0
    running.expect([ONE, TWO])
    running.api.delete("Service", "default", "one")
    running.agent.start()
    running.expect([TWO])


def test_node_without_pod_cidr_then_with_one_then_with_another(bed: Bed) -> None:
    bed.api.put(node())
    bed.api.put(one())
    bed.agent.start(wait=False)
    bed.agent.said("Node worker-1 has no pod CIDR yet")
    assert bed.ours(IPV4) == bed.ours(IPV6) == []
    bed.api.put(node("10.240.2.128/25"))
    bed.expect([ONE], pod_cidrs=["10.240.2.128/25"])
    bed.api.put(node("10.240.9.0/24", "10.240.10.0/24"))
    bed.expect([ONE], pod_cidrs=["10.240.9.0/24", "10.240.10.0/24"])
    assert bed.agent.log.count("no pod CIDR") == 1
    assert bed.agent.running


def send_one_packet(bed: Bed) -> list[str]:
    """Sends a packet from the host to Service one; the host chain's rules for it, with counters."""
    bed.namespace.run("ip", "address", "replace", f"{ONE[0]}/32", "dev", "lo")
    bed.namespace.run("ip", "route", "replace", f"{ONE[2]}/32", "dev", "lo")
    with bed.namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (ONE[0], 9))
    counters = host_counters(bed)
    assert counters[0].startswith("[1:")
    return counters


def host_counters(bed: Bed) -> list[str]:
    """The host chain's rules for Service one, with their counters."""
    lines = bed.namespace.run(f"iptables-{bed.backend}-save", "-c", "-t", "nat").splitlines()
    return [line for line in lines if "IPVS_OUTPUT" in line and ONE[0] in line]


def test_a_restart_writes_nothing_and_counters_go_on(running: Bed) -> None:
    before = send_one_packet(running)
    running.agent.stop()
    written = running.agent.log.count("wrote")
    running.agent.start()
    assert running.agent.log.count("wrote") == written
    assert host_counters(running) == before


def test_a_change_is_one_write_of_the_chains_that_differ(running: Bed) -> None:
    """Another pod CIDR is no business of the host's chain, whose counters go on."""
    before = send_one_packet(running)

    def writes() -> list[str]:
        lines = [line for line in running.agent.log.splitlines() if "wrote" in line]
        return [line.partition("INFO ")[2].rpartition(" in ")[0] for line in lines]

    eventually(lambda: "ready: " in running.agent.log)
    earlier = writes()
    running.api.put(node("10.240.9.0/24"))
    running.expect([ONE, TWO], pod_cidrs=["10.240.9.0/24"])
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
    bed.api.put(service("one", [ONE[2], ONE6[2]], [ONE[0], ONE6[0]]))
    bed.agent.start()
    bed.expect([ONE], [ONE6])
    assert others() == before, "after a run"
    bed.api.put(two())
    bed.expect([ONE, TWO], [ONE6])
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


def test_our_jump_is_first_although_others_inserted_theirs(bed: Bed) -> None:
    bed.api.put(one())
    bed.agent.start()
    for family in FAMILIES:
        add_foreign_rules(bed.namespace, family, bed.backend)

    def first_rules() -> list[str]:
        lines = [line for f in FAMILIES for line in saved(bed.namespace, f, bed.backend)]
        return [
            next(line for line in lines[start:] if line.startswith(f"-A {chain} "))
            for start in (0, len(lines) // 2)
            for chain in ("PREROUTING", "OUTPUT")
        ]

    wanted = ["-A PREROUTING -j IPVS_PREROUTING", "-A OUTPUT -j IPVS_OUTPUT"] * 2
    eventually(lambda: first_rules() == wanted, "our jumps first again")
    bed.expect([ONE])


def test_nothing_is_written_before_both_listings(bed: Bed) -> None:
    """The rules of an earlier run stand while the API server does not answer."""
    bed.api.put(one())
    bed.agent.start()
    bed.expect([ONE])
    bed.agent.stop()
    bed.api.delete("Service", "default", "one")
    bed.api.put(two())
    bed.api.fail(503, verb="list", resource="nodes")
    bed.agent.start(wait=False)
    bed.agent.said("503")
    bed.api.wait_for(lambda: bed.api.watches("services") == 1)
    bed.expect([ONE])
    bed.api.heal()
    bed.expect([TWO])


def test_the_rules_stay_while_the_api_server_is_away(running: Bed) -> None:
    running.api.stop()
    running.agent.said("Connection refused")
    running.expect([ONE, TWO])
    running.namespace.run(
        f"iptables-{running.backend}", "-w", "10", "-t", "nat", "-F", "IPVS_OUTPUT"
    )
    running.expect([ONE, TWO])  # Repairs need no API server.
    running.api.start()
    running.api.delete("Service", "default", "one")
    running.expect([TWO])
    running.agent.said("answers again")
    assert running.agent.log.count("Connection refused") == 1
    assert running.agent.log.count("answers again") == 1


def test_a_family_that_fails_does_not_hold_up_the_other(bed: Bed, tmp_path: Path) -> None:
    """iptables-restore of IPv4 fails for a while."""
    failing = tmp_path / "bin" / f"iptables-{bed.backend}-restore"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    bed.agent.variables["PATH"] = f"{failing.parent}:{bed.agent.environment['PATH']}"
    bed.api.put(service("one", [ONE[2], ONE6[2]], [ONE[0], ONE6[0]]))
    bed.agent.start(wait=False)
    bed.agent.said("IPv4: cannot program the kernel")
    eventually(lambda: any(ONE6[0] in line for line in bed.ours(IPV6)))
    assert bed.ours(IPV4) == []
    failing.unlink()
    bed.expect([ONE], [ONE6])
    bed.agent.said("IPv4: works again")
    assert bed.agent.log.count("cannot program") == 1


def test_reload_takes_new_names_and_masquerade_and_leaves_nothing_of_the_old(running: Bed) -> None:
    running.agent.configure(
        {
            **running.settings,
            "chains": {"prerouting": "MY_PRE", "output": "MY_OUT"},
            "masquerade": "HostOnly",
        }
    )
    running.agent.send(signal.SIGHUP)
    running.agent.said("read the configuration again")
    for family in FAMILIES:
        running.wait_for_lines(family, [])
    lines = saved(running.namespace, IPV4, running.backend)
    assert "-A PREROUTING -j MY_PRE" in lines
    assert not any("MY_PRE" in line and "KUBE-MARK-MASQ" in line for line in lines)
    # Down and up again under the first names: the others were remembered, and go.
    running.agent.stop()
    running.agent.configure(running.settings)
    running.agent.start()
    running.expect([ONE, TWO])
    assert not any("MY_" in line for line in saved(running.namespace, IPV4, running.backend))


def test_a_bad_configuration_on_reload_changes_nothing(running: Bed) -> None:
    running.agent.configure({"masquerade": "Sometimes"})
    running.agent.send(signal.SIGHUP)
    running.agent.said("wanted All or HostOnly, got")
    running.api.put(one("10.19.20.202"))
    running.expect([("10.19.20.202", "one", ONE[2]), TWO])


@EVERYWHERE
def test_moving_to_the_other_backend_leaves_nothing_in_the_old_one(running: Bed) -> None:
    other = "legacy" if running.backend == "nft" else "nft"
    for family in FAMILIES:
        add_mark_masq(running.namespace, family, other)
    running.agent.configure({**running.settings, "iptables": {"backend": other}})
    running.agent.send(signal.SIGHUP)
    for family in FAMILIES:
        running.wait_for_lines(family, [])
    running.backend = other
    running.expect([ONE, TWO])


@EVERYWHERE
def test_diff_shows_what_run_would_change_and_changes_nothing(bed: Bed) -> None:
    bed.api.put(one())
    pending = bed.agent.call("diff")
    assert pending.returncode == 1
    assert bed.ours(IPV4) == []
    # What it prints is the exact input: applied by hand, run has nothing left to do.
    for part in pending.stdout.split("# ")[1:]:
        command, _, text = part.partition("\n")
        bed.namespace.run(*command.split(), "-w", "10", stdin=text)
    bed.expect([ONE])
    assert bed.agent.call("diff").returncode == 0
    bed.agent.start()
    assert "wrote" not in bed.agent.log
    in_sync = bed.agent.call("diff")
    assert (in_sync.returncode, in_sync.stdout) == (0, "")
    for call in (pending, in_sync):
        assert [line for line in call.stderr.splitlines() if "without TLS" not in line] == []


@pytest.mark.parametrize("backend", ["nft"])
def test_of_agents_that_start_at_once_one_runs(bed: Bed) -> None:
    bed.api.put(one())
    options: dict[str, Any] = {"env": bed.agent.environment, "text": True}
    agents = [
        bed.namespace.popen(bed.agent.command("run"), stderr=subprocess.PIPE, **options)
        for _ in range(4)
    ]
    try:
        eventually(lambda: sum(agent.poll() is None for agent in agents) == 1)
        bed.expect([ONE])
        refused = [agent for agent in agents if agent.poll() is not None]
        assert [agent.returncode for agent in refused] == [3, 3, 3]
        said = "ipvs-node-agent: run: an agent is already running on this node"
        for agent in refused:
            assert agent.communicate()[1] == f"{said} (systemctl stop ipvs-node-agent)\n"
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_a_second_agent_and_a_cleanup_meanwhile_are_refused(running: Bed) -> None:
    for command in ("run", "cleanup"):
        done = running.agent.call(command)
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert "already running" in done.stderr
    running.expect([ONE, TWO])
