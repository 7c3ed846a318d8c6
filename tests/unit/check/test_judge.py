"""What `check` says about each thing it knows of a node: facts in, findings out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ipvs_node_agent.apiserver.client import ApiError
from ipvs_node_agent.check.facts import (
    Cluster,
    Configuration,
    Facts,
    Host,
    Listener,
    Process,
    Proxy,
    Table,
    Unit,
    Validity,
)
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, as_json, as_lines
from ipvs_node_agent.check.judge_cluster import judge
from ipvs_node_agent.config.settings import Chains, Config, IptablesOptions
from ipvs_node_agent.errors import RefusedError, UsageError
from ipvs_node_agent.iptables.command import TableError
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, parse_address, parse_network
from ipvs_node_agent.model.objects import read_node, read_service
from ipvs_node_agent.nat.ruleset import Change, Found
from tests.support.cluster import POD_CIDRS, node, service

NOW = 1_767_600_000.0
DAY = 86_400.0
AGENT = 4711
SERVER = "https://10.0.0.1:6443"
PROXYS_CHAINS = frozenset({"KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"})
OURS = {"IPVS_PREROUTING": (), "IPVS_OUTPUT": ()}
JUMPS = {"PREROUTING": ((1, "IPVS_PREROUTING"),), "OUTPUT": ((1, "IPVS_OUTPUT"),)}
WEB = service("web", ["10.231.0.1", "fd00:231::1"], ["10.19.0.1", "fd00:19::1"])
UNIT = "ipvs-node-agent.service"
RUNNING = Unit("loaded", "active", "enabled", AGENT, "In sync")
ACTIVE = Unit("loaded", "active", "enabled")


def nat(family: Any = IPV4, backend: str = "nft", **fields: Any) -> Table:
    found = fields.pop("found", Found(OURS, JUMPS, PROXYS_CHAINS))
    found = replace(found, filled=found.foreign - fields.pop("empty", frozenset()))
    return Table(family, backend, found, masquerading=fields.pop("masquerading", True), **fields)


def healthy_host() -> Host:
    return Host(
        may_program=True,
        kubelet_backend="nft",
        backend="nft",
        tables=tuple(nat(family) for family in FAMILIES),
        proxy=Proxy("ipvs", device=True, process=99),
        holder=AGENT,
        agents=(Process(AGENT, "ipvs-node-agent"),),
        units={UNIT: RUNNING, "nftables.service": Unit("loaded", "inactive", "disabled")},
        settings={
            "ipv4/ip_forward": "1",
            "ipv6/conf/all/forwarding": "1",
            "ipv4/vs/conntrack": "1",
        },
    )


def cluster(**fields: Any) -> Cluster:
    services = {s.key: s for s in (read_service(WEB),)}
    healthy = Cluster(
        server=SERVER,
        user="system:node:worker-1",
        certified_name="worker-1",
        validity=Validity(NOW - 30 * DAY, NOW + 300 * DAY),
        node_name="worker-1",
        node=read_node(node(*POD_CIDRS)),
        services=services,
    )
    return replace(healthy, **fields)


def facts(**fields: Any) -> Facts:
    """A healthy node's, but for `fields`; those of its host by their own names."""
    configuration = Configuration("/etc/x.yaml", fields.pop("config", Config()))
    parts = {name: fields.pop(name) for name in ("cluster", "changes") if name in fields}
    configuration = fields.pop("configuration", configuration)
    host = replace(healthy_host(), **fields)
    return Facts(
        configuration, parts.get("cluster", cluster()), host, NOW, parts.get("changes", ())
    )


def bad(found: Facts) -> list[Finding]:
    return [finding for finding in judge(found) if finding.level != OK]


def test_a_healthy_node_gives_only_ok() -> None:
    findings = judge(facts())
    assert [f for f in findings if f.level != OK or f.mend] == []
    assert [f.what for f in findings] == [
        "configuration",
        "credentials",
        "API server",
        "permission",
        "Node",
        "pod CIDRs",
        "external IPs",
        "privileges",
        "kube-proxy",
        "iptables backend",
        *(
            f"{what}, {family}"
            for family in FAMILIES
            for what in ("nat table", "KUBE-MARK-MASQ", "jumps")
        ),
        "agent",
        "metrics",
        "other firewalls",
        "conntrack",
        "kernel",
        "rules",
    ]


