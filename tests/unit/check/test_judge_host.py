"""What `check` says about the node itself: facts in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.check.facts import KubeProxy, Listener, Unit
from ipvs_node_agent.check.finding import FAIL, WARN
from ipvs_node_agent.config.settings import Chains, Config, IptablesOptions
from ipvs_node_agent.host.procfs import Process
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import FAMILIES, IPV6
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
RESTART = "systemctl restart ipvs-node-agent"
OURSELVES, STRANGER = Process(AGENT, "ipvs-node-agent"), Process(12, "ipvs-node-agent")


def tables(**fields: Any) -> dict[str, Any]:
    """The IPv4 table is like this, and the IPv6 one is healthy."""
    return {"tables": (nat(**fields), HEALTHY_6)}


def holding(*chains: str, jumps: Any = JUMPS) -> Found:
    """Our chains, kube-proxy's and these."""
    return Found(OURS, jumps, PROXYS_CHAINS | set(chains))


def unreadable(backend: str, why: str, hint: str = "") -> dict[str, Any]:
    error = TableError(f"iptables-{backend}-save", why, hint)
    return {
        "tables": (nat(backend=backend, error=error), nat(IPV6, backend)),
        "backend": backend,
        "kubelet_backend": backend,
        "changes": None,
    }


def service(unit: Unit, *agents: Process, holder: int | None = None) -> dict[str, Any]:
    return {"units": {UNIT: unit}, "holder": holder, "agents": agents}


def beside(name: str, **fields: Any) -> dict[str, Any]:
    return {"units": {UNIT: RUNNING, f"{name}.service": ACTIVE}, **fields}


def without(setting: str) -> dict[str, Any]:
    return {"settings": {**healthy_host().settings, setting: "0"}}


BEHIND = holding(jumps={**JUMPS, "OUTPUT": ((2, "IPVS_OUTPUT"),)})
FIRST = {"OUTPUT": '-m comment --comment "a -j b" -j KUBE-SERVICES'}
CHANGES = (("iptables-nft-restore", Change({"A": (), "B": ()}, ("C",), hooked=(("OUTPUT", "A"),))),)
OUT_OF_SYNC = "iptables-nft: 2 chains to write, 1 chains to remove, 1 jumps to set"


