"""Judges the node itself: the agent's process, its neighbours, and what its rules need."""

from __future__ import annotations

from collections.abc import Iterator

from ipvs_node_agent.check.facts import Facts, HostFacts, Unit
from ipvs_node_agent.check.finding import AS_ADMIN, FAIL, OK, WARN, Finding

_UNIT = "ipvs-node-agent.service"
_START = "systemctl start ipvs-node-agent"
_MASKED = {"masked", "masked-runtime"}
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
_SYSCTLS = "/etc/sysctl.d/90-kubernetes.conf"
_FORWARDING, _FORWARDING_6 = "ipv4/ip_forward", "ipv6/conf/all/forwarding"
_VS_CONNTRACK = "ipv4/vs/conntrack"


def privileges(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel's rules can be looked at."""
    if facts.host.may_program:
        yield Finding("PrivilegesOK", OK, "privileges", "CAP_NET_ADMIN")
    else:
        text = "without CAP_NET_ADMIN the kernel's rules can be neither read nor programmed"
        mend = "sudo ipvs-node-agent check"
        yield Finding("PrivilegesMissing", FAIL, "privileges", text, mend)


def agent(facts: Facts) -> Iterator[Finding]:
    """Whether it runs, once, and comes back after a reboot."""
    host, what = facts.host, "agent"
    strangers = [p for p in host.agents if p.program not in _PREDECESSORS]
    second = [process for process in strangers if process.number != host.holder]
    unit = host.units.get(_UNIT) if host.units is not None else None
    if second and (host.holder is not None or len(second) > 1):
        number = second[-1].number
        text = f"a second one runs as process {number}; they undo each other's work"
        yield Finding("AgentTwice", FAIL, what, text, _end(number))
    elif unit is not None and {unit.load, unit.enabled} & _MASKED:
        mend = f"systemctl unmask --runtime ipvs-node-agent; {_START}"
        mend = mend if unit.enabled == "masked-runtime" else mend.replace("--runtime ", "")
        yield Finding("AgentMasked", FAIL, what, "the service is masked, and cannot start", mend)
    elif unit is None or unit.load != "loaded":
        running = [p.number for p in strangers] if host.holder is None else [host.holder]
        if running:
            yield Finding("AgentOK", OK, what, f"runs as process {running[0]}")
        else:
            yield Finding("AgentDown", FAIL, what, "does not run", "ipvs-node-agent run")
    elif host.holder not in (None, unit.process):
        text = f"process {host.holder} keeps the service from starting"
        yield Finding("AgentElsewhere", FAIL, what, text, _end(host.holder or 0))
    elif unit.active == "failed":
        text = f"the service failed: {unit.status or 'see its journal'}"
        mend = f"journalctl -u ipvs-node-agent -n 20 says why; once that is fixed: {_START}"
        yield Finding("AgentFailed", FAIL, what, text, mend)
    elif unit.active == "activating":
        text = f"the service is starting: {unit.status or 'not in sync yet'}"
        mend = "wait a minute, then see systemctl status ipvs-node-agent and the lines above"
        yield Finding("AgentStarting", WARN, what, text, mend)
    elif unit.active not in ("active", "reloading"):
        yield Finding("AgentDown", FAIL, what, f"the service is {unit.active}", _START)
    elif unit.enabled not in ("enabled", "enabled-runtime", "static", "alias", "linked"):
        state = unit.enabled or "not enabled"
        text = f"the service runs, but is {state}: it will not start at the next boot"
        yield Finding("AgentNotEnabled", WARN, what, text, "systemctl enable ipvs-node-agent")
    else:
        yield Finding("AgentOK", OK, what, f"the service runs as process {unit.process}")


def _end(process: int) -> str:
    return f"systemctl status {process} shows who started it: end it there, or with kill {process}"


def predecessors(facts: Facts) -> Iterator[Finding]:
    """Tools for the same purpose that came before, and what they left."""
    for process in facts.host.agents:
        if process.program in _PREDECESSORS:
            # The older one's chains have the names of ours.
            same = process.program == "ipvs-node-controller"
            text = f"runs as process {process.number}, for the same purpose"
            text += ", with chains of the same names as the agent's" if same else ""
            mend = f"see docs/migration.md; its last step is: {AS_ADMIN}kubectl -n kube-system"
            mend += f" delete daemonset {process.program}"
            mend += " --cascade=orphan" if same else ""
            level, subject = FAIL if same else WARN, process.program
            yield Finding("PredecessorRuns", level, subject, text, mend)
    left = sorted(
        f"{table.family.command}-{table.backend}"
        for table in facts.host.tables
        if any(name.startswith(_PREDECESSORS_CHAINS) for name in table.chains)
    )
    if left and not any(p.program == "network-node-manager" for p in facts.host.agents):
        text = f"left chains {_PREDECESSORS_CHAINS}... in {', '.join(left)}, which nothing updates"
        mend = f"{left[0]}-save -t nat | awk '{_UNDOING}' | {left[0]}-restore -w 5 --noflush"
        yield Finding("PredecessorsChains", WARN, "network-node-manager", text, mend)


def metrics_port(facts: Facts) -> Iterator[Finding]:
    """Whether somebody else has it."""
    address, listener = facts.configuration.config.metrics_bind_address, facts.host.listener
    agents = {process.number for process in facts.host.agents} | {facts.host.holder}
    what = "metrics"
    if not address:
        yield Finding("MetricsOK", OK, what, "turned off")
    elif listener is None:
        yield Finding("MetricsOK", OK, what, f"no other program listens on {address}")
    elif listener.ours or listener.process in agents:
        yield Finding("MetricsOK", OK, what, f"served on {address}")
    else:
        who = "another program"
        if listener.process:
            who = f"process {listener.process} ({listener.program})"
        text = f"{who} listens on {address}"
        mend = facts.set_to("metricsBindAddress: with another port,")
        yield Finding("MetricsPortTaken", FAIL, what, text, mend)


def flushers(facts: Facts) -> Iterator[Finding]:
    """What else on the host takes rules of ours away now and then.

    The agent repairs that: nothing is to be done, unless it can be had without losing anything.
    """
    found = list(_flushers(facts))
    for finding in found:
        repaired = "the agent repairs that within a second or so"
        yield finding._replace(text=f"{finding.text}; {repaired}")
    if not found and facts.host.units is not None:
        yield Finding("FirewallsOK", OK, "other firewalls", "none that flushes rules")


def _flushers(facts: Facts) -> Iterator[Finding]:
    host, what = facts.host, "other firewalls"
    if _runs(host, "nftables") and host.flushing_file and host.backend == "nft":
        text = "nftables.service flushes all rules when it is reloaded or stopped"
        mend = "by hand, in /etc/nftables.conf, in place of flush ruleset, for each table that it"
        mend += " makes, such as inet filter: table inet filter {}, then delete table inet filter"
        yield Finding("NftablesFlushes", WARN, what, text, mend)
    if _runs(host, "ufw"):
        text = "ufw empties PREROUTING and OUTPUT when it is reloaded"
        yield Finding("UfwFlushes", WARN, what, text)
    if _runs(host, "firewalld"):
        text = "firewalld may flush rules when it is reloaded"
        yield Finding("FirewalldFlushes", WARN, what, text)
    if _runs(host, "netfilter-persistent") and host.saved_rules:
        text = "netfilter-persistent replaces all rules with saved ones, stale ones of the agent"
        chains = facts.configuration.config.chains
        mend = f"grep -e {chains.prerouting} -e {chains.output} /etc/iptables/rules.v4"
        mend += " /etc/iptables/rules.v6 shows these: take those lines out by hand"
        yield Finding("SavedRulesOfOurs", WARN, what, f"{text} among them", mend)
    elif _runs(host, "netfilter-persistent"):
        text = "netfilter-persistent replaces all rules with saved ones"
        yield Finding("SavedRules", WARN, what, text)


def _runs(host: HostFacts, name: str) -> bool:
    unit = (host.units or {}).get(f"{name}.service", Unit())
    return unit.active == "active" or unit.enabled == "enabled"


def surroundings(facts: Facts) -> Iterator[Finding]:
    """Tools and kernel settings that the rules need to be of use."""
    host = facts.host
    if host.conntrack:
        yield Finding("ConntrackOK", OK, "conntrack", "the tool is installed")
    else:
        text = "the tool is missing, so existing UDP flows do not follow a change of rules"
        yield Finding("ConntrackMissing", WARN, "conntrack", text, "apt install conntrack")
    wanted = {_FORWARDING: "packets of pods are not forwarded"}
    if _has_ipv6(facts):
        wanted[_FORWARDING_6] = "packets of pods are not forwarded"
    wanted[_VS_CONNTRACK] = "what IPVS forwards is not masqueraded"
    bad = [key for key in wanted if host.settings.get(key) == "0"]
    for key in bad:
        name = "net." + key.replace("/", ".")
        # For the next boot, and now; nobody else's settings are set again with it.
        mend = f"echo {name}=1 >>{_SYSCTLS} && sysctl -p {_SYSCTLS}"
        if key == _FORWARDING_6:
            mend += "; before, where the node's own addresses are from router advertisements,"
            mend += " accept_ra=2 for that interface"
        found = Finding("ForwardingOff", FAIL, "kernel", f"{name} is 0: {wanted[key]}", mend)
        if key == _VS_CONNTRACK:
            mend = f"sysctl -w {name}=1, as kube-proxy does at each start, so that it lasts; grep"
            mend += " -r vs.conntrack /etc/sysctl.conf /etc/sysctl.d shows who sets it to 0"
            found = Finding("IPVSConntrackOff", FAIL, "kernel", found.text, mend)
        yield found
    if not bad:
        yield Finding("KernelOK", OK, "kernel", "forwards packets")


def invalid_input(facts: Facts) -> Iterator[Finding]:
    """Whether dropping INVALID packets does what it is for, where it is asked for."""
    if not facts.configuration.config.drop_invalid_input:
        return
    what, settings = "dropInvalidInput", facts.host.settings
    if settings.get("netfilter/nf_conntrack_tcp_loose") == "0":
        text = "ends connections that are older than their tracking, as after conntrack -F:"
        text += " with net.netfilter.nf_conntrack_tcp_loose 0, their packets are INVALID"
        mend = facts.set_to("dropInvalidInput: false")
        yield Finding("InvalidInputEndsConnections", WARN, what, text, mend)
    elif settings.get("netfilter/nf_conntrack_tcp_be_liberal") == "1":
        text = (
            "does little: with net.netfilter.nf_conntrack_tcp_be_liberal 1, few packets are INVALID"
        )
        yield Finding("InvalidInputOK", OK, what, text)
    else:
        text = "drops TCP packets to this node that are INVALID"
        yield Finding("InvalidInputOK", OK, what, text)


def _has_ipv6(facts: Facts) -> bool:
    node = facts.cluster.node
    cidrs = facts.configuration.config.pod_cidrs or (node.pod_cidrs if node else ())
    return any(cidr.version == 6 for cidr in cidrs)
