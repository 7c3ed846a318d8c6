"""What becomes of a packet to an external IP in the kernel's own nat tables, rule by rule.

Two packets are followed: a pod's from PREROUTING and the host's from OUTPUT, each through the
tables of both backends. In each of them a packet walks until something ends its walk there; one
that ACCEPT ended goes on with the other backend's, and one that is translated does not (nf_nat).
So it does no harm that the other backend has rules, unless they translate it too: which of the two
comes first nobody can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ipvs_node_agent.explain.facts import DOWN, SILENT, Facts, NatTable
from ipvs_node_agent.explain.lines import NEUTRAL, OK, WARN, Told
from ipvs_node_agent.explain.origins import HOST, POD, Origin, origins, rules_there
from ipvs_node_agent.explain.services import Naming, family_of
from ipvs_node_agent.model.addresses import (
    IPV4,
    IPV6,
    Address,
    contains,
    parse_address,
    parse_network,
    show_address,
)
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.nat.chains import NAT, owner
from ipvs_node_agent.nat.matches import Packet
from ipvs_node_agent.nat.ruletext import Rule
from ipvs_node_agent.nat.ruletext import service as service_of
from ipvs_node_agent.nat.trace import POLICY, UNKNOWN, End, Walk, masquerades, trace
from ipvs_node_agent.nft.listing import NAT_PRIORITY
from ipvs_node_agent.rules.policy import clients, unneeded_in

_KUBE_PROXYS = "kube-proxy"


def tell(facts: Facts, address: Address, named: Sequence[Naming], port: Port | None) -> Told:
    """The walks of packets to `port` of `address` (None: to any), and what follows from them."""
    told = Told()
    family = family_of(address)
    tables = [table for table in facts.tables if table.family is family]
    for table in tables:
        if table.error:
            told.doubts(table.name, f"cannot be read: {table.error}", "ipvs-node-agent check")
    # Where nobody made a table yet, it is as an empty one.
    if not any(table.backend == facts.backend for table in tables):
        tables.append(NatTable(family, facts.backend))
    tables = [table for table in tables if not table.error]
    _others_chains(told, facts, address)
    holder = _expected(named, port)
    for origin in origins(facts, address, [holder] if holder else []):
        packet = origin.packet._replace(
            protocol=port.protocol if port else "tcp", port=port.number if port else None
        )
        judged = _Judge(told, facts, origin, packet, holder)
        # The agent's own first: what others say is judged by it.
        for table in sorted(tables, key=lambda each: each.backend != facts.backend):
            judged.take(table)
        judged.end(tables)
    if address not in facts.ways:
        told.fails(
            "from the host",
            f"this node has no route to {show_address(address)}",
            f"ip route get {show_address(address)}",
        )
    return told


def _expected(named: Sequence[Naming], port: Port | None) -> Naming | None:
    """Who is to get the packet, if somebody is."""
    return next((each for each in named if each.claim and (port is None or each.has(port))), None)


def led_to(facts: Facts, address: Address, port: Port | None) -> Address | None:
    """Where the rules of this node send packets to `address`; None where nowhere."""
    for origin in origins(facts, address, ()):
        packet = origin.packet._replace(port=port.number if port else None)
        packet = packet._replace(protocol=port.protocol if port else "tcp")
        for table in facts.tables:
            if table.backend == facts.backend and table.family is family_of(address):
                chains = {origin.built_in: (), **table.table.chains}
                to = _address_in(trace(chains, origin.built_in, packet).sent_to)
                if to is not None:
                    return to
    return None


def _address_in(to: str | None) -> Address | None:
    """The address that a DNAT leads to; None where it is a range, or with a port, as no rule of
    ours has it."""
    try:
        return parse_address(to or "")
    except ValueError:
        return None


def mend_rules(facts: Facts) -> str:
    """What puts the rules right."""
    if facts.agent.state == DOWN:
        return "systemctl start ipvs-node-agent"
    if facts.agent.state == SILENT:
        return "systemctl restart ipvs-node-agent"
    return (
        "wait 30 s for the agent to repair this, then run explain again; if nothing has changed,"
        " journalctl -u ipvs-node-agent"
    )


class _Judge:
    """Tells what the walks of one packet through all tables come to."""

    def __init__(
        self, told: Told, facts: Facts, origin: Origin, packet: Packet, expected: Naming | None
    ) -> None:
        self._told, self._facts, self._origin, self._packet = told, facts, origin, packet
        self._family = IPV6 if ":" in packet.destination else IPV4
        names = facts.config.chains
        self._top = names.prerouting if origin.kind == POD else names.output
        self._owns = owner(frozenset({names.prerouting, names.output}))
        self._expected = expected
        self._wanted = self._rules(expected)
        claim = expected.claim if expected else None
        self._cluster_ip = show_address(claim.cluster_ip) if claim else ""
        self._walks: list[Walk] = []
        self._arrives = False

    def _rules(self, expected: Naming | None) -> Sequence[Rule]:
        """Those that are to take the packet."""
        address, is_pods = parse_address(self._packet.destination), self._origin.kind == POD
        rules: Iterable[Rule] = ()
        if unneeded_in(self._facts.proxy.mode):
            pass  # Nobody is to have any.
        elif self._facts.seen is None:
            rules = rules_there(self._facts, address, not is_pods)
        elif expected is not None:
            rules = expected.pods if is_pods else expected.hosts
        source = parse_address(self._packet.source)
        return [
            rule
            for rule in rules
            if not rule.source or contains(parse_network(rule.source), source)
        ]

    def take(self, table: NatTable) -> None:
        """Tells what becomes of the packet in `table`."""
        built_in = self._origin.built_in
        policy = table.table.policies.get(built_in, "ACCEPT")
        walk = trace({built_in: (), **table.table.chains}, built_in, self._packet, policy)
        self._walks.append(walk)
        end, is_ours = walk.end, table.backend == self._facts.backend
        if not is_ours and end.kind in (POLICY, "ACCEPT") and not self._touches(walk):
            return
        self._steps(table, walk)
        if is_ours:
            self._judge(table, walk, end)
        else:
            self._judge_other(table, end)

    def _touches(self, walk: Walk) -> bool:
        return any(self._owns(step.chain) for step in walk.steps)

    def _steps(self, table: NatTable, walk: Walk) -> None:
        self._told.say(
            NEUTRAL, self._subject, f"{self._origin.shown}, {_shown(self._packet)}, {table.name}:"
        )
        for step in walk.steps:
            counts = table.table.packets.get(step.chain, ())
            count = counts[step.place - 1] if step.place <= len(counts) else 0
            doubt = f"  ? {step.doubt}" if step.doubt else ""
            text = f"  {step.chain} {step.place} ({_packets(count)}): {step.rule}{doubt}"
            self._told.say(NEUTRAL, self._subject, text)

    @property
    def _subject(self) -> str:
        return self._origin.subject

    def _judge(self, table: NatTable, walk: Walk, end: End) -> None:
        ours = end.step is not None and self._owns(end.step.chain)
        if end.kind == UNKNOWN:
            self._unknown(table, end)
        elif self._facts.seen is None and ours and end.step and _address_in(end.to) is not None:
            # Without the API server, rules alone tell for whom they are.
            self._arrives, self._cluster_ip = True, end.to
            whose = service_of(end.step.rule)
            self._told.say(OK, self._subject, f"is sent to {end.to} for Service {whose}")
        elif not self._wanted:
            self._unwanted(end, ours)
        elif end.kind == "DNAT" and end.to == self._cluster_ip:
            self._arrives = True
            self._told.say(OK, self._subject, f"is sent to the ClusterIP {end.to}")
        elif end.kind == "DNAT" and ours:
            text = f"is sent to {end.to}, but the ClusterIP is {self._cluster_ip}"
            self._fails(f"{text}: the rules are outdated", mend_rules(self._facts))
        elif end.step is not None:
            self._taken(table, walk, end)
        else:
            self._fails(self._missing(table, walk), mend_rules(self._facts))

    def _unknown(self, table: NatTable, end: End) -> None:
        step = end.step
        where = f"rule {step.place} of {step.chain} in {table.name}" if step else table.name
        look = f"{table.name} -t nat -nvL {step.chain if step else ''}".rstrip()
        text = f"{where} {end.why}"
        before = step is not None and self._wanted and not self._in_place(table)
        mend = f"{mend_rules(self._facts)}" if before else f"{look} shows the rule"
        self._told.doubts(self._subject, text, mend)

    def _in_place(self, table: NatTable) -> bool:
        """Whether the first rule of the built-in chain is our jump."""
        rules = table.table.chains.get(self._origin.built_in, ())
        return bool(rules) and rules[0] == f"-j {self._top}"

    def _unwanted(self, end: End, ours: bool) -> None:
        """Nothing is wanted for it: what becomes of it is said, and rules of ours are too many."""
        if end.kind == "DNAT" and ours:
            text = f"is sent to {end.to} by a rule that should be gone"
            self._fails(text, mend_rules(self._facts))
        else:
            what = _became(end)
            self._told.say(WARN, self._subject, f"has no rule of the agent's, and {what}")
            self._left_out()

    def _left_out(self) -> None:
        """Where the Service counts, and does not let this client in."""
        service = self._expected.service if self._expected else None
        if service is None or clients(service, self._family) is None:
            return
        who, mend = "this node's pods", "if the pods need access, add their addresses"
        if self._origin.kind == HOST:
            who, mend = "this node's InternalIP", "if the node needs access, add its InternalIP"
        self._fails(
            f"loadBalancerSourceRanges of {service.key} leaves out {who}",
            f"{mend} to spec.loadBalancerSourceRanges",
        )

    def _taken(self, table: NatTable, walk: Walk, end: End) -> None:
        """A rule of others' ends the walk."""
        text = f"{_became(end)}, before {self._top} does"
        if any(step.chain == self._top for step in walk.steps):
            text = f"{self._missing(table, walk)}, and then {_became(end)}"
            self._fails(text, mend_rules(self._facts))
        elif any(self._leads(rule) for rule in table.table.chains.get(self._origin.built_in, ())):
            self._fails(text, mend_rules(self._facts))
        else:
            self._fails(self._missing(table, walk), mend_rules(self._facts))

    def _leads(self, rule: str) -> bool:
        return f"{rule} ".endswith(f"-j {self._top} ")

    def _missing(self, table: NatTable, walk: Walk) -> str:
        """What of ours is not there."""
        chains, built_in = table.table.chains, self._origin.built_in
        if self._top not in chains:
            return f"there is no chain {self._top} in {table.name}"
        if not any(self._leads(rule) for rule in chains.get(built_in, ())):
            return f"{built_in} does not jump to {self._top}"
        met = [step for step in walk.steps if self._owns(step.chain)]
        last = met[-1].rule.rpartition(" -j ")[2] if met else self._top
        chain = last if last in chains and self._owns(last) else self._top
        if not chains[chain]:
            return f"the chain {chain} is empty"
        return f"the chain {chain} has no rule for the packet"

    def _judge_other(self, table: NatTable, end: End) -> None:
        """In the backend that is not the agent's."""
        mend = "systemctl restart ipvs-node-agent takes its rules out of the other backend"
        if end.kind == UNKNOWN:
            self._unknown(table, end)
        elif end.kind == "DNAT" and self._arrives and end.to == self._cluster_ip:
            self._told.say(WARN, self._subject, f"{table.name} sends it to the same ClusterIP")
        elif end.kind in ("DNAT", "REDIRECT"):
            owned = end.step is not None and self._owns(end.step.chain)
            look = (
                mend if owned else f"{table.name} -t nat -nvL {end.step.chain if end.step else ''}"
            )
            text = f"{table.name} has rules for it as well, and {_ends(end)}; which table comes"
            self._told.doubts(self._subject, f"{text} first cannot be told", look)
        elif end.kind in ("DROP", "REJECT"):
            self._fails(f"{table.name} {_ends(end)}", f"{table.name} -t nat -nvL shows the rule")
        else:
            text = f"{table.name} has rules of the agent's, which uses the other backend"
            self._told.say(WARN, self._subject, f"{text} => {mend}")

    def _fails(self, text: str, mend: str) -> None:
        self._told.fails(self._subject, text, mend)

    def end(self, tables: Iterable[NatTable]) -> None:
        """Whether the answer finds back: what POSTROUTING does with the packet."""
        if not self._arrives:
            return
        mark, doubtful = 0, 0
        for walk in self._walks:
            mark, doubtful = mark | walk.mark, doubtful | walk.doubtful
        there = self._real_server() or self._cluster_ip
        leaving = self._packet._replace(
            destination=there, to_host=None, interface=None, out=None, mark=mark, doubtful=doubtful
        )
        said = {masquerades(table.table, leaving) for table in tables}
        is_host = self._origin.kind == HOST
        if True in said:
            self._told.say(OK, self._subject, f"is marked with {mark:#x} and masqueraded")
        elif None in said:
            self._told.say(WARN, self._subject, "whether it is masqueraded cannot be told")
        elif is_host:
            what = (
                f"is marked with {mark:#x}, which nothing masquerades" if mark else "is not marked"
            )
            text = f"{what}, so its source stays {self._packet.source} and no answer comes back"
            self._fails(text, mend_rules(self._facts))
        elif self._facts.config.masquerade == "All":
            text = f"is not masqueraded (mark {mark:#x}): the endpoint sees the pod's address"
            self._told.say(WARN, self._subject, text)
        else:
            self._told.say(OK, self._subject, "keeps its own source address (masquerade: HostOnly)")

    def _real_server(self) -> str:
        for server in self._facts.ipvs or ():
            at = (server.protocol, show_address(server.address), server.port)
            if at == (self._packet.protocol, self._cluster_ip, self._packet.port):
                return next((show_address(each.address) for each in server.servers), "")
        return ""


