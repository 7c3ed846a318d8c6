"""The checks of the node itself: kube-proxy, iptables, the agent's process, and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

from ipvs_node_agent.check.facts import Facts, HostFacts, TableFacts, Unit
from ipvs_node_agent.check.finding import FAIL, OK, WARN, Finding, failed
from ipvs_node_agent.iptables.nftlist import NAT_PRIORITY
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address
from ipvs_node_agent.nat.ruleset import Found
from ipvs_node_agent.nat.ruletext import read, target

_REMOVE = "apt purge ipvs-node-agent"
_UNIT = "ipvs-node-agent.service"
_PREDECESSORS = ("network-node-manager", "ipvs-node-controller")
_PREDECESSORS_CHAINS = "NMANAGER_"
# Of what iptables-save prints, makes the input that empties, unhooks and removes those chains in
# one go. Nobody else's rules are in it: a whole table that is put back loses what others changed
# meanwhile, and what an older iptables cannot read.
_UNDOING = (
    '/^:NMANAGER_/ {print $1, "- [0:0]"; gone = gone "-X " substr($1, 2) "\\n"} '
    '/^-A [^N].* -j NMANAGER_/ {sub("-A", "-D"); print} '
    '/^[*]/ {print} /^COMMIT/ {printf "%s", gone; gone = ""; print}'
)


def privileges(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel's rules can be looked at."""
    if facts.host.may_program:
        yield Finding(OK, "privileges", "CAP_NET_ADMIN")
    else:
        text = "without CAP_NET_ADMIN the kernel's rules can be neither read nor programmed"
        yield Finding(FAIL, "privileges", text, "sudo ipvs-node-agent check")


def kube_proxy(facts: Facts) -> Iterator[Finding]:
    """Its mode, by its own word or by its signs."""
    proxy = facts.host.proxy
    mode, how = proxy.answer, "by its own word"
    if mode is None:
        mode, how = _guessed_mode(facts)
    if mode == "ipvs":
        yield Finding(OK, "kube-proxy", f"in IPVS mode, {how}")
    elif mode in ("iptables", "nftables"):
        past = "leads external IPs past kube-proxy's own rules"
        effect = "gives no Service rules" if proxy.answer else past
        text = f"in {mode} mode, {how}: the agent is not needed, and {effect}"
        yield Finding(FAIL, "kube-proxy", text, _REMOVE)
    elif mode:
        yield Finding(FAIL, "kube-proxy", f"in {mode} mode, {how}: not one with IPVS", _REMOVE)
    elif proxy.process is not None:
        text = f"runs as process {proxy.process}, but its mode cannot be told"
        mend = "curl http://127.0.0.1:10249/proxyMode must say ipvs: see its metricsBindAddress"
        yield Finding(WARN, "kube-proxy", text, mend)
    elif facts.host.may_program:
        text = "there is no sign of it; the ClusterIPs that the agent leads to are kube-proxy's"
        yield Finding(FAIL, "kube-proxy", text, _restart_proxy(facts))


def _guessed_mode(facts: Facts) -> tuple[str, str]:
    if facts.host.proxy.device:
        return "ipvs", "by its device kube-ipvs0"
    if facts.host.proxy.nftables:
        return "nftables", "by its nftables table kube-proxy"
    if any(name.startswith("KUBE-SVC-") for table in facts.host.tables for name in table.chains):
        return "iptables", "by its chains KUBE-SVC-..."
    return "", ""


def _restart_proxy(facts: Facts) -> str:
    there = f"spec.nodeName={facts.cluster.node_name or 'NAME'}"
    return f"kubectl -n kube-system delete pod -l k8s-app=kube-proxy --field-selector {there}"


