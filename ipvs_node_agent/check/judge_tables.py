"""Judges the node's tables: kube-proxy's mode, iptables' backend, our jumps, and who is before."""

from __future__ import annotations

from collections.abc import Iterator

from ipvs_node_agent.check.facts import Facts, TableFacts
from ipvs_node_agent.check.finding import AS_ADMIN, FAIL, OK, WARN, Finding, failed
from ipvs_node_agent.model.addresses import IPV4, Address, Family, parse_address
from ipvs_node_agent.nat.ruleset import Found
from ipvs_node_agent.nat.ruletext import read, target
from ipvs_node_agent.nft.listing import NAT_PRIORITY

# The configuration stays, for who goes back to IPVS.
_REMOVE = "if it is to stay so, apt remove ipvs-node-agent"
_ASK = "curl http://127.0.0.1:10249/proxyMode"
# kube-proxy's chains that the agent's rules have to do with.
_PROXYS = frozenset({"KUBE-SERVICES", "KUBE-MARK-MASQ"})


def kube_proxy(facts: Facts) -> Iterator[Finding]:
    """Its mode, as it reports, or by its signs."""
    proxy, what = facts.host.proxy, "kube-proxy"
    mode, how = proxy.answer, "as it reports"
    if proxy.doubt:
        text = f"its mode is in doubt, and rules stay as they are: {proxy.doubt}"
        mend = "nothing while it moves from one mode to another; if it stays so, ss -ltnp 'sport ="
        yield Finding("KubeProxyInDoubt", WARN, what, text, f"{mend} :10249' shows who answers")
        return
    if mode is None:
        mode, how = _guessed_mode(facts)
    if mode == "ipvs":
        yield Finding("KubeProxyOK", OK, what, f"in IPVS mode, {how}")
    elif mode in ("iptables", "nftables"):
        past = "its rules bypass kube-proxy's"
        effect = "makes no rules for Services" if proxy.answer else past
        text = f"in {mode} mode, {how}: the agent is not needed, and {effect}"
        # It leaves its tables behind when it goes to another mode.
        mend = _REMOVE if proxy.answer else f"{_ASK} tells whether that is so; {_REMOVE}"
        yield Finding("KubeProxyNotIPVS", FAIL, what, text, mend)
    elif mode:
        text = f"in {mode} mode, {how}: it does not use IPVS"
        yield Finding("KubeProxyNotIPVS", FAIL, what, text, _REMOVE)
    elif proxy.process is not None:
        text = f"runs as process {proxy.process}, but does not tell its mode"
        mend = f"{_ASK} must say ipvs: see its metricsBindAddress"
        yield Finding("KubeProxySilent", WARN, what, text, mend)
    elif facts.host.may_program:
        text = "not found on this node; without it nothing serves the ClusterIPs"
        yield Finding("KubeProxyAbsent", FAIL, what, text, _its_pod(facts))


def _guessed_mode(facts: Facts) -> tuple[str, str]:
    host = facts.host
    if host.proxy.device:
        return "ipvs", "by its device kube-ipvs0"
    if host.proxy.nftables:
        return "nftables", "by its nftables table kube-proxy"
    # Those of the other backend may be of another time.
    used = [table for table in host.tables if table.backend == host.backend]
    used = used if any(_PROXYS & table.chains for table in used) else [*host.tables]
    if any(name.startswith("KUBE-SVC-") for table in used for name in table.chains):
        return "iptables", "by its chains KUBE-SVC-..."
    return "", ""


def _its_pod(facts: Facts) -> str:
    there = f"spec.nodeName={facts.cluster.node_name or 'NAME'}"
    return (
        f"{AS_ADMIN}kubectl -n kube-system get pods -l k8s-app=kube-proxy --field-selector {there}"
        " must show one that runs"
    )


def backend(facts: Facts) -> Iterator[Finding]:
    """Whether the agent programs where the kubelet and kube-proxy do."""
    host, wanted = facts.host, facts.configuration.config.iptables.backend
    if not host.may_program:
        return
    what, used, theirs = "iptables backend", host.backend, host.kubelet_backend
    edit = facts.set_to("iptables: {backend: auto}")
    proxys = {table.backend for table in host.tables if _PROXYS & table.chains}
    names = facts.configuration.config.chains
    own = {names.prerouting, names.output}
    left = sorted({t.backend for t in host.tables if t.backend != used and own & t.chains})
    # Where kube-proxy's chains are, they count for more than the kubelet's hint.
    if theirs not in (None, used) and used not in proxys:
        text = f"the agent uses iptables-{used}, and the kubelet iptables-{theirs}"
        yield Finding("BackendNotKubelets", FAIL, what, text, edit)
    elif proxys and used not in proxys:
        (other,) = proxys
        text = f"the agent uses iptables-{used}, and kube-proxy iptables-{other}"
        if wanted == "auto":
            edit = facts.set_to(f"iptables: {{backend: {other}}}")
        yield Finding("BackendNotKubeProxys", FAIL, what, text, edit)
    elif len(proxys) > 1:
        (other,) = proxys - {used}
        text = f"kube-proxy uses iptables-{used}, and has stale chains in iptables-{other},"
        mend = f"drain and reboot the node when it suits ({AS_ADMIN}kubectl drain"
        mend += f" {facts.cluster.node_name or 'NAME'} --ignore-daemonsets): then they are gone"
        text += " which the kernel walks as well"
        yield Finding("BackendStale", WARN, what, text, mend)
    elif left:
        text = f"the agent uses iptables-{used}, and has chains left in iptables-{left[0]}"
        yield Finding("BackendLeftover", WARN, what, text, "systemctl restart ipvs-node-agent")
    else:
        as_ = "as the kubelet does" if theirs else "by default, as the kubelet left no trace"
        if theirs not in (None, used):
            as_ = "as kube-proxy does"
        yield Finding("BackendOK", OK, what, f"{used}, {as_}")


