"""Which Services name an address, and whether each counts here, or why it does not.

A Service that names an address and gets no rules still keeps its ports there. So what is said of
one is worked out with all that name the address, by the very code that plans the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.explain.facts import Facts
from ipvs_node_agent.explain.lines import FAIL, NEUTRAL, OK, WARN, Cause, Told
from ipvs_node_agent.model.addresses import FAMILIES, Address, Family, show_address, show_network
from ipvs_node_agent.model.objects import (
    EXTERNAL_NAME,
    LOAD_BALANCER,
    Port,
    Problem,
    Service,
    Snapshot,
)
from ipvs_node_agent.nat.packed import apart
from ipvs_node_agent.nat.ruletext import Rule, read
from ipvs_node_agent.rules.claims import Claim, Claims
from ipvs_node_agent.rules.planner import HELD_BACK
from ipvs_node_agent.rules.policy import external_ips, is_counted, named_ips
from ipvs_node_agent.rules.render import MOST_RULES, Writer

# What the running agent calls a Service that the kernel does not take.
_KERNEL_REFUSED = "KernelRefused"
_CONFIGURATION = "/etc/ipvs-node-agent/config.yaml, then systemctl reload ipvs-node-agent"


class Why(NamedTuple):
    """Why a Service gets no rules, or not all: as a sentence's end, and what mends it."""

    text: str
    mend: str


class Naming(NamedTuple):
    """A Service that names an address. `claim` is what of it counts, with its ports; or `whys`.

    `rules` are those that it is to have there, as the packets of pods and of the host meet them.
    """

    service: Service
    claim: Claim | None = None
    whys: tuple[Why, ...] = ()
    pods: tuple[Rule, ...] = ()
    hosts: tuple[Rule, ...] = ()

    def has(self, port: Port) -> bool:
        """Whether connections to `port` of the address are to go to it."""
        if self.claim is None:
            return False
        return self.claim.ports is None or port in self.claim.ports


_LACKS = "the reason says what the kernel lacks, such as a module"
_TOO_MANY = Why(
    f"gets no rules: its addresses, ports and source ranges make more than {MOST_RULES} rules",
    "use fewer addresses, ports or source ranges",
)
_UNKNOWN = Why(
    "gets no rules, for an unknown reason", "ipvs-node-agent status says what it refuses"
)
_HEADLESS = Why(
    "has no ClusterIP for rules to lead to",
    "a new Service with a ClusterIP: this one cannot get one later",
)


def family_of(address: Address) -> Family:
    """The family of `address`."""
    return next(family for family in FAMILIES if family.version == address.version)


def naming(facts: Facts, address: Address) -> list[Naming]:
    """All Services that name `address`, as they count on this node."""
    seen = facts.seen
    if seen is None:
        return []
    family = family_of(address)
    if family.version in seen.network.absent:
        why = Why(f"gets no rules: the kernel of this node has no {family}", "an IPv4 address")
        named = [each for each in seen.services.values() if address in named_ips(each)]
        return [Naming(each, None, (why,)) for each in sorted(named, key=lambda e: e.key)]
    held = held_back(facts, family)
    there = [
        service._replace(skipped=HELD_BACK)
        if service.key in held and not service.skipped
        else service
        for service in seen.services.values()
        if address in named_ips(service) or address in service.cluster_ips
    ]
    claims = Claims(facts.config, seen.node, family, seen.network)
    for service in there:
        claims.replace(None, service)
    awarded, problems = claims.awarded(address)
    writer = Writer(facts.config, seen.node, family, "MARK", seen.pod_interfaces)
    refused = [(key, Why(text, _mend(reason, key))) for key, reason, text in problems]
    refused += [(key, Why(each.text, _LACKS)) for key, each in held.items()]
    won = {claim.service.key: claim for claim in awarded if claim.ports != ()}
    for key in [key for key, claim in won.items() if writer.rule_bound(claim) > MOST_RULES]:
        refused.append((key, _TOO_MANY))
        del won[key]
    found = []
    for service in there:
        if address in named_ips(service):
            own = tuple(why for key, why in refused if key == service.key)
            if own and not service.cluster_ips:
                own = (_HEADLESS,)
            own = own or tuple(_not_counted(service, address, facts.config))
            found.append(_named(service, won.get(service.key), own, writer, address))
    return sorted(found, key=lambda e: (e.claim is None, e.service.created, e.service.key))


