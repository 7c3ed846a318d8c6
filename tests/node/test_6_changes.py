"""What changes around the agent: the node's addresses, who shares one, and kube-proxy's mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipvs_node_agent.rules.here import LINGER
from tests.node.cases import (
    FIRST,
    READY,
    READY_SECONDS,
    REPAIRED,
    apt,
    come_to,
    external,
    leads_on,
)
from tests.node.scene import (
    EXTERNAL,
    NODE_ADDRESS,
    POD,
    PORT,
    TARGET_PORT,
    VERSIONS,
    Attempt,
    Connection,
    Scene,
    is_answer,
)
from tests.node.shown import INSTALL, PURGE
from tests.support.waiting import eventually

VIP = {4: "10.19.30.40", 6: "fd00:10:19:30::40"}
SHARED = {4: "10.19.30.50", 6: "fd00:10:19:30::50"}
# For what kube-proxy has to do with its next sync, which it makes every half minute.
_PROXY_SECONDS = 90.0
# How often the agent asks for kube-proxy's mode.
_ASKED = 10.0
# A gap of so many seconds is more than one attempt that is lost.
_SINGLE = 4.0
# As keepalived does it.
_ARRIVES = f"""\
ip address replace {VIP[4]}/32 dev to-outside &&
ip address replace {VIP[6]}/128 dev to-outside nodad"""
_LEAVES = f"""\
ip address delete {VIP[4]}/32 dev to-outside; ip address delete {VIP[6]}/128 dev to-outside"""
_SERVICE = {
    Connection(client, VIP[v]): NODE_ADDRESS[v] for client in ("host", "pod") for v in VERSIONS
}
# A program of the host's, as its SSH is.
_LISTENER = [
    Connection(client, VIP[v], TARGET_PORT)
    for client in ("host", "pod", "outside")
    for v in VERSIONS
]


@pytest.fixture(scope="module")
def vip(scene: Scene) -> Iterator[None]:
    """A Service whose external IP is not this node's yet, which has a program on all of its own."""
    scene.machine.run("systemctl start answer@host")
    with scene.service("vip", VIP):
        scene.wait(leads_on(VIP))
        yield
    scene.machine.run(f"{_LEAVES}; systemctl stop answer@host")


@pytest.mark.quick
@pytest.mark.usefixtures("vip")
def test_on_a_vip_that_comes_the_host_stays_reachable_and_the_service_has_its_port(
    scene: Scene,
) -> None:
    come_to(scene, dict.fromkeys(_LISTENER, ""))
    scene.machine.run(_ARRIVES)
    scene.wait(leads_on(VIP, PORT), REPAIRED)
    # kube-proxy rejects what comes to other ports until it sees that the address is the host's.
    eventually(
        lambda: all(map(is_answer, scene.ask(*_LISTENER))), "the host", _PROXY_SECONDS, pause=1
    )
    come_to(scene, _SERVICE)


@pytest.mark.quick
@pytest.mark.usefixtures("vip")
def test_a_vip_that_has_gone_is_the_services_alone_a_minute_later(scene: Scene) -> None:
    scene.machine.run(_ARRIVES)
    scene.wait(leads_on(VIP, PORT), REPAIRED)
    scene.machine.run(_LEAVES)
    took = scene.wait(leads_on(VIP), LINGER + 20)
    assert took > LINGER - 5
    come_to(scene, _SERVICE, _PROXY_SECONDS)


@pytest.fixture
def shared(scene: Scene) -> Iterator[None]:
    """Two Services with one external IP, as MetalLB gives it to both; one has no rules of ours."""
    # The other node's kube-proxy binds it as well, and answers to it stay there.
    bind = "; ".join(f"ip -n remote address $action {ip} dev lo" for ip in SHARED.values())
    scene.machine.run(f"action=add; {bind}")
    with (
        scene.service("shared-80", SHARED, port=80, annotations={"ipvs-node-agent/ignore": "true"}),
        scene.service("shared-25", SHARED, port=25),
    ):
        yield
    scene.machine.run(f"action=delete; {bind}")


@pytest.mark.quick("debian13")
@pytest.mark.usefixtures("shared")
def test_on_a_shared_ip_an_ignored_service_keeps_what_kube_proxy_gives_it(scene: Scene) -> None:
    scene.wait(leads_on(SHARED, 25))
    wanted = {}
    for version in VERSIONS:
        wanted[Connection("pod", SHARED[version], 80)] = POD[version]
        # kube-proxy leads it to another node, which has bound its source address.
        wanted[Connection("host", SHARED[version], 80)] = ""
        wanted[Connection("pod", SHARED[version], 25)] = NODE_ADDRESS[version]
        wanted[Connection("host", SHARED[version], 25)] = NODE_ADDRESS[version]
    come_to(scene, wanted, _PROXY_SECONDS)


_TABLES = "{ iptables-save -t nat; ip6tables-save -t nat; }"
_NO_RULES = f"! {_TABLES} | grep -q -e '^-A IPVS_.* -j DNAT '"
_TO_SERVICES = f"{_TABLES} | grep -q -e '^-A KUBE-SERVICES .* -j KUBE-SVC-'"
_TO_SETS = " && ".join(
    f"{family}-save -t nat | grep -q -e '^-A KUBE-SERVICES .*--match-set KUBE-{six}CLUSTER-IP '"
    for family, six in (("iptables", ""), ("ip6tables", "6-"))
)
_MODES = [
    pytest.param(
        *("nftables", "::1", NODE_ADDRESS[4], "nft list table ip6 kube-proxy"),
        marks=pytest.mark.quick("debian13"),
        id="nftables",
    ),
    pytest.param(
        *("iptables", NODE_ADDRESS[4], "127.0.0.1", _TO_SERVICES),
        marks=pytest.mark.quick,
        id="iptables",
    ),
]