@pytest.mark.parametrize(
    ("fields", "level", "what", "text", "mend"),
    [
        (
            {"may_program": False, "tables": (), "proxy": KubeProxy("ipvs"), "changes": None},
            *(FAIL, "privileges", "CAP_NET_ADMIN", "sudo ipvs-node-agent check"),
        ),
        # kube-proxy
        *(
            ({"proxy": proxy}, FAIL, "kube-proxy", text, "apt purge ipvs-node-agent")
            for proxy, text in (
                (KubeProxy("iptables"), "in iptables mode, by its own word: the agent is not"),
                (KubeProxy("nftables"), "in nftables mode, by its own word: the agent is not"),
                (KubeProxy(nftables=True), "in nftables mode, by its nftables table kube-proxy"),
                (KubeProxy("winkernel"), "in winkernel mode"),
            )
        ),
        (
            {"proxy": KubeProxy(), **tables(found=holding("KUBE-SVC-TCOU7JCQXEZGVUNU"))},
            *(FAIL, "kube-proxy", "in iptables mode", "apt purge"),
        ),
        (
            {"proxy": KubeProxy(process=77)},
            *(WARN, "kube-proxy", "runs as process 77", "curl http://127.0.0.1:10249/proxyMode"),
        ),
        (
            {"proxy": KubeProxy()},
            *(FAIL, "kube-proxy", "no sign of it", "spec.nodeName=worker-1"),
        ),
        # iptables
        *(
            ({"tables": (nat(), HEALTHY_6, other)}, WARN, "iptables backend", text, mend)
            for other, text, mend in (
                (nat(backend="legacy", found=PROXYS_ALONE), "in legacy and nft", "reboot"),
                (nat(backend="legacy", found=Found(OURS)), "left in iptables-legacy", "restart"),
            )
        ),
        *(
            (unreadable(*error), FAIL, "nat table, IPv4", f"iptables-{error[0]}-save: ", mend)
            for error, mend in (
                (("nft", "not found", "apt install iptables"), "apt install iptables"),
                (("nft", "does not work"), "nft list table ip nat"),
                (("legacy", "does not work"), "modprobe iptable_nat"),
            )
        ),
        *(
            (tables(**fields), WARN, "KUBE-MARK-MASQ, IPv4", text, "delete pod")
            for fields, text in (
                ({"found": Found(OURS, JUMPS, frozenset({"KUBE-SERVICES"}))}, "no such chain"),
                ({"empty": {"KUBE-MARK-MASQ"}}, "has no rule"),
                ({"masquerading": False}, "nothing in POSTROUTING"),
            )
        ),
        *(
            (tables(**fields), FAIL, "jumps, IPv4", text, RESTART)
            for fields, text in (
                (
                    {"found": BEHIND, "first": FIRST},
                    "OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES",
                ),
                (
                    {"found": holding(jumps={"OUTPUT": JUMPS["OUTPUT"]})},
                    "PREROUTING does not jump to IPVS_PREROUTING",
                ),
            )
        ),
        ({"changes": CHANGES}, FAIL, "rules", OUT_OF_SYNC, RESTART),
        (
            {"changes": CHANGES, "holder": None},
            *(FAIL, "rules", OUT_OF_SYNC, "systemctl start ipvs-node-agent"),
        ),
        # The agent
        *(
            (fields, level, "agent", text, mend)
            for fields, level, text, mend in (
                (
                    service(Unit("loaded", "inactive", "enabled")),
                    *(FAIL, "is inactive", "systemctl start"),
                ),
                (
                    service(Unit("loaded", "failed", "enabled", 0, "Oh")),
                    *(FAIL, "failed: Oh", "journalctl -u"),
                ),
                (
                    service(Unit("loaded", "active", "disabled", AGENT), OURSELVES, holder=AGENT),
                    *(WARN, "disabled", "systemctl enable"),
                ),
                (
                    service(
                        Unit("loaded", "activating", "enabled", AGENT, "Waiting"),
                        OURSELVES,
                        holder=AGENT,
                    ),
                    *(WARN, "is starting: Waiting", "systemctl status"),
                ),
                (
                    {"units": None, "holder": None, "agents": ()},
                    *(FAIL, "does not run", "systemctl start ipvs-node-agent"),
                ),
                (service(Unit()), FAIL, "does not run", "systemctl start ipvs-node-agent"),
                (
                    service(Unit("loaded", "activating", "enabled"), STRANGER, holder=12),
                    *(FAIL, "process 12 keeps the service from starting", "kill 12"),
                ),
                (
                    {"agents": (OURSELVES, STRANGER)},
                    *(FAIL, "a second one runs as process 12", "kill 12"),
                ),
            )
        ),
        # Predecessors and neighbours
        *(
            (
                {"agents": (OURSELVES, Process(12, program))},
                *(level, program, "runs as process 12"),
                f"kubectl -n kube-system delete daemonset {program}",
            )
            for program, level in (("network-node-manager", WARN), ("ipvs-node-controller", FAIL))
        ),
        (
            tables(found=holding("NMANAGER_PREROUTING")),
            *(WARN, "network-node-manager", "left chains NMANAGER_"),
            " | iptables-nft-restore -w 5 --noflush",
        ),
        *(
            (
                {"listener": listener},
                *(FAIL, "metrics", f"{who} listens on 127.0.0.1:10273", "metricsBindAddress: "),
            )
            for listener, who in (
                (Listener(12, "nc"), "process 12 (nc)"),
                (Listener(0, ""), "somebody"),
            )
        ),
        *(
            (fields, WARN, "other firewalls", text, mend)
            for fields, text, mend in (
                (beside("nftables", flushing_file=True), "within 2 s", "/etc/nftables.conf"),
                (
                    beside("ufw"),
                    "empties PREROUTING and OUTPUT",
                    "systemctl disable --now ufw",
                ),
                (beside("firewalld"), "may flush", "systemctl disable --now firewalld"),
                (
                    beside("netfilter-persistent"),
                    "by saved ones;",
                    "disable netfilter-persistent",
                ),
                (
                    beside("netfilter-persistent", saved_rules=True),
                    *("stale ones", "sed -i '/IPVS_/d'"),
                ),
            )
        ),
        ({"conntrack": False}, WARN, "conntrack", "UDP", "apt install conntrack"),
        *(
            (without(key), FAIL, "kernel", f"net.{name} is 0", f"sysctl -w net.{name}=1")
            for key, name in (
                ("ipv4/ip_forward", "ipv4.ip_forward"),
                ("ipv6/conf/all/forwarding", "ipv6.conf.all.forwarding"),
                ("ipv4/vs/conntrack", "ipv4.vs.conntrack"),
            )
        ),
    ],
)
def test_what_is_wrong_is_found_and_nothing_else(
    fields: dict[str, Any], level: str, what: str, text: str, mend: str
) -> None:
    says(facts(**fields), level, what, text, mend)


