"""All that there is to say about a target, and one sentence out of it.

What by itself has an address not work is a cause, and so is what nobody can tell. The causes stand
in the order of what is looked at; one that is certain comes before all that cannot be told. Without
any, the address works as far as this node knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from ipvs_node_agent import __version__
from ipvs_node_agent.errors import one_line
from ipvs_node_agent.explain import balancing, services, walks
from ipvs_node_agent.explain.facts import DOWN, RUNNING, Facts
from ipvs_node_agent.explain.lines import OK, WARN, Cause, Explanation, Told, Verdict
from ipvs_node_agent.explain.services import (
    Naming,
    addressless,
    all_ports,
    holder,
    naming,
    shown_ports,
)
from ipvs_node_agent.explain.target import Target
from ipvs_node_agent.explain.tried import Tried, weighed
from ipvs_node_agent.model.addresses import Address, parse_address, show_address
from ipvs_node_agent.model.objects import Port
from ipvs_node_agent.nat.ruletext import read
from ipvs_node_agent.nat.ruletext import service as service_of
from ipvs_node_agent.rules.coverage import described
from ipvs_node_agent.rules.policy import named_ips, unneeded_in

# More ports of one address are nobody's question.
_MOST_PORTS = 16
# Each port takes a walk, of which ten thousand would take minutes.
_MOST_LOOKED_AT = 256
_WORKS = "should work as far as this node's tables and IPVS say"
_NOT_TRIED = "network policies and the endpoints themselves were not tried"
_TRY = "--connect makes real connections; then the Service's endpoints and network policies"
_LONGEST = 1000


def explain(
    facts: Facts, target: Target, tried: Mapping[Address, Tried] = MappingProxyType({})
) -> list[Explanation]:
    """What there is to say about each address of `target`; `tried` is what connections told."""
    if target.address is not None:
        port = None if target.port is None else Port(target.protocol, target.port)
        return [_of_address(facts, target.address, port, target.text, tried)]
    return _of_service(facts, target.key, tried)


def addresses(facts: Facts, target: Target) -> tuple[Address, ...]:
    """The addresses that `target` is about."""
    if target.address is not None:
        return (target.address,)
    if facts.seen is None:
        return _told_by_rules(facts, target.key)
    service = facts.seen.services.get(target.key)
    return named_ips(service) if service is not None else ()


def tcp_ports(facts: Facts, target: Target, address: Address) -> list[int]:
    """The ports of `address` at which a connection can be tried."""
    if target.port is not None:
        return [target.port] if target.protocol == "tcp" else []
    named = naming(facts, address)
    ports = _own(all_ports(named), named, target.key) or _virtual_ports(
        facts, walks.led_to(facts, address, None)
    )
    return [port.number for port in ports if port.protocol == "tcp"][:_MOST_PORTS]


def _own(ports: Sequence[Port], named: Sequence[Naming], key: str) -> list[Port]:
    """Those of `ports` that the Service `key` has; all where it is about none."""
    if not key:
        return [*ports]
    return [each for each in ports if (who := holder(named, each)) and who.service.key == key]


def _told_by_rules(facts: Facts, key: str) -> tuple[Address, ...]:
    """The external IPs of a Service, where rules alone tell of them."""
    found: set[Address] = set()
    for table in facts.tables:
        for rules in table.table.chains.values():
            for text in rules:
                rule = read(text) if service_of(text) == key else None
                # Somebody else's rule may look like one of ours.
                with suppress(ValueError):
                    found.add(parse_address(rule.destination.partition("/")[0] if rule else ""))
    return tuple(sorted(found, key=lambda each: (each.version, int(each))))


def _of_service(facts: Facts, key: str, tried: Mapping[Address, Tried]) -> list[Explanation]:
    found = addresses(facts, Target(key, key=key))
    if found:
        return [_of_address(facts, each, None, show_address(each), tried, key) for each in found]
    told = Told()
    _of_node(told, facts)
    service = facts.seen.services.get(key) if facts.seen else None
    namespace = key.partition("/")[0]
    if facts.seen is None:
        told.doubts("API server", facts.unseen, "ipvs-node-agent check", _UNSEEN)
    elif service is None:
        told.fails(f"Service {key}", "there is none", f"kubectl -n {namespace} get services")
    else:
        why = addressless(service)
        subject = f"Service {key}"
        told.fails(subject, why.text, why.mend, f"{subject} {why.text}")
    return [Explanation(key, None, tuple(told.lines), concluded(told.causes))]


_UNSEEN = "the API server does not answer, and no rule of this node names the Service"


def _of_address(
    facts: Facts,
    address: Address,
    port: Port | None,
    subject: str,
    tried: Mapping[Address, Tried],
    key: str = "",
) -> Explanation:
    told = Told()
    named = naming(facts, address)
    _of_node(told, facts)
    told.add(services.tell(facts, address, named, port))
    ports = [port] if port is not None else _own(all_ports(named), named, key)
    if port is None:
        _outdone(told, named, key)
    if len(ports) > _MOST_LOOKED_AT:
        text = f"{len(ports) - _MOST_LOOKED_AT} more ports are not looked at"
        told.doubts("ports", text, "name one of them: IP:PORT")
        ports = ports[:_MOST_LOOKED_AT]
    _walk(told, facts, address, named, ports or [port])
    if not unneeded_in(facts.proxy.mode):
        _balance(told, facts, address, named, ports)
        _cover(told, facts, named)
    if facts.seen is None and not any(line.subject == "IPVS" for line in told.lines):
        text = f"no rule of this node names {show_address(address)}"
        told.doubts("API server", text, "ipvs-node-agent check", f"{facts.unseen}, and {text}")
    shown = tried.get(address, Tried())
    told.lines += shown.lines
    is_tried = shown.covers(ports)
    left = weighed(told.causes, shown, is_tried)
    verdict = concluded(left, facts.agent.state, is_tried, bool(shown.lines))
    return Explanation(subject, address, tuple(told.lines), verdict)


def _outdone(told: Told, named: Sequence[Naming], key: str) -> None:
    """What the Service that was asked about lacks at an address where somebody has rules.

    Where none was asked about, it is what a Service lacks beside ports that it has, and nobody has.
    """
    for each in named if any(one.claim for one in named) else ():
        lost = each.claim and any(holder(named, port) is None for port in each.service.ports)
        if each.service.key == key or (lost and not key):
            services.fail(told, each)


def _of_node(told: Told, facts: Facts) -> None:
    """What concerns all Services alike: kube-proxy's mode, the Node and the agent."""
    mode = facts.proxy.mode
    if unneeded_in(mode):
        text = f"is in {mode} mode, whose own rules lead to endpoints; explain does not follow them"
        mend = "apt remove ipvs-node-agent: in this mode it is not needed"
        told.doubts("kube-proxy", text, mend, f"kube-proxy {text}")
    elif facts.proxy.doubt:
        told.say(WARN, "kube-proxy", facts.proxy.doubt)
    elif mode is not None:
        told.say(OK, "kube-proxy", f"in {mode} mode")
    if facts.lacks:
        mend = f"kubectl get node {facts.node} -o yaml"
        told.fails("Node", facts.lacks, mend, facts.lacks)
    agent = facts.agent
    if agent.state == RUNNING:
        told.say(OK if agent.in_sync else WARN, "agent", agent.sentence)
    else:
        what = "does not run" if agent.state == DOWN else "does not answer"
        told.say(WARN, "agent", f"{what}; its rules are as it left them")