def says(found: Facts, level: str, what: str, text: str, mend: str) -> None:
    """Exactly one finding is not ok, and this is it; `text` and `mend` are parts of it."""
    (only,) = bad(found)
    assert (only.level, only.what) == (level, what)
    assert text in only.text
    assert mend in only.mend
    assert only.mend


# The cluster


def test_a_bad_configuration_says_where() -> None:
    error = UsageError("configuration /etc/x.yaml line 3", "unknown key foo")
    found = facts(configuration=Configuration("/etc/x.yaml", error=error))
    says(found, FAIL, "configuration", "/etc/x.yaml line 3: unknown key foo", "edit /etc/x.yaml")


def test_a_configuration_that_others_may_write_says_the_command() -> None:
    error = UsageError("configuration /etc/x.yaml", "others can write it", "chmod go-w /etc/x.yaml")
    found = facts(configuration=Configuration("/etc/x.yaml", error=error))
    says(found, FAIL, "configuration", "others can write it", "chmod go-w /etc/x.yaml")


def without_credentials(why: str, hint: str = "") -> Facts:
    error = RefusedError("kubeconfig /etc/kubernetes/kubelet.conf", why, hint)
    return facts(cluster=Cluster(error=error, node_name="worker-1"), changes=None, tables=(nat(),))


@pytest.mark.parametrize(
    ("why", "hint", "mend"),
    [
        ("No such file or directory", "is this node's kubelet set up?", "kubeadm join"),
        ("cannot read /x.pem: Permission denied", "run it as root", "run it as root"),
        ("cannot load /x.pem: KEY_VALUES_MISMATCH", "", "system:node:worker-1 >kubelet.conf"),
    ],
)
def test_credentials_that_cannot_be_loaded(why: str, hint: str, mend: str) -> None:
    says(without_credentials(why, hint), FAIL, "credentials", why, mend)


@pytest.mark.parametrize(
    ("begin", "end", "level", "text", "mend"),
    [
        (-365, -1, FAIL, "system:node:worker-1 expired on 2026-01-04 08:00 UTC", "kubeadm"),
        (1, 365, FAIL, "not valid before 2026-01-06 08:00 UTC", "timedatectl set-ntp true"),
        (-350, 15, WARN, "expires on 2026-01-20 08:00 UTC and should", "systemctl restart kubelet"),
    ],
)
def test_a_certificate_out_of_its_time(
    begin: float, end: float, level: str, text: str, mend: str
) -> None:
    validity = Validity(NOW + begin * DAY, NOW + end * DAY)
    says(facts(cluster=cluster(validity=validity)), level, "credentials", text, mend)


def test_credentials_without_a_certificate_are_fine() -> None:
    found = cluster(validity=None, user=None, certified_name=None)
    assert bad(facts(cluster=found)) == []


def test_a_server_that_is_not_verified() -> None:
    found = facts(cluster=cluster(warning="the certificate of the API server is not verified"))
    says(found, WARN, "credentials", "is not verified", "certificate-authority")


NO_ANSWERS = {"node": None, "services": None}


@pytest.mark.parametrize(
    ("why", "hint", "mend"),
    [
        ("cannot be reached: Connection refused", "", f"curl -k {SERVER}/livez"),
        ("cannot be reached: CERTIFICATE_VERIFY_FAILED", "the CA is another", "the CA is another"),
    ],
)
def test_a_server_that_cannot_be_reached(why: str, hint: str, mend: str) -> None:
    error = ApiError(f"API server {SERVER}", why, hint)
    found = facts(cluster=cluster(unreachable=error, **NO_ANSWERS), changes=None, tables=(nat(),))
    says(found, FAIL, "API server", f"{SERVER}: {why}", mend)


def refusal(status: int) -> ApiError:
    return ApiError(f"API server {SERVER}", f"refused to list services: {status}", "h", status)