OWN_MARK = Config(chains=Chains(mark_masquerade="MARK-IT"))
MARKS_OF_HIS_OWN = tuple(
    nat(family, found=holding("MARK-IT"), masquerading=False) for family in FAMILIES
)
NOT_SPOKEN = nat(IPV6, error=TableError("ip6tables-nft-save", "no such table"))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"proxy": KubeProxy(device=True)}, id="the device gives IPVS away"),
        pytest.param({"kubelet_backend": None}, id="the kubelet left no trace"),
        pytest.param(
            {
                "cluster": cluster(node=read_node(node("10.240.2.128/25"))._replace(addresses=())),
                "tables": (nat(), NOT_SPOKEN),
            },
            id="a family that the node does not speak",
        ),
        pytest.param(
            {"config": OWN_MARK, "tables": MARKS_OF_HIS_OWN}, id="a mark chain of a user's own"
        ),
        pytest.param({"units": None}, id="a process without systemd"),
        pytest.param({"units": {UNIT: Unit()}}, id="a process without a service"),
        pytest.param({"listener": Listener(AGENT, "python3")}, id="the agent's own port"),
        pytest.param({"listener": Listener(0, "", ours=True)}, id="the agent's own answer"),
        pytest.param(
            {"config": Config(metrics_bind_address=""), "listener": Listener(12, "nc")},
            id="a port that nobody wants",
        ),
        pytest.param(beside("nftables"), id="an nftables that flushes no foreign rules"),
    ],
)
def test_what_is_as_it_may_be_gives_only_ok(fields: dict[str, Any]) -> None:
    assert bad(facts(**fields)) == []


THEIRS_NOT_OURS = (
    nat(backend="legacy", found=PROXYS_ALONE),
    nat(found=Found(OURS, JUMPS, frozenset({"KUBE-X"}))),
)


@pytest.mark.parametrize(
    ("fields", "text", "mend"),
    [
        (
            {
                "backend": "legacy",
                "kubelet_backend": "nft",
                "tables": (nat(backend="legacy"), nat(backend="legacy")),
            },
            "and the kubelet iptables-nft",
            "{backend: auto} in /etc/x.yaml",
        ),
        (
            {"kubelet_backend": None, "tables": THEIRS_NOT_OURS},
            "and kube-proxy iptables-legacy",
            "{backend: legacy} in /etc/x.yaml",
        ),
        (
            {
                "config": Config(iptables=IptablesOptions("nft")),
                "kubelet_backend": None,
                "tables": (nat(backend="legacy", found=PROXYS_ALONE), nat(found=Found())),
            },
            "and kube-proxy iptables-legacy",
            "iptables: {backend: auto} in /etc/x.yaml",
        ),
    ],
    ids=["than the kubelet", "than kube-proxy", "by the configuration"],
)
def test_another_backend_than_theirs(fields: dict[str, Any], text: str, mend: str) -> None:
    (found,) = [f for f in bad(facts(**fields)) if f.what == "iptables backend"]
    assert (found.level, text in found.text, mend in found.mend) == (FAIL, True, True)
