"""What several tests look at: the Services, who connects to what, and where ours has to be."""

from __future__ import annotations

from tests.node.scene import (
    NODE_ADDRESS,
    OUTSIDE,
    TARGET_PORT,
    VERSIONS,
    Connection,
    Scene,
    Service,
)

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


def external(service: Service, *clients: str) -> list[Connection]:
    """From each of the clients to the external IPs, IPv4 first."""
    return [Connection(client, service.external[v]) for client in clients for v in VERSIONS]


def everything(web: Service, plain: Service) -> dict[str, Connection]:
    """Connections that tell whether anything changed for anybody, by what they are."""
    found = {}
    for version in VERSIONS:
        for client in ("host", "pod", "outside"):
            targets = {
                "web's external IP": (web.external[version], 80),
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


def put_package(scene: Scene, which: str) -> None:
    """Has "this" version or the "next" one be the only file in a folder, as after a download."""
    name = f"ipvs-node-agent_$(dpkg-deb -f /bed/{which}.deb Version)_all.deb"
    scene.machine.run(f"rm -rf {DEBS} && mkdir {DEBS} && cp /bed/{which}.deb {DEBS}/{name}")


def apt(scene: Scene, command: str) -> str:
    """Types a command of apt in that folder; it asks nothing, and what it does is confirmed."""
    typed = command.replace("apt ", "apt -y -o APT::Cmd::Disable-Script-Warning=true ", 1)
    return scene.machine.run(f"cd {DEBS} && {typed}", timeout=400)


def no_connection_fails(scene: Scene, command: str, then: str) -> None:
    """Runs a command under streams of connections, and waits until `then` is true."""
    with scene.stream(*external(scene.services["web"], "host", "pod")) as results:
        if command.startswith("apt "):
            apt(scene, command)
        else:
            scene.machine.run(command, timeout=180)
        scene.wait(then, READY_SECONDS)
    print([f"{result['good']}, the slowest {result['slowest']:.2f} s" for result in results])
    assert len(results) == 4
    for result in results:
        assert result["good"] > 20
        assert (result["bad"], result["twice"]) == ([], 0)
        # Always by way of our rules: no other one masquerades a pod.
        assert len(result["saw"]) == 1


def another_process(scene: Scene) -> str:
    """A condition: the agent is ready, and not the process that it is now."""
    pid = scene.agent("MainPID")
    return f'{READY} && [ "$(systemctl show --value -p MainPID ipvs-node-agent)" != {pid} ]'