def backend(facts: Facts) -> Iterator[Finding]:
    """Whether the agent programs where the kubelet and kube-proxy do."""
    host, wanted = facts.host, facts.configuration.config.iptables.backend
    if not host.may_program:
        return
    used, theirs = host.backend, host.kubelet_backend
    edit = f"iptables: {{backend: auto}} in {facts.configuration.path}"
    proxys = {table.backend for table in host.tables if "KUBE-SERVICES" in table.chains}
    proxys |= {table.backend for table in host.tables if "KUBE-MARK-MASQ" in table.chains}
    names = facts.configuration.config.chains
    own = {names.prerouting, names.output}
    left = sorted({t.backend for t in host.tables if t.backend != used and own & t.chains})
    if theirs not in (None, used):
        text = f"the agent uses iptables-{used}, and the kubelet iptables-{theirs}"
        yield Finding(FAIL, "iptables backend", text, edit)
    elif proxys and used not in proxys:
        (other,) = proxys
        text = f"the agent uses iptables-{used}, and kube-proxy iptables-{other}"
        if wanted == "auto":
            edit = f"iptables: {{backend: {other}}} in {facts.configuration.path}"
        yield Finding(FAIL, "iptables backend", text, edit)
    elif len(proxys) > 1:
        text = f"kube-proxy's chains are in {' and '.join(sorted(proxys))}; the kernel walks both"
        yield Finding(WARN, "iptables backend", text, "reboot the node, to have only one")
    elif left:
        text = f"the agent uses iptables-{used}, and has chains left in iptables-{left[0]}"
        yield Finding(WARN, "iptables backend", text, "systemctl restart ipvs-node-agent")
    else:
        as_ = "as the kubelet does" if theirs else "by default, as the kubelet left no trace"
        yield Finding(OK, "iptables backend", f"{used}, {as_}")


def nat_tables(facts: Facts) -> Iterator[Finding]:
    """Whether they can be used, whether marks are masqueraded, and whether our jumps are first."""
    for table in facts.host.tables:
        if table.backend != facts.host.backend or not _concerns(facts, table.family):
            continue
        if table.error is not None:
            yield failed(f"nat table, {table.family}", table.error, _show_nat(table))
        else:
            yield Finding(OK, f"nat table, {table.family}", f"iptables-{table.backend} reads it")
            yield from _masquerade(facts, table)
            yield from _jumps(facts, table)


def _concerns(facts: Facts, family: Family) -> bool:
    """Whether the node has the family; as long as nobody knows, it has IPv4 alone."""
    node, configured = facts.cluster.node, facts.configuration.config.pod_cidrs or ()
    known = (*node.pod_cidrs, *node.addresses) if node is not None else ()
    versions = {item.version for item in (*configured, *known)}
    return family.version in versions or (node is None and family is IPV4)


def _show_nat(table: TableFacts) -> str:
    if table.backend == "nft":
        ip = "ip" if table.family is IPV4 else "ip6"
        return f"nft list table {ip} nat shows what else is in it: move that to another table"
    return "modprobe iptable_nat" if table.family is IPV4 else "modprobe ip6table_nat"


def _masquerade(facts: Facts, table: TableFacts) -> Iterator[Finding]:
    mark = facts.configuration.config.chains.mark_masquerade
    what = f"{mark}, {table.family}"
    if mark not in table.chains:
        text = f"iptables-{table.backend} has no such chain: kube-proxy has not made it"
    elif mark not in table.found.filled:
        text = "has no rule, so that it marks nothing"
    elif mark == "KUBE-MARK-MASQ" and not table.masquerading:
        text = "is there, but nothing in POSTROUTING masquerades what it marks"
    else:
        yield Finding(OK, what, "is there, and kube-proxy masquerades what it marks")
        return
    yield Finding(WARN, what, text, _restart_proxy(facts))


def _jumps(facts: Facts, table: TableFacts) -> Iterator[Finding]:
    names = facts.configuration.config.chains
    wanted = {"PREROUTING": names.prerouting, "OUTPUT": names.output}
    # Without our chains there is nothing to jump to; whether they should be there is told by diff.
    if not table.chains.intersection(wanted.values()):
        return
    what, faults, passed = f"jumps, {table.family}", [], set()
    addresses = frozenset(_addresses(table.found))
    for built_in, name in wanted.items():
        places = [place for place, chain in table.found.jumps.get(built_in, ()) if chain == name]
        if not places:
            faults.append(f"{built_in} does not jump to {name}, so that no packet gets there")
            continue
        ahead = table.found.ahead.get(built_in, ())[: places[0] - 1]
        taking = [other.target for other in ahead if other.keeps(addresses)]
        passed |= {other.target for other in ahead}
        if taking or len(ahead) < places[0] - 1:
            first = taking[0] if taking else target(table.first.get(built_in, ""))
            faults.append(
                f"{built_in} jumps to {name} behind {first}, which ends the walk of packets"
            )
    for text in faults:
        yield Finding(FAIL, what, text, "systemctl restart ipvs-node-agent")
    if not faults:
        behind = f"; {', '.join(sorted(passed))} may stand in front, and takes nothing of ours"
        text = f"first in PREROUTING and OUTPUT{behind if passed else ''}"
        yield Finding(OK, what, text)


def _addresses(found: Found) -> Iterator[Address]:
    """The single addresses that our rules are about."""
    for rule in (read(text) for rules in found.chains.values() for text in rules):
        if rule is not None and rule.destination.endswith(("/32", "/128")):
            yield parse_address(rule.destination.partition("/")[0])


