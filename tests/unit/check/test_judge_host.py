"""What `check` says about the node itself: facts in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.check.facts import KubeProxy, Listener, Unit
from ipvs_node_agent.check.finding import FAIL, OK, WARN
from ipvs_node_agent.check.judge_cluster import judge
from ipvs_node_agent.check.judge_host import invalid_input
from ipvs_node_agent.config.settings import Chains, Config, IptablesOptions
from ipvs_node_agent.host.procfs import Process
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import FAMILIES, IPV6, parse_network
from ipvs_node_agent.nat.ahead import Ahead
from ipvs_node_agent.nat.ruleset import Change, Found
from tests.support.cluster import node
from tests.support.nodefacts import (
    ACTIVE,
    AGENT,
    JUMPS,
    OURS,
    PROXYS_CHAINS,
    RUNNING,
    UNIT,
    bad,
    cluster,
    facts,
    healthy_host,
    nat,
    says,
)

HEALTHY_6 = nat(IPV6)
PROXYS_ALONE = Found(foreign=PROXYS_CHAINS)
OURSELVES, STRANGER = Process(AGENT, "ipvs-node-agent"), Process(12, "ipvs-node-agent")


def table(**fields: Any) -> dict[str, Any]:
    """The IPv4 table is like this, and the IPv6 one is healthy."""
    return {"tables": (nat(**fields), HEALTHY_6)}


def holding(*chains: str, jumps: Any = JUMPS) -> dict[str, Any]:
    """The IPv4 table has our chains, kube-proxy's and these."""
    return table(found=Found(OURS, jumps, PROXYS_CHAINS | set(chains)))


def unreadable(backend: str, why: str, hint: str = "") -> dict[str, Any]:
    error = TableError(f"iptables-{backend}-save", why, hint)
    tables = (nat(backend=backend, error=error), nat(IPV6, backend))
    return {"tables": tables, "backend": backend, "kubelet_backend": backend, "changes": None}


def beside_legacy(found: Found) -> dict[str, Any]:
    return {"tables": (nat(), HEALTHY_6, nat(backend="legacy", found=found))}


def unit(*words: Any, holder: int | None = None, agents: Any = ()) -> dict[str, Any]:
    return {"units": {UNIT: Unit(*words)}, "holder": holder, "agents": agents}


def beside(name: str, **fields: Any) -> dict[str, Any]:
    return {"units": {UNIT: RUNNING, f"{name}.service": ACTIVE}, **fields}


def without(setting: str) -> dict[str, Any]:
    return {"settings": {**healthy_host().settings, setting: "0"}}


UNPRIVILEGED = {"may_program": False, "tables": (), "proxy": KubeProxy("ipvs"), "changes": None}


def behind_calico(ends: str) -> dict[str, Any]:
    """Our jump in OUTPUT stands behind Calico's, in whose chain packets to `ends` end."""
    calico = Ahead("-j cali-OUTPUT", "cali-OUTPUT", frozenset(), (parse_network(ends),))
    ours = {**OURS, "IPVS_OUTPUT": ("-d 10.19.0.1/32 -j DNAT --to-destination 10.231.0.1",)}
    jumps = {**JUMPS, "OUTPUT": ((2, "IPVS_OUTPUT"),)}
    return table(found=Found(ours, jumps, PROXYS_CHAINS, ahead={"OUTPUT": (calico,)}))


def test_who_may_stand_in_front_is_named() -> None:
    (found,) = (
        one
        for one in judge(facts(**behind_calico("192.0.2.0/24")))
        if "IPv4" in one.what and "jumps" in one.what
    )
    assert found.level == OK
    assert "cali-OUTPUT may stand in front" in found.text


BEHIND = table(
    found=Found(OURS, {**JUMPS, "OUTPUT": ((2, "IPVS_OUTPUT"),)}, PROXYS_CHAINS),
    first={"OUTPUT": '-m comment --comment "a -j b" -j KUBE-SERVICES'},
)
NO_MARK_CHAIN = table(found=Found(OURS, JUMPS, frozenset({"KUBE-SERVICES"})))
CHANGE = Change({"A": (), "B": ()}, ("C",), hooked=(("OUTPUT", 1, "A"),))
CHANGES = {"changes": (("iptables-nft-restore", CHANGE),)}
OUT_OF_SYNC = "iptables-nft: 2 chains to write, 1 chains to remove, 1 jumps to set"
OUR_WORK = {"holder": AGENT, "agents": (OURSELVES,)}


