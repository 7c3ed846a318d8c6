"""What `check` says about kube-proxy and the node's tables: facts in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.apiserver.reading import read_node
from ipvs_node_agent.check.facts import KubeProxy
from ipvs_node_agent.check.finding import FAIL, OK
from ipvs_node_agent.check.judge import judge
from ipvs_node_agent.config.settings import Chains, Config, IptablesOptions
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import FAMILIES, IPV6, parse_network
from ipvs_node_agent.model.objects import NodeNetwork, Snapshot
from ipvs_node_agent.nat.ahead import Ahead
from ipvs_node_agent.nat.ruleset import Change, Found
from ipvs_node_agent.nft.listing import BaseChain
from tests.support.cluster import node
from tests.support.nodefacts import (
    JUMPS,
    OURS,
    PROXYS_CHAINS,
    bad,
    cluster,
    facts,
    holding,
    nat,
    says,
    table,
)

PROXYS_ALONE = Found(foreign=PROXYS_CHAINS)


def unreadable(backend: str, why: str, hint: str = "") -> dict[str, Any]:
    error = TableError(f"iptables-{backend}-save", why, hint)
    tables = (nat(backend=backend, error=error), nat(IPV6, backend))
    return {"tables": tables, "backend": backend, "kubelet_backend": backend, "changes": None}


def beside_legacy(found: Found) -> dict[str, Any]:
    return {"tables": (nat(), nat(IPV6), nat(backend="legacy", found=found))}


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
        if "IPv4" in one.subject and "jumps" in one.subject
    )
    assert found.level == OK
    assert "cali-OUTPUT may stay in front" in found.text


BEHIND = table(
    found=Found(OURS, {**JUMPS, "OUTPUT": ((2, "IPVS_OUTPUT"),)}, PROXYS_CHAINS),
    first={"OUTPUT": ('-m comment --comment "a -j b" -j KUBE-SERVICES',)},
)


def behind_both(second: str = "-j KUBE-SERVICES") -> dict[str, Any]:
    """Calico's does no harm, and stands before the one that does."""
    calico = Ahead("-j cali-OUTPUT", "cali-OUTPUT", frozenset(), ())
    jumps = {**JUMPS, "OUTPUT": ((3, "IPVS_OUTPUT"),)}
    return table(
        found=Found(OURS, jumps, PROXYS_CHAINS, ahead={"OUTPUT": (calico,)}),
        first={"OUTPUT": ("-j cali-OUTPUT", second, "-j IPVS_OUTPUT")},
    )


NO_MARK_CHAIN = table(found=Found(OURS, JUMPS, frozenset({"KUBE-SERVICES"})))
CHANGE = Change({"A": (), "B": ()}, ("C",), hooked=(("OUTPUT", 1, "A"),))
CHANGES = {"changes": (("iptables-nft-restore", CHANGE),)}
OUT_OF_SYNC = "iptables-nft: 2 chains to write, 1 chains to remove, 1 jumps to set"
SVC = "KUBE-SVC-TCOU7JCQXEZGVUNU"
NATIVE = BaseChain("inet", "firewall", "pre", "nat", "prerouting", -150, 1)
NOT_WRITTEN = "ipvs-node-agent status says why"


WRONG: dict[str, dict[str, Any]] = {
    # kube-proxy
    **{
        f"fail KubeProxyNotIPVS: in {mode} mode, as it reports: the agent is not"
        " => if it is to stay so, apt remove ipvs-node-agent": {"proxy": KubeProxy(mode)}
        for mode in ("iptables", "nftables")
    },
    "fail KubeProxyNotIPVS: in winkernel mode => apt remove": {"proxy": KubeProxy("winkernel")},
    # What it leaves behind is no proof.
    "fail KubeProxyNotIPVS: in nftables mode, by its nftables table kube-proxy"
    " => /proxyMode tells whether that is so": {"proxy": KubeProxy(nftables=True)},
    "fail KubeProxyNotIPVS: in iptables mode => /proxyMode tells whether that is so": {
        "proxy": KubeProxy(),
        **holding(SVC),
    },
    "warn KubeProxyInDoubt: has no tables of that mode => nothing while it moves": {
        "proxy": KubeProxy(doubt="kube-proxy says that it is blue, but has no tables of that mode")
    },
    "warn KubeProxySilent: runs as process 77 => curl http://127.0.0.1:10249/proxyMode": {
        "proxy": KubeProxy(process=77)
    },
    "fail KubeProxyAbsent: not found => spec.nodeName=worker-1 must show": {"proxy": KubeProxy()},
    # iptables
    "warn BackendStale: uses iptables-nft, and has stale chains in iptables-legacy"
    " => kubectl drain worker-1": beside_legacy(PROXYS_ALONE),
    "warn BackendLeftover: left in iptables-legacy => restart": beside_legacy(Found(OURS)),
    "fail TableUnreadable: iptables-nft-save: not found => apt install iptables": unreadable(
        "nft", "not found", "apt install iptables"
    ),
    "fail TableUnreadable: iptables-nft-save: does not work => nft list table ip nat": unreadable(
        "nft", "does not work"
    ),
    "fail TableUnreadable: iptables-legacy-save: does not work"
    " => modprobe iptable_nat && echo iptable_nat >/etc/modules-load.d/": unreadable(
        "legacy", "does not work"
    ),
    # The agent brings a mark of its own: nothing is to be done.
    "warn MarkMissing: no such chain": NO_MARK_CHAIN,
    "warn MarkEmpty: is empty": table(empty={"KUBE-MARK-MASQ"}),
    "warn MarkNotMasqueraded: nothing in POSTROUTING => within a minute": table(masquerading=False),
    f"fail JumpBehind: OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES => {NOT_WRITTEN}": BEHIND,
    f"fail JumpBehind: IPVS_OUTPUT behind cali-OUTPUT => {NOT_WRITTEN}": (
        behind_calico("10.19.0.0/16")
    ),
    f"fail JumpBehind: to IPVS_OUTPUT behind KUBE-SERVICES, which => {NOT_WRITTEN}": behind_both(),
    f"fail JumpBehind: to IPVS_OUTPUT behind others' rules, which => {NOT_WRITTEN}": behind_both(
        "-p tcp -g OTHERS"
    ),
    f"fail JumpMissing: PREROUTING does not jump to IPVS_PREROUTING => {NOT_WRITTEN}": holding(
        jumps={"OUTPUT": JUMPS["OUTPUT"]}
    ),
    "warn NatBefore: the chain pre of the nft table inet firewall runs before"
    " => nft list chain inet firewall pre": {"base_chains": (NATIVE,)},
    f"fail RulesOutOfSync: {OUT_OF_SYNC} => {NOT_WRITTEN}": CHANGES,
}