def held_back(facts: Facts, family: Family) -> dict[str, Problem]:
    """The Services that the kernel refuses in `family`, as the running agent tells."""
    return {
        each.service: each
        for each in facts.agent.refused
        if each.reason == _KERNEL_REFUSED and each.text.startswith(f"its {family} rules ")
    }


def _named(
    service: Service,
    claim: Claim | None,
    whys: tuple[Why, ...],
    writer: Writer,
    address: Address,
) -> Naming:
    if claim is None:
        return Naming(service, None, whys or (_UNKNOWN,))
    entries = [*writer.entries(address, claim).values()]
    pods = _read(rule for entry in entries for rule in apart(entry.pods))
    hosts = _read(rule for entry in entries for rule in apart(entry.hosts))
    return Naming(service, claim, whys, pods, hosts)


def _read(rules: Iterable[str]) -> tuple[Rule, ...]:
    return tuple(found for rule in rules if (found := read(rule.replace("{}", "0"))) is not None)


def _not_counted(service: Service, address: Address, config: Config) -> Iterator[Why]:
    """Why a Service gets no rules for an address of its own, if it gets none."""
    namespace, _, name = service.key.partition("/")
    if service.skipped:
        what, _, word = service.skipped.rpartition(" ")
        verb = "annotate" if "annotation" in what else "label"
        mend = f"kubectl -n {namespace} {verb} service {name} {word}-  (ask who set it, and why)"
        yield Why(f"is left alone: it has {service.skipped}", mend)
    elif address in service.proxied_ips:
        why = "has ipMode: Proxy for this IP, so connections must go through the load balancer"
        yield Why(why, "look at the load balancer: this node is not meant to answer for it")
    elif not is_counted(service, config):
        why = "it does not have externalTrafficPolicy: Local, which the configuration requires"
        yield Why(why, f"services: {{externalTrafficPolicy: Any}} in {_CONFIGURATION}")
    elif address not in external_ips(service, config):
        why = "names it in spec.externalIPs, which the configuration does not enable"
        yield Why(why, f"services: {{externalIPs: true}} in {_CONFIGURATION}")


_MENDS = {
    "NotAllowed": f"services: {{allowedExternalCIDRs: [...]}} with it in {_CONFIGURATION}",
    "PortConflict": "another port or address for one of the two",
    "APIServer": "another port or address: at this one the node would lose the API server",
    "NoClusterIP": "a Service with ipFamilyPolicy: PreferDualStack, or an address of its family",
    "NoPorts": "ports that can be read, in its spec",
    "PodCIDR": "another address, or the right podCIDRs in /etc/ipvs-node-agent/config.yaml",
}


def _mend(reason: str, key: str) -> str:
    namespace, _, name = key.partition("/")
    edit = _MENDS.get(reason, "another address: this one cannot be a Service's")
    return (
        f"{edit} (kubectl -n {namespace} edit service {name})"
        if "config.yaml" not in edit
        else edit
    )


def addressless(service: Service) -> Why:
    """Why `service` has no external IP."""
    namespace, _, name = service.key.partition("/")
    look, edit = (f"kubectl -n {namespace} {verb} service {name}" for verb in ("describe", "edit"))
    if service.type != LOAD_BALANCER:
        kind = service.type or "unknown"
        why = f"has no external IP: its type is {kind}, not {LOAD_BALANCER}"
        if service.type == EXTERNAL_NAME:
            return Why(why, "use the name that it stands for: it has no address")
        return Why(
            why,
            f"type: {LOAD_BALANCER}, if it is to have one ({edit})",
        )
    if any(problem.reason == "NoAddress" for problem in service.problems):
        return Why(
            "has a host name instead of an external IP, and rules need an IP address",
            "a load balancer controller that provides addresses; until then use the host name",
        )
    if unreadable := [each.text for each in service.problems if each.reason == "Unreadable"]:
        return Why(f"has no external IP that can be read: {unreadable[0]}", look)
    return Why(
        "is pending: no load balancer controller has given it an external IP yet",
        f"{look}, and the load balancer controller's log",
    )