def _walk(
    told: Told,
    facts: Facts,
    address: Address,
    named: Sequence[Naming],
    ports: Sequence[Port | None],
) -> None:
    """The walks to each of `ports`, each told once for all ports that have the same one."""
    said: dict[tuple[Any, ...], tuple[Told, list[Port]]] = {}
    for port in ports:
        walked = walks.tell(facts, address, named, port)
        shown = "" if port is None else f"{port.protocol} port {port.number}"
        alike = tuple(line._replace(text=line.text.replace(shown, "")) for line in walked.lines)
        said.setdefault(alike, (walked, []))[1].extend([port] if port else [])
    for walked, alike_ports in said.values():
        if len(alike_ports) > 1:
            first = f"{alike_ports[0].protocol} port {alike_ports[0].number}"
            among = f"each of {shown_ports(alike_ports)}"
            walked.lines = [
                line._replace(text=line.text.replace(f"to {first},", f"to {among},"))
                for line in walked.lines
            ]
        told.add(walked)


def _balance(
    told: Told, facts: Facts, address: Address, named: Sequence[Naming], ports: Sequence[Port]
) -> None:
    """What IPVS has at the ClusterIP of each Service that has some of `ports`."""
    pairs: list[tuple[Naming | None, Address, Sequence[Port]]] = []
    if facts.seen is None:
        to = walks.led_to(facts, address, ports[0] if ports else None)
        if to is not None:
            pairs.append((None, to, ports or _virtual_ports(facts, to)))
    for each in named:
        own = [port for port in ports if holder(named, port) is each]
        if each.claim is not None and own:
            pairs.append((each, each.claim.cluster_ip, own))
    for who, cluster_ip, own_ports in pairs:
        told.add(balancing.tell(facts, address, who, cluster_ip, own_ports))
        told.add(balancing.tell_flows(facts, address, cluster_ip, own_ports))