@pytest.mark.parametrize(("line", "fields"), WRONG.items())
def test_what_is_wrong_is_found_and_nothing_else(line: str, fields: dict[str, Any]) -> None:
    says(facts(**fields), line)


def test_rules_that_nobody_keeps_are_put_right_by_the_agent_s_start() -> None:
    (_, rules) = bad(facts(**{**CHANGES, "holder": None, "units": {}, "agents": ()}))
    assert rules.remedy == "systemctl start ipvs-node-agent"


MARKED = Found(OURS, JUMPS, PROXYS_CHAINS | {"MARK-IT"})
IPV4_ALONE = read_node(node("10.240.2.128/25"))._replace(addresses=())
STALE_SVC = Found(foreign=frozenset({SVC}))
RIGHT: dict[str, dict[str, Any]] = {
    "the device gives IPVS away": {"proxy": KubeProxy(device=True)},
    "the kubelet left no trace": {"kubelet_backend": None},
    "a family that the node does not speak": {
        "cluster": cluster(node=IPV4_ALONE),
        "tables": (nat(), nat(IPV6, error=TableError("ip6tables-nft-save", "no such table"))),
    },
    "a family that the kernel lacks": {
        "seen": Snapshot({}, read_node(node()), NodeNetwork(absent=frozenset({6}))),
        "tables": (nat(), nat(IPV6, error=TableError("ip6tables-nft-save", "no such table"))),
    },
    "kube-proxy, where the kubelet was in the other backend": {
        "backend": "legacy",
        "kubelet_backend": "nft",
        "tables": (nat(backend="legacy"), nat(IPV6, backend="legacy")),
    },
    "a mark chain of a user's own": {
        "config": Config(chains=Chains(mark_masquerade="MARK-IT")),
        "tables": tuple(nat(family, found=MARKED, masquerading=False) for family in FAMILIES),
    },
    "iptables' own chains": {
        "base_chains": (
            NATIVE._replace(family="ip", table="nat"),
            NATIVE._replace(table="kube-proxy"),
            NATIVE._replace(priority=-90),
            NATIVE._replace(rules=0),
            NATIVE._replace(hook="input"),
            NATIVE._replace(kind="filter"),
        )
    },
}


@pytest.mark.parametrize("fields", RIGHT.values(), ids=[*RIGHT])
def test_what_is_as_it_may_be_gives_only_ok(fields: dict[str, Any]) -> None:
    assert bad(facts(**fields)) == []


def test_chains_of_another_mode_in_the_other_backend_are_of_another_time() -> None:
    found = bad(facts(proxy=KubeProxy(process=77), **beside_legacy(STALE_SVC)))
    assert [finding.id for finding in found] == ["KubeProxySilent"]


PROXY_ON_LEGACY = nat(backend="legacy", found=PROXYS_ALONE)
OTHER_BACKEND: dict[str, dict[str, Any]] = {
    "BackendNotKubelets: and the kubelet iptables-nft => {backend: auto} in /etc/x.yaml": {
        "backend": "legacy",
        "kubelet_backend": "nft",
        "tables": (nat(backend="legacy", found=Found()), nat(backend="legacy", found=Found())),
    },
    "BackendNotKubeProxys: iptables-legacy => {backend: legacy} in /etc/x.yaml": {
        "kubelet_backend": None,
        "tables": (PROXY_ON_LEGACY, nat(found=Found(OURS, JUMPS, frozenset({"KUBE-X"})))),
    },
    "BackendNotKubeProxys: iptables-legacy => iptables: {backend: auto} in /etc/x.yaml": {
        "config": Config(iptables=IptablesOptions("nft")),
        "kubelet_backend": None,
        "tables": (PROXY_ON_LEGACY, nat(found=Found())),
    },
}


@pytest.mark.parametrize(("line", "fields"), OTHER_BACKEND.items())
def test_another_backend_than_theirs_fails(line: str, fields: dict[str, Any]) -> None:
    (found,) = [f for f in bad(facts(**fields)) if f.subject == "iptables backend"]
    said, _, remedy = line.partition(" => ")
    id_, _, text = said.partition(": ")
    assert (found.id, found.level) == (id_, FAIL)
    assert (text in found.text, remedy in found.remedy) == (True, True)