WRONG: dict[str, dict[str, Any]] = {
    "fail privileges: CAP_NET_ADMIN => sudo ipvs-node-agent check": UNPRIVILEGED,
    # kube-proxy
    **{
        f"fail kube-proxy: in {mode} mode, by its own word: the agent is not"
        " => apt purge ipvs-node-agent": {"proxy": KubeProxy(mode)}
        for mode in ("iptables", "nftables")
    },
    "fail kube-proxy: in nftables mode, by its nftables table kube-proxy"
    " => apt purge ipvs-node-agent": {"proxy": KubeProxy(nftables=True)},
    "fail kube-proxy: in winkernel mode => apt purge ipvs-node-agent": {
        "proxy": KubeProxy("winkernel")
    },
    "fail kube-proxy: in iptables mode => apt purge": {
        "proxy": KubeProxy(),
        **holding("KUBE-SVC-TCOU7JCQXEZGVUNU"),
    },
    "warn kube-proxy: runs as process 77 => curl http://127.0.0.1:10249/proxyMode": {
        "proxy": KubeProxy(process=77)
    },
    "fail kube-proxy: no sign of it => spec.nodeName=worker-1": {"proxy": KubeProxy()},
    # iptables
    "warn iptables backend: in legacy and nft => reboot": beside_legacy(PROXYS_ALONE),
    "warn iptables backend: left in iptables-legacy => restart": beside_legacy(Found(OURS)),
    "fail nat table, IPv4: iptables-nft-save: not found => apt install iptables": unreadable(
        "nft", "not found", "apt install iptables"
    ),
    "fail nat table, IPv4: iptables-nft-save: does not work => nft list table ip nat": unreadable(
        "nft", "does not work"
    ),
    "fail nat table, IPv4: iptables-legacy-save: does not work => modprobe iptable_nat": unreadable(
        "legacy", "does not work"
    ),
    "warn KUBE-MARK-MASQ, IPv4: no such chain => delete pod": NO_MARK_CHAIN,
    "warn KUBE-MARK-MASQ, IPv4: has no rule => delete pod": table(empty={"KUBE-MARK-MASQ"}),
    "warn KUBE-MARK-MASQ, IPv4: nothing in POSTROUTING => delete pod": table(masquerading=False),
    "fail jumps, IPv4: OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES"
    " => systemctl restart ipvs-node-agent": BEHIND,
    "fail jumps, IPv4: OUTPUT jumps to IPVS_OUTPUT behind cali-OUTPUT"
    " => systemctl restart ipvs-node-agent": behind_calico("10.19.0.0/16"),
    "fail jumps, IPv4: PREROUTING does not jump to IPVS_PREROUTING"
    " => systemctl restart ipvs-node-agent": holding(jumps={"OUTPUT": JUMPS["OUTPUT"]}),
    f"fail rules: {OUT_OF_SYNC} => systemctl restart ipvs-node-agent": CHANGES,
    f"fail rules: {OUT_OF_SYNC} => systemctl start ipvs-node-agent": {**CHANGES, "holder": None},
    # The agent
    "fail agent: is inactive => systemctl start": unit("loaded", "inactive", "enabled"),
    "fail agent: failed: Oh => journalctl -u": unit("loaded", "failed", "enabled", 0, "Oh"),
    "warn agent: disabled => systemctl enable": {
        **unit("loaded", "active", "disabled", AGENT),
        **OUR_WORK,
    },
    "warn agent: is starting: Waiting => systemctl status": {
        **unit("loaded", "activating", "enabled", AGENT, "Waiting"),
        **OUR_WORK,
    },
    "fail agent: does not run => systemctl start ipvs-node-agent": {
        "units": None,
        "holder": None,
        "agents": (),
    },
    "fail agent: does not run => systemctl start ipvs-node": unit(),
    "fail agent: process 12 keeps the service from starting => kill 12": unit(
        "loaded", "activating", "enabled", holder=12, agents=(STRANGER,)
    ),
    "fail agent: a second one runs as process 12 => kill 12": {"agents": (OURSELVES, STRANGER)},
    # Predecessors and neighbours
    **{
        f"{level} {program}: runs as process 12"
        f" => kubectl -n kube-system delete daemonset {program}": {
            "agents": (OURSELVES, Process(12, program))
        }
        for level, program in (
            ("warn", "network-node-manager"),
            ("fail", "ipvs-node-controller"),
        )
    },
    "warn network-node-manager: left chains NMANAGER_"
    " =>  | iptables-nft-restore -w 5 --noflush": holding("NMANAGER_PREROUTING"),
    "fail metrics: process 12 (nc) listens on 127.0.0.1:10273 => metricsBindAddress: ": {
        "listener": Listener(12, "nc")
    },
    "fail metrics: somebody listens on 127.0.0.1:10273 => metricsBindAddress: ": {
        "listener": Listener(0, "")
    },
    "warn other firewalls: within 2 s => /etc/nftables.conf": beside(
        "nftables", flushing_file=True
    ),
    "warn other firewalls: empties PREROUTING and OUTPUT => systemctl disable --now ufw": beside(
        "ufw"
    ),
    "warn other firewalls: may flush => systemctl disable --now firewalld": beside("firewalld"),
    "warn other firewalls: by saved ones; => disable netfilter-persistent": beside(
        "netfilter-persistent"
    ),
    "warn other firewalls: stale ones => sed -i '/IPVS_/d'": beside(
        "netfilter-persistent", saved_rules=True
    ),
    "warn conntrack: UDP => apt install conntrack": {"conntrack": False},
    **{
        f"fail kernel: net.{name} is 0 => sysctl -w net.{name}=1": without(name.replace(".", "/"))
        for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv4.vs.conntrack")
    },
}