def before_iptables(facts: Facts) -> Iterator[Finding]:
    """Chains of nft's own that translate a packet before it comes to iptables' nat table."""
    for chain in facts.host.base_chains:
        is_before = chain.kind == "nat" and chain.hook in ("prerouting", "output")
        is_before = is_before and chain.rules > 0 and chain.priority <= NAT_PRIORITY
        is_iptables = chain.family != "inet" and chain.table == "nat"
        if is_before and not is_iptables and chain.table != "kube-proxy":
            name = f"{chain.family} {chain.table}"
            when = "before" if chain.priority < NAT_PRIORITY else "before or after"
            text = (
                f"the chain {chain.name} of the nft table {name} runs {when} iptables' own on"
                f" {chain.hook}: no rule of the agent's sees what it translates or accepts"
            )
            yield Finding(WARN, "nat chains", text, "nft list ruleset shows what it takes")


def agent(facts: Facts) -> Iterator[Finding]:
    """Whether it runs, once, and comes back after a reboot."""
    host = facts.host
    strangers = [p for p in host.agents if p.program not in _PREDECESSORS]
    second = [process for process in strangers if process.number != host.holder]
    unit = host.units.get(_UNIT) if host.units is not None else None
    if second and (host.holder is not None or len(second) > 1):
        text = f"a second one runs as process {second[-1].number}; they undo each other's work"
        yield Finding(FAIL, "agent", text, f"kill {second[-1].number}")
    elif unit is None or unit.load != "loaded":
        running = [p.number for p in strangers] if host.holder is None else [host.holder]
        if running:
            yield Finding(OK, "agent", f"runs as process {running[0]}")
        else:
            yield Finding(FAIL, "agent", "does not run", "systemctl start ipvs-node-agent")
    elif host.holder not in (None, unit.process):
        text = f"process {host.holder} keeps the service from starting"
        yield Finding(FAIL, "agent", text, f"kill {host.holder}")
    elif unit.active == "failed":
        text = f"the service failed: {unit.status or 'see its journal'}"
        yield Finding(FAIL, "agent", text, "journalctl -u ipvs-node-agent -n 20")
    elif unit.active == "activating":
        text = f"the service is starting: {unit.status or 'not in sync yet'}"
        yield Finding(WARN, "agent", text, "systemctl status ipvs-node-agent, and the lines above")
    elif unit.active not in ("active", "reloading"):
        text = f"the service is {unit.active}"
        yield Finding(FAIL, "agent", text, "systemctl start ipvs-node-agent")
    elif unit.enabled not in ("enabled", "enabled-runtime", "static", "alias", "linked"):
        text = f"the service runs, but is {unit.enabled or 'not enabled'}: gone with the next boot"
        yield Finding(WARN, "agent", text, "systemctl enable ipvs-node-agent")
    else:
        yield Finding(OK, "agent", f"the service runs as process {unit.process}")


def predecessors(facts: Facts) -> Iterator[Finding]:
    """Tools for the same purpose that came before, and what they left."""
    for process in facts.host.agents:
        if process.program in _PREDECESSORS:
            # The older one's chains have the names of ours.
            same = process.program == "ipvs-node-controller"
            text = f"runs as process {process.number}, for the same purpose"
            text += ", with chains of the same names as the agent's" if same else ""
            mend = f"kubectl -n kube-system delete daemonset {process.program}"
            yield Finding(FAIL if same else WARN, process.program, text, mend)
    left = sorted(
        f"{table.family.command}-{table.backend}"
        for table in facts.host.tables
        if any(name.startswith(_PREDECESSORS_CHAINS) for name in table.chains)
    )
    if left and not any(p.program == "network-node-manager" for p in facts.host.agents):
        text = f"left chains {_PREDECESSORS_CHAINS}... in {', '.join(left)}, which nobody updates"
        mend = f"{left[0]}-save -t nat | awk '{_UNDOING}' | {left[0]}-restore -w 5 --noflush"
        yield Finding(WARN, "network-node-manager", text, mend)