def _virtual_ports(facts: Facts, cluster_ip: Address | None) -> list[Port]:
    found = [Port(s.protocol, s.port) for s in facts.ipvs or () if s.address == cluster_ip]
    return found[:_MOST_PORTS]


def _cover(told: Told, facts: Facts, named: Sequence[Naming]) -> None:
    if facts.uncovered:
        text = described(facts.uncovered)
        told.fails("pods", text, facts.remedy, text)
    elif facts.seen is not None and any(each.claim for each in named):
        told.say(OK, "pods", f"rules cover this node's, by {facts.coverage}")


def concluded(
    causes: Sequence[Cause], agent: str = RUNNING, tried: bool = False, asked: bool = False
) -> Verdict:
    """The verdict that follows from `causes`, where this becomes of the `agent`.

    `tried`: connections came about, to all that it is about; `asked`: some were to be made.
    """
    certain = (cause for cause in causes if cause.works is False)
    first = next(certain, None) or next(iter(causes), None)
    if first is None and agent != RUNNING:
        what, do = ("run", "start") if agent == DOWN else ("answer", "restart")
        text = f"{_WORKS}; but nothing keeps the rules up to date, as the agent does not {what}"
        return Verdict(True, text, f"systemctl {do} ipvs-node-agent")
    if first is None:
        mend = "" if tried or asked else _TRY
        return Verdict(True, "works" if tried else f"{_WORKS}; {_NOT_TRIED}", mend)
    what = "should not work" if first.works is False else "cannot be told"
    return Verdict(first.works, f"{what}: {first.sentence}", first.mend)


def overall(found: Sequence[Explanation]) -> bool | None:
    """Whether all of it works: the worst that was found."""
    each = {one.verdict.works for one in found}
    return False if False in each else None if None in each else True


def as_json(found: Sequence[Explanation], target: str, node: str) -> str:
    """For machines, as ipvs-node-agent(8) describes it."""
    raw = {
        "apiVersion": "ipvs-node-agent/v1",
        "kind": "Explanation",
        "version": __version__,
        "node": node,
        "target": target,
        "works": overall(found),
        "explanations": [
            {
                "subject": one.subject,
                "address": show_address(one.address) if one.address else None,
                "works": one.verdict.works,
                "verdict": one.verdict.sentence,
                "nextStep": one.verdict.mend,
                "lines": [line._asdict() for line in one.lines],
            }
            for one in found
        ],
    }
    return json.dumps(_harmless(raw), indent=2) + "\n"


def _harmless(raw: Any) -> Any:
    """`raw` with all texts on one line; whatever was read from outside is in them."""
    if isinstance(raw, str):
        return one_line(raw, _LONGEST)
    if isinstance(raw, dict):
        return {key: _harmless(value) for key, value in raw.items()}
    return [_harmless(each) for each in raw] if isinstance(raw, list) else raw