@pytest.mark.parametrize(
    ("status", "fields", "config", "mend"),
    [
        (401, {}, Config(), "kubeadm kubeconfig user"),
        (403, {}, Config(), "kubeadm kubeconfig user"),
        (403, {}, Config(kubeconfig="/x.conf"), "kubeconfig: /etc/kubernetes/kubelet.conf in"),
        (403, {"node_name": "other"}, Config(node_name="other"), "no nodeName in /etc/x.yaml"),
        (500, {}, Config(), f"see the log of {SERVER}"),
    ],
)
def test_a_server_that_refuses(
    status: int, fields: dict[str, Any], config: Config, mend: str
) -> None:
    refused = cluster(refused=(refusal(status),), **NO_ANSWERS, **fields)
    found = facts(cluster=refused, config=config, changes=None, tables=(nat(),))
    says(found, FAIL, "permission", f"refused to list services: {status}", mend)


def test_a_node_that_the_server_does_not_know() -> None:
    found = facts(cluster=cluster(node=None), changes=None, tables=(nat(),))
    says(found, FAIL, "Node", "knows no Node worker-1", "nodeName: ")


def test_a_node_without_pod_cidrs() -> None:
    found = facts(cluster=cluster(node=read_node(node())), changes=None)
    says(found, FAIL, "pod CIDRs", "has none yet", "podCIDRs: [CIDR] in /etc/x.yaml")


def test_pods_with_addresses_outside_the_pod_cidrs() -> None:
    found = facts(pods=(parse_address("10.240.2.130"), parse_address("172.31.0.9")))
    says(found, WARN, "pod CIDRs", "other addresses: 172.31.0.9", "podCIDRs: ")


@pytest.mark.parametrize(
    ("cidrs", "level", "text"),
    [
        (["10.0.0.0/8", "fd00::/8"], FAIL, "all 2 are refused"),
        (["10.0.0.0/8", "fd00:10:240:2::/64"], WARN, "1 of 2 are refused"),
    ],
)
def test_a_pod_cidr_that_contains_external_ips(cidrs: list[str], level: str, text: str) -> None:
    config = Config(pod_cidrs=tuple(parse_network(cidr) for cidr in cidrs))
    says(facts(config=config), level, "external IPs", text, "podCIDRs: [this node's own]")


def test_other_refusals_name_the_service() -> None:
    services = {"default/bad": read_service(service("bad", ["10.231.0.2"], ["127.0.0.1", "x"]))}
    found = facts(cluster=cluster(services=services))
    says(found, WARN, "external IPs", "default/bad: ", "kubectl -n default edit service bad")


# kube-proxy and iptables


def test_without_rights_nothing_of_the_kernel_is_judged() -> None:
    found = facts(may_program=False, tables=(), proxy=Proxy("ipvs"), changes=None)
    says(found, FAIL, "privileges", "CAP_NET_ADMIN", "sudo ipvs-node-agent check")


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        (Proxy("iptables"), "in iptables mode, by its own word: the agent is not needed"),
        (Proxy("nftables"), "in nftables mode, by its own word: the agent is not needed"),
        (Proxy(nftables=True), "in nftables mode, by its nftables table kube-proxy"),
        (Proxy("winkernel"), "in winkernel mode"),
    ],
)
def test_a_mode_of_kube_proxy_that_does_not_need_the_agent(proxy: Proxy, text: str) -> None:
    says(facts(proxy=proxy), FAIL, "kube-proxy", text, "apt purge ipvs-node-agent")


def test_chains_of_services_give_the_iptables_mode_away() -> None:
    found = Found(OURS, JUMPS, PROXYS_CHAINS | {"KUBE-SVC-TCOU7JCQXEZGVUNU"})
    tables = (nat(found=found), nat(FAMILIES[1]))
    says(facts(proxy=Proxy(), tables=tables), FAIL, "kube-proxy", "in iptables mode", "apt purge")


def test_the_device_gives_the_ipvs_mode_away() -> None:
    assert bad(facts(proxy=Proxy(device=True))) == []


def test_a_kube_proxy_whose_mode_cannot_be_told() -> None:
    found = facts(proxy=Proxy(process=77))
    says(found, WARN, "kube-proxy", "runs as process 77", "curl http://127.0.0.1:10249/proxyMode")