def all_ports(services: Sequence[Naming]) -> list[Port]:
    """The ports of those that count, each once."""
    ports = [
        port for each in services if each.claim for port in each.claim.ports or each.service.ports
    ]
    return list(dict.fromkeys(ports))


def shown_ports(ports: Sequence[Port]) -> str:
    """For people, in few words."""
    shown = [f"{port.protocol} {port.number}" for port in ports]
    more = [f"and {len(shown) - 16} more"] if len(shown) > 16 else []
    return ", ".join(shown[:16] + more) or "no ports"


def tell(facts: Facts, address: Address, services: Sequence[Naming], port: Port | None) -> Told:
    """A line for each of `services`, and what follows for connections to `port` (None: to any)."""
    told = Told()
    if facts.seen is None:
        told.say(
            WARN, "API server", f"{facts.unseen}; so the following is only what this node knows"
        )
        return told
    if not services:
        _nobody(told, facts.seen, address)
    for each in services:
        _tell(told, each)
    whys = [(each, why) for each in services for why in each.whys]
    counted = [each for each in services if each.claim]
    has = shown_ports(all_ports(counted))
    if services and not counted:
        told.causes.append(_cause(*whys[0]))
    elif counted and port is not None and holder(services, port) is None:
        asked = f"{port.protocol} {port.number}"
        named = " and ".join(each.service.key for each in counted)
        lost = [each for each in whys if f" {asked} " in each[1].text]
        for each, why in lost[:1]:
            _fail(told, each, why)
        if not lost:
            text = f"has {has}, and not {asked}"
            told.fails(f"Service {named}", text, f"use {has}", f"Service {named} {text}")
    return told


def fail(told: Told, naming: Naming) -> None:
    """Has what `naming` lacks, which was told before, count as why the address does not work."""
    for why in naming.whys:
        _fail(told, naming, why)


def _fail(told: Told, naming: Naming, why: Why) -> None:
    known = f"Service {naming.service.key}", _sentence(why)
    told.lines = [
        line._replace(level=FAIL) if (line.subject, line.text) == known else line
        for line in told.lines
    ]
    told.causes.append(_cause(naming, why))


def holder(services: Iterable[Naming], port: Port) -> Naming | None:
    """The Service among `services` that connections to `port` are for."""
    return next((e for e in services if e.has(port) and port in e.service.ports), None)


def _cause(naming: Naming, why: Why) -> Cause:
    return Cause(False, f"Service {naming.service.key} {_sentence(why)}", why.mend)


def _sentence(why: Why) -> str:
    """`why` behind the name of a Service: what the rules say of it is a sentence of its own."""
    if why.text.startswith(("is ", "has ", "names ", "gets ")):
        return why.text
    return f"gets no rules: {why.text.partition(' gets no rules: ')[2] or why.text}"


def _nobody(told: Told, seen: Snapshot, address: Address) -> None:
    shown = show_address(address)
    own = min((s.key for s in seen.services.values() if address in s.cluster_ips), default="")
    if own:
        text = f"is the ClusterIP of Service {own}, and not an external IP"
        mend = "kube-proxy handles ClusterIPs: look at its log"
        told.fails(shown, text, mend, f"{shown} {text}")
    elif address in seen.network.addresses or address in seen.node.addresses:
        text = "is an address of this node, and no Service names it"
        mend = "nothing for the agent to do: whatever listens there answers"
        told.fails(shown, text, mend, f"{shown} {text}")
    else:
        mend = "kubectl get services -A shows all external IPs"
        told.fails(shown, "no Service names it", mend, f"no Service names {shown}")


def _tell(told: Told, naming: Naming) -> None:
    service, claim = naming.service, naming.claim
    subject = f"Service {service.key}"
    for why in naming.whys:
        told.say(WARN if claim else FAIL, subject, _sentence(why))
    if claim is not None:
        what = "the whole address, for" if claim.ports is None else "of the address"
        ports = shown_ports(service.ports if claim.ports is None else claim.ports)
        text = f"has {what} {ports}; its ClusterIP is {show_address(claim.cluster_ip)}"
        told.say(OK, subject, text)
        if claim.clients is not None:
            ranges = ", ".join(map(show_network, claim.clients)) or "none that can be read"
            told.say(NEUTRAL, subject, f"loadBalancerSourceRanges: {ranges}")
