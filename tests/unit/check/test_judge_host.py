"""What `check` says about the node itself: facts in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from ipvs_node_agent.check.facts import Listener, Unit
from ipvs_node_agent.check.finding import OK, WARN
from ipvs_node_agent.check.judge_host import invalid_input
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.host.procfs import Process
from tests.support.nodefacts import (
    ACTIVE,
    AGENT,
    RUNNING,
    UNIT,
    bad,
    facts,
    healthy_host,
    holding,
    says,
)

OURSELVES, STRANGER = Process(AGENT, "ipvs-node-agent"), Process(12, "ipvs-node-agent")


def unit(*words: Any, holder: int | None = None, agents: Any = ()) -> dict[str, Any]:
    return {"units": {UNIT: Unit(*words)}, "holder": holder, "agents": agents}


def beside(name: str, **fields: Any) -> dict[str, Any]:
    return {"units": {UNIT: RUNNING, f"{name}.service": ACTIVE}, **fields}


def without(setting: str) -> dict[str, Any]:
    return {"settings": {**healthy_host().settings, setting: "0"}}


def dropping(loose: str, liberal: str) -> dict[str, Any]:
    """With dropInvalidInput, and these kernel settings."""
    settings = {**healthy_host().settings, LOOSE: loose, LIBERAL: liberal}
    return {"config": Config(drop_invalid_input=True), "settings": settings}


LOOSE, LIBERAL = "netfilter/nf_conntrack_tcp_loose", "netfilter/nf_conntrack_tcp_be_liberal"
OUR_WORK = {"holder": AGENT, "agents": (OURSELVES,)}
LASTING = "/etc/sysctl.d/90-kubernetes.conf && sysctl -p /etc/sysctl.d/90-kubernetes.conf"


WRONG: dict[str, dict[str, Any]] = {
    "fail PrivilegesMissing: CAP_NET_ADMIN => sudo ipvs-node-agent check": {
        "may_program": False,
        "tables": (),
        "changes": None,
    },
    # The agent
    "fail AgentDown: is inactive => systemctl start": unit("loaded", "inactive", "enabled"),
    "fail AgentFailed: failed: Oh => journalctl -u": unit("loaded", "failed", "enabled", 0, "Oh"),
    "warn AgentNotEnabled: disabled => systemctl enable": {
        **unit("loaded", "active", "disabled", AGENT),
        **OUR_WORK,
    },
    "warn AgentStarting: is starting: Waiting => systemctl status": {
        **unit("loaded", "activating", "enabled", AGENT, "Waiting"),
        **OUR_WORK,
    },
    "fail AgentDown: does not run => ipvs-node-agent run": {
        "units": None,
        "holder": None,
        "agents": (),
    },
    "fail AgentDown: does not run => ipvs-node-agent": unit(),
    "fail AgentMasked: is masked => systemctl unmask ipvs-node-agent; systemctl start": unit(
        "masked", "inactive", "masked"
    ),
    "fail AgentMasked: masked => systemctl unmask --runtime ipvs-node-agent; systemctl start": unit(
        "masked", "inactive", "masked-runtime"
    ),
    "fail AgentElsewhere: process 12 keeps the service from starting => systemctl status 12": unit(
        "loaded", "activating", "enabled", holder=12, agents=(STRANGER,)
    ),
    "fail AgentTwice: a second one runs as process 12 => systemctl status 12 shows who": {
        "agents": (OURSELVES, STRANGER)
    },
    # Predecessors and neighbours
    "warn PredecessorRuns: runs as process 12 => docs/migration.md": {
        "agents": (OURSELVES, Process(12, "network-node-manager"))
    },
    "fail PredecessorRuns: runs as process 12 => ipvs-node-controller --cascade=orphan": {
        "agents": (OURSELVES, Process(12, "ipvs-node-controller"))
    },
    "warn PredecessorsChains: left chains NMANAGER_"
    " =>  | iptables-nft-restore -w 5 --noflush": holding("NMANAGER_PREROUTING"),
    "fail MetricsPortTaken: process 12 (nc) listens on 127.0.0.1:10273 => metricsBindAddress: ": {
        "listener": Listener(12, "nc")
    },
    "fail MetricsPortTaken: another program listens on 127.0.0.1:10273 => metricsBindAddress: ": {
        "listener": Listener(0, "")
    },
    "warn NftablesFlushes: within a second => by hand, in /etc/nftables.conf": beside(
        "nftables", flushing_file=True
    ),
    "warn UfwFlushes: empties PREROUTING and OUTPUT when it is reloaded; the agent repairs": beside(
        "ufw"
    ),
    "warn FirewalldFlushes: may flush": beside("firewalld"),
    "warn SavedRules: with saved ones;": beside("netfilter-persistent"),
    "warn SavedRulesOfOurs: stale ones => take those lines out by hand": beside(
        "netfilter-persistent", saved_rules=True
    ),
    "warn ConntrackMissing: UDP => apt install conntrack": {"conntrack": False},
    **{
        f"fail ForwardingOff: net.{name} is 0 => echo net.{name}=1 >>{LASTING}": without(
            name.replace(".", "/")
        )
        for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding")
    },
    "fail ForwardingOff: ipv6 => accept_ra=2": without("ipv6/conf/all/forwarding"),
    "fail IPVSConntrackOff: net.ipv4.vs.conntrack is 0 => as kube-proxy does at each start": (
        without("ipv4/vs/conntrack")
    ),
    "warn InvalidInputEndsConnections: nf_conntrack_tcp_loose 0 => dropInvalidInput: false": (
        dropping("0", "0")
    ),
}


@pytest.mark.parametrize(("line", "fields"), WRONG.items())
def test_what_is_wrong_is_found_and_nothing_else(line: str, fields: dict[str, Any]) -> None:
    says(facts(**fields), line)


RIGHT: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize(
    ("settings", "level", "text"),
    [
        ({}, OK, "drops TCP packets"),
        ({LOOSE: "1", LIBERAL: "0"}, OK, "drops TCP packets"),
        (
            {LOOSE: "1", LIBERAL: "1"},
            OK,
            "does little: with net.netfilter.nf_conntrack_tcp_be_liberal",
        ),
        ({LOOSE: "0", LIBERAL: "0"}, WARN, "net.netfilter.nf_conntrack_tcp_loose 0"),
        ({LOOSE: "0", LIBERAL: "1"}, WARN, "net.netfilter.nf_conntrack_tcp_loose 0"),
    ],
)
def test_what_dropping_invalid_packets_does_is_said_where_it_is_asked_for(
    settings: dict[str, str], level: str, text: str
) -> None:
    settings = {**healthy_host().settings, **settings}
    (found,) = invalid_input(facts(config=Config(drop_invalid_input=True), settings=settings))
    assert (found.level, text in found.text) == (level, True)
    assert bool(found.remedy) is (level == WARN)
    assert not [*invalid_input(facts(settings=settings))]