def test_no_kube_proxy_at_all() -> None:
    found = facts(proxy=Proxy())
    says(found, FAIL, "kube-proxy", "no sign of it", "spec.nodeName=worker-1")


@pytest.mark.parametrize(
    ("backend", "kubelet", "proxys", "level", "text", "mend"),
    [
        ("legacy", "nft", "legacy", FAIL, "and the kubelet iptables-nft", "{backend: auto} in"),
        ("nft", None, "legacy", FAIL, "and kube-proxy iptables-legacy", "{backend: legacy} in"),
    ],
)
def test_another_backend_than_theirs(
    backend: str, kubelet: str | None, proxys: str, level: str, text: str, mend: str
) -> None:
    tables = (nat(backend=proxys), nat(backend=backend))
    if proxys != backend:
        marks = Found(OURS, JUMPS, frozenset({"KUBE-X"}))
        tables = (nat(backend=proxys, found=Found(foreign=PROXYS_CHAINS)), nat(found=marks))
    host = {"backend": backend, "kubelet_backend": kubelet, "tables": tables}
    found = [f for f in bad(facts(**host)) if f.what == "iptables backend"]
    assert [(f.level, text in f.text, mend in f.mend) for f in found] == [(level, True, True)]


def test_a_configured_backend_is_the_one_to_edit() -> None:
    config = Config(iptables=IptablesOptions("nft"))
    tables = (nat(backend="legacy", found=Found(foreign=PROXYS_CHAINS)), nat(found=Found()))
    found = bad(facts(config=config, kubelet_backend=None, tables=tables))
    assert "iptables: {backend: auto} in /etc/x.yaml" in [f.mend for f in found]


def test_kube_proxys_chains_in_both_backends() -> None:
    tables = (nat(), nat(FAMILIES[1]), nat(backend="legacy", found=Found(foreign=PROXYS_CHAINS)))
    says(facts(tables=tables), WARN, "iptables backend", "in legacy and nft", "reboot")


def test_chains_of_ours_that_were_left_in_the_other_backend() -> None:
    tables = (nat(), nat(FAMILIES[1]), nat(backend="legacy", found=Found(OURS)))
    says(facts(tables=tables), WARN, "iptables backend", "left in iptables-legacy", "restart")


def test_the_default_backend_is_fine_without_a_trace_of_the_kubelet() -> None:
    assert bad(facts(kubelet_backend=None)) == []


@pytest.mark.parametrize(
    ("backend", "error", "mend"),
    [
        (
            "nft",
            TableError("iptables-nft-save", "not found", "apt install iptables"),
            "apt install",
        ),
        ("nft", TableError("iptables-nft-save", "does not work"), "nft list table ip nat"),
        ("legacy", TableError("iptables-legacy-save", "does not work"), "modprobe iptable_nat"),
    ],
)
def test_a_nat_table_that_cannot_be_used(backend: str, error: TableError, mend: str) -> None:
    tables = (nat(backend=backend, error=error), nat(FAMILIES[1], backend))
    found = facts(tables=tables, backend=backend, kubelet_backend=backend, changes=None)
    says(found, FAIL, "nat table, IPv4", f"iptables-{backend}-save: {error.why}", mend)


def test_a_family_that_the_node_does_not_speak_does_not_matter() -> None:
    lonely = read_node(node("10.240.2.128/25"))._replace(addresses=())
    broken = nat(FAMILIES[1], error=TableError("ip6tables-nft-save", "no such table"))
    assert bad(facts(cluster=cluster(node=lonely), tables=(nat(), broken))) == []


def test_a_missing_mark_chain() -> None:
    tables = (nat(found=Found(OURS, JUMPS, frozenset({"KUBE-SERVICES"}))), nat(FAMILIES[1]))
    says(facts(tables=tables), WARN, "KUBE-MARK-MASQ, IPv4", "no such chain", "delete pod")


def test_a_mark_chain_that_marks_nothing() -> None:
    tables = (nat(empty={"KUBE-MARK-MASQ"}), nat(FAMILIES[1]))
    says(facts(tables=tables), WARN, "KUBE-MARK-MASQ, IPv4", "has no rule", "delete pod")