# What kube-proxy leaves behind where it goes from iptables to IPVS mode, also with --cleanup.
_NOTHING_LEFT = """for family in iptables ip6tables; do
    $family-save -t nat | awk '
        /^:KUBE-/ { print $1, "- [0:0]"; gone = gone "-X " substr($1, 2) "\\n" }
        /^-A [A-Z]+ .*-j KUBE-/ { sub("-A", "-D"); print }
        /^[*]/ { print }
        /^COMMIT/ { printf "%s", gone; print }' | $family-restore --noflush || exit 1
done"""


def start_proxy(scene: Scene, mode: str, address: str) -> None:
    """Has kube-proxy be in another mode, and say so at an address."""
    bound = f"[{address}]" if ":" in address else address
    scene.write_proxy_config(mode, bound)
    scene.machine.run("systemctl start kube-proxy")
    ask = f"exec 3<>/dev/tcp/{address}/10249 && printf 'GET /proxyMode HTTP/1.0\\r\\n\\r\\n' >&3"
    scene.wait(f"{ask} && grep -q '^{mode}' <&3", _PROXY_SECONDS)


@pytest.mark.parametrize(("mode", "there", "back", "tables"), _MODES)
def test_in_another_mode_of_kube_proxys_no_service_has_rules_and_all_are_back_afterwards(
    scene: Scene, mode: str, there: str, back: str, tables: str
) -> None:
    scene.machine.run("systemctl stop kube-proxy")
    start_proxy(scene, mode, there)
    scene.wait(tables, _PROXY_SECONDS)
    took = scene.wait(_NO_RULES, 15)
    eventually(lambda: f"kube-proxy is in {mode} mode" in scene.agent("StatusText"))
    without_us = {Connection("pod", EXTERNAL[v]): POD[v] for v in VERSIONS}
    without_us.update((Connection("host", EXTERNAL[v]), NODE_ADDRESS[v]) for v in VERSIONS)
    come_to(scene, without_us, _PROXY_SECONDS)
    scene.machine.run(f"systemctl stop kube-proxy; {_NOTHING_LEFT}")
    start_proxy(scene, "ipvs", back)
    scene.wait(_TO_SETS, _PROXY_SECONDS)
    again = scene.wait(f"{FIRST} && {leads_on(EXTERNAL)}", 15)
    print(f"gone after {took:.1f} s, and back after {again:.1f} s")
    come_to(scene, dict(zip(external("host", "pod"), [*NODE_ADDRESS.values()] * 2)), _PROXY_SECONDS)


def gaps(attempts: list[Attempt], connection: Connection) -> list[float]:
    """How long, in seconds, this connection did not come about; it did before and afterwards."""
    tried = [attempt for attempt in attempts if attempt.connection == connection]
    good = [attempt for attempt in tried if attempt.good]
    assert (tried[0], tried[-1]) == (good[0], good[-1])
    return [
        after.began - before.ended
        for before, after in zip(good, good[1:])
        if tried.index(after) > tried.index(before) + 1
    ]


@pytest.mark.quick("debian13")
def test_a_node_leaves_ipvs_with_one_short_gap_and_the_package_goes_without_any(
    scene: Scene,
) -> None:
    """The checklist of docs/operations.md; connections to ClusterIPs are the yardstick."""
    web, ours = external("host", "pod"), scene.services["web"].cluster
    cluster = [Connection(each.client, ours[v]) for each, v in zip(web, VERSIONS * 2)]
    with scene.watched(*web, *cluster) as attempts:
        scene.write_proxy_config("nftables")
        scene.machine.run("systemctl restart kube-proxy")
        took = scene.wait(_NO_RULES, _PROXY_SECONDS)
        come_to(scene, dict(zip(web, [*NODE_ADDRESS.values(), *POD.values()])))
    print(f"rules gone after {took:.1f} s")
    for each, yardstick in zip(web, cluster):
        found, usual = gaps(attempts, each), gaps(attempts, yardstick)
        print(each.client, each.address, *found, "and", yardstick.address, *usual)
        assert sum(gap > _SINGLE for gap in found) <= 1
        assert sum(found) < sum(usual) + _ASKED + 10
    with scene.watched(*web) as attempts:
        apt(scene, PURGE)
    # Rules of ours were gone before. Who takes a single attempt is somebody else: kube-proxy was
    # started half a minute ago, and writes its table anew.
    for each in web:
        assert [gap for gap in gaps(attempts, each) if gap > _SINGLE] == []
    assert not scene.ours()
    # What the other tests need again.
    scene.machine.run("systemctl stop kube-proxy")
    start_proxy(scene, "ipvs", "127.0.0.1")
    scene.wait(_TO_SETS, _PROXY_SECONDS)
    apt(scene, INSTALL)
    scene.wait(f"{READY} && {FIRST} && {leads_on(EXTERNAL)}", READY_SECONDS)
