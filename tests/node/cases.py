"""What several tests look at: who connects to what, and where ours has to be."""

from __future__ import annotations

from collections.abc import Mapping

from tests.node.scene import EXTERNAL, VERSIONS, Connection, Scene, is_answer
from tests.support.promlint import read
from tests.support.waiting import eventually

# Our jump is the first rule of both chains in both families.
FIRST = """for family in iptables ip6tables; do
    $family-save -t nat | awk '
        $1 == "-A" && ($2 == "PREROUTING" || $2 == "OUTPUT") && !seen[$2]++ { print; good += $0 == "-A " $2 " -j IPVS_" $2 }
        END { exit good != 2 }' || exit 1
done"""  # noqa: E501
# The time in which ours have to be first again.
REPAIRED = 5.0

# kube-proxy has made its jumps, in both families.
PROXY_IS_BACK = """for family in iptables ip6tables; do
    [ "$($family-save -t nat | grep -c 'A [PO][A-Z]* .*-j KUBE-\\(SERVICES\\|POSTROUTING\\)$')" = 3 ] || exit 1
done"""  # noqa: E501

# In bash alone, as it is asked over and over; systemd last of all.
READY = """
exec 3<>/dev/tcp/127.0.0.1/10273 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 \
    && read -r line <&3 && [[ $line = *' 200 '* ]] \
    && [ "$(systemctl is-active ipvs-node-agent)" = active ]"""
# The emulation takes twenty times as long as a real machine to start a Python with many modules.
READY_SECONDS = 180.0
DEBS = "/root/debs"
_FETCH = """\
import sys, urllib.request
print("\\0".join(urllib.request.urlopen(url).read().decode() for url in sys.argv[1:]))
"""


def external(*clients: str) -> list[Connection]:
    """From each of the clients to the external IPs, IPv4 first."""
    return [Connection(client, EXTERNAL[v]) for client in clients for v in VERSIONS]


def leads_on(addresses: Mapping[int, str], port: int = 0) -> str:
    """A command that succeeds where our rules lead these on: at a port alone, or without one."""
    then = f"{f' -p tcp -m tcp --dport {port}' if port else ''} -m comment .* -j DNAT"
    return " && ".join(
        f"{family}-save -t nat | grep -q -e '-d {addresses[version]}/{bits}{then}'"
        for version, family, bits in ((4, "iptables", 32), (6, "ip6tables", 128))
    )


def come_to(scene: Scene, wanted: Mapping[Connection, str], seconds: float = 60) -> None:
    """Waits until every connection comes to this: who the server sees, or nothing at all."""

    def found() -> dict[Connection, str]:
        answers = zip(wanted, scene.ask(*wanted))
        return {connection: answer * is_answer(answer) for connection, answer in answers}

    try:
        eventually(lambda: found() == wanted, "", seconds, pause=1)
    except AssertionError as error:
        now = found().items()
        raise AssertionError(f"{now - wanted.items()}, and not {wanted.items() - now}") from error


def pages(scene: Scene, *names: str) -> list[str]:
    """What the agent serves there."""
    urls = [f"http://127.0.0.1:10273/{name}" for name in names]
    return scene.machine.run(f"python3 - {' '.join(urls)}", _FETCH).split("\0")


def repairs(scene: Scene) -> float:
    """How often the agent has undone what others did."""
    (metrics,) = pages(scene, "metrics")
    return sum(read(metrics)["ipvs_node_agent_drift_repairs_total"].samples.values())


def put_package(scene: Scene, which: str) -> None:
    """Has "this" version or the "next" one be the only file in a folder, as after a download."""
    name = f"ipvs-node-agent_$(dpkg-deb -f /bed/{which}.deb Version)_all.deb"
    scene.machine.run(f"rm -rf {DEBS} && mkdir {DEBS} && cp /bed/{which}.deb {DEBS}/{name}")


def apt(scene: Scene, command: str) -> str:
    """Types a command of apt in that folder; it asks nothing, and what it does is confirmed."""
    typed = command.replace("apt ", "apt -y -o APT::Cmd::Disable-Script-Warning=true ", 1)
    return scene.machine.run(f"cd {DEBS} && {typed}", timeout=400)


def restarted(scene: Scene, command: str) -> None:
    """Runs a command until another agent is ready, under connections of which none fails."""
    pid = scene.agent("MainPID")
    another = f'[ "$(systemctl show --value -p MainPID ipvs-node-agent)" != {pid} ]'
    connections = external("host", "pod")
    with scene.watched(*connections) as attempts:
        if command.startswith("apt "):
            apt(scene, command)
        else:
            scene.machine.run(command, timeout=180)
        scene.wait(f"{READY} && {another}", READY_SECONDS)
    assert [attempt for attempt in attempts if not attempt.good or attempt.twice] == []
    for connection in connections:
        tried = [attempt for attempt in attempts if attempt.connection == connection]
        slowest = max(attempt.ended - attempt.began for attempt in tried)
        print(f"{len(tried)}, the slowest {slowest:.2f} s")
        assert len(tried) > 10
        # Always by way of our rules: no other one masquerades a pod.
        assert len({attempt.saw for attempt in tried}) == 1