def test_marks_that_nobody_masquerades() -> None:
    tables = (nat(masquerading=False), nat(FAMILIES[1]))
    says(facts(tables=tables), WARN, "KUBE-MARK-MASQ, IPv4", "nothing in POSTROUTING", "delete pod")


def test_a_mark_chain_of_a_users_own_is_his_business() -> None:
    config = Config(chains=Chains(mark_masquerade="MARK-IT"))
    marks = Found(OURS, JUMPS, PROXYS_CHAINS | {"MARK-IT"})
    tables = tuple(nat(family, found=marks, masquerading=False) for family in FAMILIES)
    assert bad(facts(config=config, tables=tables)) == []


def test_a_jump_behind_somebody_elses_rule() -> None:
    jumps = {**JUMPS, "OUTPUT": ((2, "IPVS_OUTPUT"),)}
    first = {"OUTPUT": '-m comment --comment "a -j b" -j KUBE-SERVICES'}
    tables = (nat(found=Found(OURS, jumps, PROXYS_CHAINS), first=first), nat(FAMILIES[1]))
    text = "OUTPUT jumps to IPVS_OUTPUT behind KUBE-SERVICES"
    mend = "systemctl restart ipvs-node-agent"
    says(facts(tables=tables), FAIL, "jumps, IPv4", text, mend)


def test_a_jump_that_is_missing() -> None:
    jumps = {"OUTPUT": JUMPS["OUTPUT"]}
    tables = (nat(found=Found(OURS, jumps, PROXYS_CHAINS)), nat(FAMILIES[1]))
    text = "PREROUTING does not jump to IPVS_PREROUTING"
    says(facts(tables=tables), FAIL, "jumps, IPv4", text, "systemctl restart ipvs-node-agent")


@pytest.mark.parametrize(("holder", "verb"), [(AGENT, "restart"), (None, "start")])
def test_rules_that_are_out_of_sync(holder: int | None, verb: str) -> None:
    change = Change({"A": (), "B": ()}, ("C",), hooked=(("OUTPUT", "A"),))
    found = facts(changes=(("iptables-nft-restore", change),), holder=holder)
    text = "iptables-nft: 2 chains to write, 1 chains to remove, 1 jumps to set"
    says(found, FAIL, "rules", text, f"systemctl {verb} ipvs-node-agent")


# Processes, ports and neighbours


@pytest.mark.parametrize(
    ("unit", "level", "text", "mend"),
    [
        (Unit("loaded", "inactive", "enabled"), FAIL, "is inactive", "systemctl start"),
        (Unit("loaded", "failed", "enabled", 0, "Oh"), FAIL, "failed: Oh", "journalctl -u"),
        (Unit("loaded", "active", "disabled", AGENT), WARN, "disabled", "systemctl enable"),
        (
            Unit("loaded", "activating", "enabled", AGENT, "Waiting"),
            WARN,
            "is starting: Waiting",
            "systemctl status",
        ),
    ],
)
def test_a_service_that_does_not_run_as_it_should(
    unit: Unit, level: str, text: str, mend: str
) -> None:
    holder = AGENT if unit.process else None
    agents = (Process(AGENT, "ipvs-node-agent"),) if holder else ()
    found = facts(units={UNIT: unit}, holder=holder, agents=agents)
    says(found, level, "agent", text, mend)


@pytest.mark.parametrize("units", [None, {UNIT: Unit()}])
def test_without_a_service_a_process_is_enough(units: Any) -> None:
    assert bad(facts(units=units)) == []
    nobody = facts(units=units, holder=None, agents=())
    says(nobody, FAIL, "agent", "does not run", "systemctl start ipvs-node-agent")


def test_an_agent_by_hand_that_keeps_the_service_away() -> None:
    unit = Unit("loaded", "activating", "enabled")
    found = facts(units={UNIT: unit}, holder=12, agents=(Process(12, "ipvs-node-agent"),))
    says(found, FAIL, "agent", "process 12 keeps the service from starting", "kill 12")


def test_a_second_agent() -> None:
    agents = (Process(AGENT, "ipvs-node-agent"), Process(12, "ipvs-node-agent"))
    says(facts(agents=agents), FAIL, "agent", "a second one runs as process 12", "kill 12")