@pytest.mark.parametrize(("line", "fields"), WRONG.items())
def test_what_is_wrong_is_found_and_nothing_else(line: str, fields: dict[str, Any]) -> None:
    says(facts(**fields), line)


MARKED = Found(OURS, JUMPS, PROXYS_CHAINS | {"MARK-IT"})
IPV4_ALONE = read_node(node("10.240.2.128/25"))._replace(addresses=())
RIGHT: dict[str, dict[str, Any]] = {
    "the device gives IPVS away": {"proxy": KubeProxy(device=True)},
    "the kubelet left no trace": {"kubelet_backend": None},
    "a family that the node does not speak": {
        "cluster": cluster(node=IPV4_ALONE),
        "tables": (nat(), nat(IPV6, error=TableError("ip6tables-nft-save", "no such table"))),
    },
    "a mark chain of a user's own": {
        "config": Config(chains=Chains(mark_masquerade="MARK-IT")),
        "tables": tuple(nat(family, found=MARKED, masquerading=False) for family in FAMILIES),
    },
    "a process without systemd": {"units": None},
    "a process without a service": {"units": {UNIT: Unit()}},
    "the agent's own port": {"listener": Listener(AGENT, "python3")},
    "the agent's own answer": {"listener": Listener(0, "", ours=True)},
    "a port that nobody wants": {
        "config": Config(metrics_bind_address=""),
        "listener": Listener(12, "nc"),
    },
    "an nftables that flushes no foreign rules": beside("nftables"),
}


@pytest.mark.parametrize("fields", RIGHT.values(), ids=[*RIGHT])
def test_what_is_as_it_may_be_gives_only_ok(fields: dict[str, Any]) -> None:
    assert bad(facts(**fields)) == []


LOOSE, LIBERAL = "netfilter/nf_conntrack_tcp_loose", "netfilter/nf_conntrack_tcp_be_liberal"


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        ({}, OK, "drops TCP packets"),
        ({LOOSE: "1", LIBERAL: "0"}, OK, "drops TCP packets"),
        ({LOOSE: "1", LIBERAL: "1"}, OK, "does little: net.netfilter.nf_conntrack_tcp_be_liberal"),
        ({LOOSE: "0", LIBERAL: "0"}, WARN, "net.netfilter.nf_conntrack_tcp_loose is 0"),
        ({LOOSE: "0", LIBERAL: "1"}, WARN, "net.netfilter.nf_conntrack_tcp_loose is 0"),
    ],
)
def test_what_dropping_invalid_packets_does_is_said_where_it_is_asked_for(
    settings: dict[str, str], level: str, text: str
) -> None:
    settings = {**healthy_host().settings, **settings}
    (found,) = invalid_input(facts(config=Config(drop_invalid_input=True), settings=settings))
    assert (found.level, text in found.text) == (level, True)
    assert bool(found.mend) is (level == WARN)
    assert not [*invalid_input(facts(settings=settings))]


PROXY_ON_LEGACY = nat(backend="legacy", found=PROXYS_ALONE)
OTHER_BACKEND: dict[str, dict[str, Any]] = {
    "and the kubelet iptables-nft => {backend: auto} in /etc/x.yaml": {
        "backend": "legacy",
        "kubelet_backend": "nft",
        "tables": (nat(backend="legacy"), nat(backend="legacy")),
    },
    "and kube-proxy iptables-legacy => {backend: legacy} in /etc/x.yaml": {
        "kubelet_backend": None,
        "tables": (PROXY_ON_LEGACY, nat(found=Found(OURS, JUMPS, frozenset({"KUBE-X"})))),
    },
    "and kube-proxy iptables-legacy => iptables: {backend: auto} in /etc/x.yaml": {
        "config": Config(iptables=IptablesOptions("nft")),
        "kubelet_backend": None,
        "tables": (PROXY_ON_LEGACY, nat(found=Found())),
    },
}


@pytest.mark.parametrize(("line", "fields"), OTHER_BACKEND.items())
def test_another_backend_than_theirs_fails(line: str, fields: dict[str, Any]) -> None:
    (found,) = [f for f in bad(facts(**fields)) if f.what == "iptables backend"]
    text, _, mend = line.partition(" => ")
    assert (found.level, text in found.text, mend in found.mend) == (FAIL, True, True)