def nat_tables(facts: Facts) -> Iterator[Finding]:
    """Whether they can be used, whether marks are masqueraded, and whether our jumps are first."""
    for table in facts.host.tables:
        if table.backend != facts.host.backend or not _concerns(facts, table.family):
            continue
        what = f"nat table, {table.family}"
        if table.error is not None:
            yield failed("TableUnreadable", what, table.error, _show_nat(table))
        else:
            yield Finding("TableOK", OK, what, f"iptables-{table.backend} reads it")
            yield from _masquerade(facts, table)
            yield from _jumps(facts, table)


def _concerns(facts: Facts, family: Family) -> bool:
    """Whether the node has the family; as long as nobody knows, it has IPv4 alone."""
    if facts.seen is not None and family.version in facts.seen.network.absent:
        return False
    node, configured = facts.cluster.node, facts.configuration.config.pod_cidrs or ()
    known = (*node.pod_cidrs, *node.addresses) if node is not None else ()
    versions = {item.version for item in (*configured, *known)}
    return family.version in versions or (node is None and family is IPV4)


def _show_nat(table: TableFacts) -> str:
    if table.backend == "nft":
        ip = "ip" if table.family is IPV4 else "ip6"
        return f"nft list table {ip} nat shows what else is in it: move that to another table"
    module = "iptable_nat" if table.family is IPV4 else "ip6table_nat"
    return f"modprobe {module} && echo {module} >/etc/modules-load.d/{module}.conf"


def _masquerade(facts: Facts, table: TableFacts) -> Iterator[Finding]:
    mark = facts.configuration.config.chains.mark_masquerade
    what, ours = f"{mark}, {table.family}", "the agent uses a mark of its own"
    if mark not in table.chains:
        text = f"iptables-{table.backend} has no such chain: kube-proxy has not made it, and {ours}"
        yield Finding("MarkMissing", WARN, what, text)
    elif mark not in table.found.filled:
        yield Finding("MarkEmpty", WARN, what, f"is empty, so it marks nothing, and {ours}")
    elif mark == "KUBE-MARK-MASQ" and not table.masquerading:
        text = "exists, but nothing in POSTROUTING masquerades what it marks"
        mend = "kube-proxy, where it runs, puts that back within a minute; if it does not:"
        yield Finding("MarkNotMasqueraded", WARN, what, text, f"{mend} {_its_pod(facts)}")
    else:
        text = "exists, and kube-proxy masquerades what it marks"
        yield Finding("MarkOK", OK, what, text)


def _jumps(facts: Facts, table: TableFacts) -> Iterator[Finding]:
    names = facts.configuration.config.chains
    wanted = {"PREROUTING": names.prerouting, "OUTPUT": names.output}
    # Without our chains there is nothing to jump to; whether they should be there is told by diff.
    if not table.chains.intersection(wanted.values()):
        return
    what, passed, is_first = f"jumps, {table.family}", set(), True
    # Mostly nobody is in front, and there may be tens of thousands of them.
    some = any(table.found.ahead.values())
    addresses = frozenset(_addresses(table.found) if some else ())
    for built_in, name in wanted.items():
        places = [place for place, chain in table.found.jumps.get(built_in, ()) if chain == name]
        if not places:
            is_first = False
            text = f"{built_in} does not jump to {name}, so no packet gets there"
            yield Finding("JumpMissing", FAIL, what, text, facts.repair)
            continue
        ahead = table.found.ahead.get(built_in, ())[: places[0] - 1]
        taking = [other.target for other in ahead if other.keeps(addresses)]
        passed |= {other.target for other in ahead}
        if taking or len(ahead) < places[0] - 1:
            is_first = False
            # Or else it is the first one that cannot be judged.
            others = [*taking, *map(target, table.first.get(built_in, ())[len(ahead) :])]
            # It need not jump anywhere.
            first = next(filter(None, others[:1]), "others' rules")
            text = f"{built_in} jumps to {name} behind {first}, which ends the walk of packets"
            yield Finding("JumpBehind", FAIL, what, text, facts.repair)
    if is_first:
        behind = f"; {', '.join(sorted(passed))} may stay in front, as it is harmless"
        text = f"first in PREROUTING and OUTPUT{behind if passed else ''}"
        yield Finding("JumpsOK", OK, what, text)


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
                f" {chain.hook}: the agent's rules do not see what it translates or accepts"
            )
            mend = f"nft list chain {name} {chain.name} shows what it takes: only packets to"
            mend += " external IPs matter"
            yield Finding("NatBefore", WARN, "nat chains", text, mend)