@pytest.mark.parametrize(
    ("program", "level"), [("network-node-manager", WARN), ("ipvs-node-controller", FAIL)]
)
def test_a_predecessor_that_runs(program: str, level: str) -> None:
    agents = (Process(AGENT, "ipvs-node-agent"), Process(12, program))
    mend = f"kubectl -n kube-system delete daemonset {program}"
    says(facts(agents=agents), level, program, "runs as process 12", mend)


def test_chains_that_a_predecessor_left() -> None:
    left = Found(OURS, JUMPS, PROXYS_CHAINS | {"NMANAGER_PREROUTING"})
    mend = " | iptables-nft-restore -w 5 --noflush"
    tables = (nat(found=left), nat(FAMILIES[1]))
    says(facts(tables=tables), WARN, "network-node-manager", "left chains NMANAGER_", mend)


@pytest.mark.parametrize(
    ("listener", "who"),
    [(Listener(12, "nc"), "process 12 (nc)"), (Listener(0, ""), "somebody")],
)
def test_a_metrics_port_that_somebody_else_has(listener: Listener, who: str) -> None:
    text = f"{who} listens on 127.0.0.1:10273"
    says(facts(listener=listener), FAIL, "metrics", text, "metricsBindAddress: ")


@pytest.mark.parametrize("listener", [Listener(AGENT, "python3"), Listener(0, "", ours=True)])
def test_a_metrics_port_that_the_agent_has(listener: Listener) -> None:
    assert bad(facts(listener=listener)) == []


def test_a_metrics_port_that_nobody_wants() -> None:
    config = Config(metrics_bind_address="")
    assert bad(facts(config=config, listener=Listener(12, "nc"))) == []


@pytest.mark.parametrize(
    ("name", "fields", "text", "mend"),
    [
        ("nftables", {"flushing_file": True}, "within 2 s", "/etc/nftables.conf"),
        ("ufw", {}, "empties PREROUTING and OUTPUT", "systemctl disable --now ufw"),
        ("firewalld", {}, "may flush", "systemctl disable --now firewalld"),
        ("netfilter-persistent", {}, "by saved ones;", "disable netfilter-persistent"),
        ("netfilter-persistent", {"saved_rules": True}, "stale ones", "sed -i '/IPVS_/d'"),
    ],
)
def test_what_flushes_rules(name: str, fields: dict[str, Any], text: str, mend: str) -> None:
    units = {UNIT: RUNNING, f"{name}.service": ACTIVE}
    says(facts(units=units, **fields), WARN, "other firewalls", text, mend)


def test_nftables_that_flushes_no_foreign_rules_is_fine() -> None:
    assert bad(facts(units={UNIT: RUNNING, "nftables.service": ACTIVE})) == []


def test_a_missing_conntrack() -> None:
    says(facts(conntrack=False), WARN, "conntrack", "UDP", "apt install conntrack")


@pytest.mark.parametrize(
    "name", ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.vs.conntrack"]
)
def test_a_setting_of_the_kernel_that_stops_packets(name: str) -> None:
    key = name.replace("net.", "", 1).replace(".", "/")
    settings = {**healthy_host().settings, key: "0"}
    says(facts(settings=settings), FAIL, "kernel", f"{name} is 0", f"sysctl -w {name}=1")


# How it is shown


def test_a_line_each_and_whatever_is_hostile_is_made_harmless() -> None:
    findings = [Finding(OK, "Node", "a\nb"), Finding(FAIL, "x", "\x1b[2J", "rm\r")]
    assert as_lines(findings) == "ok    Node: a\\nb\nfail  x: \\x1b[2J => rm\\r\n"


def test_the_level_is_coloured() -> None:
    findings = [Finding(level, "x", "y") for level in (OK, WARN, FAIL)]
    assert as_lines(findings, colours=True) == (
        "\x1b[32mok  \x1b[0m  x: y\n\x1b[33mwarn\x1b[0m  x: y\n\x1b[31mfail\x1b[0m  x: y\n"
    )


def test_machines_get_json() -> None:
    assert json.loads(as_json([Finding(FAIL, "x", "y\n", "z")])) == [
        {"level": "fail", "what": "x", "text": "y\\n", "mend": "z"}
    ]