def _others_chains(told: Told, facts: Facts, address: Address) -> None:
    """Chains of nft's own that come before iptables' nat, or may."""
    families = {"inet", "ip" if address.version == 4 else "ip6"}
    for chain in facts.base_chains:
        if (
            chain.family in families
            and chain.kind == NAT
            and chain.hook in ("prerouting", "output")
            and chain.priority <= NAT_PRIORITY
            and chain.rules
            and (chain.table, chain.family in ("ip", "ip6"))
            not in ((NAT, True), (_KUBE_PROXYS, True))
        ):
            where = f"{chain.family} {chain.table} {chain.name}"
            told.doubts(
                f"nft chain {where}",
                f"may come before iptables' {chain.hook.upper()}, and explain does not read it",
                f"nft list chain {where}",
            )


def _shown(packet: Packet) -> str:
    return "to any port" if packet.port is None else f"to {packet.protocol} port {packet.port}"


def _packets(count: int) -> str:
    return "1 packet" if count == 1 else f"{count} packets"


def _ends(end: End) -> str:
    """What the end does, behind the name of who does it."""
    if end.kind in ("DNAT", "REDIRECT"):
        return f"sends it to {end.to or 'this node'}"
    return {"ACCEPT": "accepts it", "DROP": "drops it", "REJECT": "refuses it"}.get(
        end.kind, end.kind
    )


def _became(end: End) -> str:
    if end.step is None:
        return "no other rule of nat ends its walk"
    return f"rule {end.step.place} of {end.step.chain} {_ends(end)}"