def metrics_port(facts: Facts) -> Iterator[Finding]:
    """Whether somebody else has it."""
    address, listener = facts.configuration.config.metrics_bind_address, facts.host.listener
    if not address:
        yield Finding(OK, "metrics", "turned off")
        return
    agents = {process.number for process in facts.host.agents} | {facts.host.holder}
    if listener is None:
        yield Finding(OK, "metrics", f"nobody else listens on {address}")
    elif listener.ours or listener.process in agents:
        yield Finding(OK, "metrics", f"served on {address}")
    else:
        who = f"process {listener.process} ({listener.program})" if listener.process else "somebody"
        text = f"{who} listens on {address}"
        mend = f"metricsBindAddress: with another port, in {facts.configuration.path}"
        yield Finding(FAIL, "metrics", text, mend)


def flushers(facts: Facts) -> Iterator[Finding]:
    """What else on the host takes rules of ours away now and then."""
    found = list(_flushers(facts.host))
    repaired = f"the agent repairs that within {facts.configuration.config.drift_check_period:g} s"
    for text, mend in found:
        yield Finding(WARN, "other firewalls", f"{text}; {repaired}", mend)
    if not found and facts.host.units is not None:
        yield Finding(OK, "other firewalls", "none that flushes rules")


def _flushers(host: HostFacts) -> Iterator[tuple[str, str]]:
    """What each of them does, and what mends it."""
    units = host.units or {}

    def runs(name: str) -> bool:
        unit = units.get(f"{name}.service", Unit())
        return unit.active == "active" or unit.enabled == "enabled"

    if runs("nftables") and host.flushing_file and host.backend == "nft":
        edit = "s/^flush ruleset/table inet filter\\ndelete table inet filter/"
        mend = f"sed -i '{edit}' /etc/nftables.conf"
        yield "nftables.service flushes all rules when it is reloaded or stopped", mend
    for name, does in (
        ("ufw", "empties PREROUTING and OUTPUT when it is reloaded"),
        ("firewalld", "may flush rules when it is reloaded"),
    ):
        if runs(name):
            yield f"{name} {does}", f"systemctl disable --now {name}"
    if runs("netfilter-persistent"):
        text = "netfilter-persistent replaces all rules by saved ones"
        if host.saved_rules:
            mend = "sed -i '/IPVS_/d' /etc/iptables/rules.v4 /etc/iptables/rules.v6"
            yield f"{text}, stale ones of the agent's among them", mend
        else:
            yield text, "systemctl disable netfilter-persistent"


def surroundings(facts: Facts) -> Iterator[Finding]:
    """Tools and kernel settings that the rules need to be of use."""
    host = facts.host
    if host.conntrack:
        yield Finding(OK, "conntrack", "the tool is installed")
    else:
        text = "the tool is missing; UDP flows that exist stay where they went before a change"
        yield Finding(WARN, "conntrack", text, "apt install conntrack")
    wanted = {"ipv4/ip_forward": "packets of pods are not forwarded"}
    if _has_ipv6(facts):
        wanted["ipv6/conf/all/forwarding"] = "packets of pods are not forwarded"
    wanted["ipv4/vs/conntrack"] = "what IPVS forwards is not masqueraded"
    bad = [key for key in wanted if host.settings.get(key) == "0"]
    for key in bad:
        name = "net." + key.replace("/", ".")
        yield Finding(FAIL, "kernel", f"{name} is 0: {wanted[key]}", f"sysctl -w {name}=1")
    if not bad:
        yield Finding(OK, "kernel", "forwards packets")


def invalid_input(facts: Facts) -> Iterator[Finding]:
    """Whether dropping INVALID packets does what it is for, where it is asked for."""
    if not facts.configuration.config.drop_invalid_input:
        return
    what, settings = "dropInvalidInput", facts.host.settings
    if settings.get("netfilter/nf_conntrack_tcp_loose") == "0":
        text = "ends connections that are older than their tracking, such as after a flush of it:"
        text += " net.netfilter.nf_conntrack_tcp_loose is 0, and calls their packets INVALID"
        yield Finding(WARN, what, text, f"dropInvalidInput: false in {facts.configuration.path}")
    elif settings.get("netfilter/nf_conntrack_tcp_be_liberal") == "1":
        text = "does little: net.netfilter.nf_conntrack_tcp_be_liberal is 1, and calls few INVALID"
        yield Finding(OK, what, text)
    else:
        yield Finding(OK, what, "drops TCP packets to this node that are INVALID")


def _has_ipv6(facts: Facts) -> bool:
    node = facts.cluster.node
    cidrs = facts.configuration.config.pod_cidrs or (node.pod_cidrs if node else ())
    return any(cidr.version == 6 for cidr in cidrs)


HOST_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    privileges,
    kube_proxy,
    backend,
    nat_tables,
    before_iptables,
    agent,
    predecessors,
    metrics_port,
    flushers,
    surroundings,
    invalid_input,
)
